//! What there may be at most: of an end user of a tenant by a quota, in a workspace by its policy.
//!
//! Both hold in the transactions that make and start computers: writers go one after the other, so of two that come at
//! once the second one finds what the first has made. A computer that runs is counted as such from the request that
//! starts it until it is off.

use roost_api::{
    ComputerId, MicroCredits, RegionName, Size, Status, TenantId, Timestamp, WorkspaceId, WorkspacePolicy,
};
use serde_json::{Map, Value};
use sqlx::{Row, Transaction};

use crate::computers::json as to_json;
use crate::query::QueryBuilder;
use crate::record::{ComputerRecord, json, number, optional_number};
use crate::runs::RunRecord;
use crate::{Db, DbRow, NewComputer, Store, StoreError};

/// `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuotaRecord {
    pub computers: Option<u32>,
    /// Of those that run, or are about to.
    pub running: Option<u32>,
    pub storage_gib: Option<u32>,
    /// In a calendar month.
    pub cost: Option<MicroCredits>,
}

/// `None` leaves a limit as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuotaChange {
    pub computers: Option<Option<u32>>,
    pub running: Option<Option<u32>>,
    pub storage_gib: Option<Option<u32>>,
    pub cost: Option<Option<MicroCredits>>,
}

/// What an end user has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaUse {
    pub computers: u64,
    pub running: u64,
    pub storage_gib: u64,
    /// Since the month began.
    pub cost: MicroCredits,
}

/// What there is enough of, or what may not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limit {
    Computers(u32),
    Running(u32),
    StorageGib(u32),
    /// What was spent this month.
    Cost(MicroCredits),
    Size(Size),
    Region(RegionName),
}

/// Whose limit it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitOf {
    EndUser(String),
    Workspace(WorkspaceId),
}

/// A computer was not made, started or changed, because a limit is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitReached {
    pub of: LimitOf,
    pub limit: Limit,
}

const QUOTA: &str = "SELECT * FROM quotas WHERE tenant_id = $1 AND external_user_id = $2";

/// In which a computer takes a place of those that run.
const RUNNING: [Status; 4] = [Status::Provisioning, Status::Starting, Status::Running, Status::Stopping];

/// Whose computers are counted.
#[derive(Debug, Clone, Copy)]
enum Whose<'a> {
    EndUser(TenantId, &'a str),
    Workspace(WorkspaceId),
}

impl Whose<'_> {
    /// As a condition of a query about `computers c`.
    fn push(self, query: &mut QueryBuilder) {
        match self {
            Whose::EndUser(tenant, user) => {
                query.push("c.tenant_id = ").push_bind(tenant.to_string());
                query.push(" AND c.external_user_id = ").push_bind(user.to_owned());
            }
            Whose::Workspace(workspace) => {
                query.push("c.workspace_id = ").push_bind(workspace.to_string());
            }
        }
    }

    fn reached<T>(self, limit: Limit) -> Result<T, StoreError> {
        let of = match self {
            Whose::EndUser(_, user) => LimitOf::EndUser(user.to_owned()),
            Whose::Workspace(workspace) => LimitOf::Workspace(workspace),
        };
        Err(StoreError::Limit { reached: LimitReached { of, limit } })
    }
}

impl Store {
    /// The quota, and what there is of what it limits. No quota is one without limits.
    pub async fn quota_use(
        &self,
        tenant: TenantId,
        user: &str,
    ) -> Result<(QuotaRecord, QuotaUse), StoreError> {
        let mut tx = self.pool.begin().await?;
        let whose = Whose::EndUser(tenant, user);
        let quota = load(&mut tx, tenant, user).await?.unwrap_or_default();
        let (computers, storage_gib) = owned(&mut tx, whose).await?;
        let used = QuotaUse {
            computers,
            running: running(&mut tx, whose, None).await?,
            storage_gib,
            cost: spent(&mut tx, tenant, user, self.clock.now()).await?,
        };
        tx.commit().await?;
        Ok((quota, used))
    }

    /// What there is already stays, also above the new limits.
    pub async fn set_quota(
        &self,
        tenant: TenantId,
        user: &str,
        change: &QuotaChange,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let old = load(&mut tx, tenant, user).await?.unwrap_or_default();
        sqlx::query(
            "INSERT INTO quotas (tenant_id, external_user_id, max_computers, max_running, max_storage, max_cost,
                 updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (tenant_id, external_user_id) DO UPDATE SET max_computers = excluded.max_computers,
                 max_running = excluded.max_running, max_storage = excluded.max_storage,
                 max_cost = excluded.max_cost, updated_at = excluded.updated_at",
        )
        .bind(tenant.to_string())
        .bind(user)
        .bind(change.computers.unwrap_or(old.computers).map(i64::from))
        .bind(change.running.unwrap_or(old.running).map(i64::from))
        .bind(change.storage_gib.unwrap_or(old.storage_gib).map(i64::from))
        .bind(change.cost.unwrap_or(old.cost).map(|cost| cost.0))
        .bind(self.clock.now().as_micros())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    pub async fn remove_quota(&self, tenant: TenantId, user: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM quotas WHERE tenant_id = $1 AND external_user_id = $2")
            .bind(tenant.to_string())
            .bind(user)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// What was set as the policy of a workspace. None is one that allows everything.
    pub async fn policy(&self, workspace: WorkspaceId) -> Result<WorkspacePolicy, StoreError> {
        let row = sqlx::query("SELECT policy FROM workspace_policies WHERE workspace_id = $1")
            .bind(workspace.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(|row| json(row, "policy")).transpose().map(Option::unwrap_or_default)
    }

    /// What there is already stays. False: there is no such workspace.
    pub async fn set_policy(
        &self,
        workspace: WorkspaceId,
        policy: &WorkspacePolicy,
    ) -> Result<bool, StoreError> {
        let set = sqlx::query(
            "INSERT INTO workspace_policies (workspace_id, policy, updated_at)
             SELECT id, $2, $3 FROM workspaces WHERE id = $1
             ON CONFLICT (workspace_id) DO UPDATE SET policy = excluded.policy, updated_at = excluded.updated_at",
        )
        .bind(workspace.to_string())
        .bind(to_json(policy)?)
        .bind(self.clock.now().as_micros())
        .execute(&self.pool)
        .await?;
        Ok(set.rows_affected() > 0)
    }
}

/// Refuses a computer that its end user may not have, or that may not be in its workspace.
pub(crate) async fn admit_new(
    tx: &mut Transaction<'static, Db>,
    new: &NewComputer,
    workspace: WorkspaceId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let policy = policy_of(tx, workspace).await?;
    admit_size(&policy, workspace, new.size)?;
    admit_region(&policy, workspace, &new.region)?;
    admit_owned(tx, Whose::Workspace(workspace), policy.max_computers, policy.max_storage_gb, new.disk_gib)
        .await?;
    admit_running(tx, Whose::Workspace(workspace), policy.max_concurrent, new.id).await?;
    let Some(user) = new.external_user_id.as_deref() else { return Ok(()) };
    let Some(quota) = load(tx, new.tenant_id, user).await? else { return Ok(()) };
    let whose = Whose::EndUser(new.tenant_id, user);
    admit_owned(tx, whose, quota.computers, quota.storage_gib, new.disk_gib).await?;
    admit_running(tx, whose, quota.running, new.id).await?;
    admit_cost(tx, new.tenant_id, user, &quota, now).await
}

/// Refuses the start of a computer that its end user, or its workspace, may not have running.
pub(crate) async fn admit_start(
    tx: &mut Transaction<'static, Db>,
    computer: &ComputerRecord,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (tenant, workspace) = (computer.tenant_id, computer.workspace_id);
    let policy = policy_of(tx, workspace).await?;
    admit_running(tx, Whose::Workspace(workspace), policy.max_concurrent, computer.id).await?;
    let Some(user) = computer.external_user_id.as_deref() else { return Ok(()) };
    let Some(quota) = load(tx, tenant, user).await? else { return Ok(()) };
    admit_running(tx, Whose::EndUser(tenant, user), quota.running, computer.id).await?;
    admit_cost(tx, tenant, user, &quota, now).await
}

/// Refuses a size that may not be in the computer's workspace.
pub(crate) async fn admit_resize(
    tx: &mut Transaction<'static, Db>,
    computer: &ComputerRecord,
    size: Size,
) -> Result<(), StoreError> {
    admit_size(&policy_of(tx, computer.workspace_id).await?, computer.workspace_id, size)
}

/// The same for a region.
pub(crate) async fn admit_move(
    tx: &mut Transaction<'static, Db>,
    computer: &ComputerRecord,
    region: &RegionName,
) -> Result<(), StoreError> {
    admit_region(&policy_of(tx, computer.workspace_id).await?, computer.workspace_id, region)
}

/// Refuses what has just been brought into a workspace, if it may not be there.
pub(crate) async fn admit_arrived(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    arrived: &[ComputerRecord],
) -> Result<(), StoreError> {
    let policy = policy_of(tx, workspace).await?;
    for computer in arrived {
        admit_size(&policy, workspace, computer.size)?;
        admit_region(&policy, workspace, &computer.region)?;
    }
    let whose = Whose::Workspace(workspace);
    let (computers, storage) = owned(tx, whose).await?;
    let is_beyond = |has: u64, most: Option<u32>| most.filter(|most| has > u64::from(*most));
    if let Some(most) = is_beyond(computers, policy.max_computers) {
        return whose.reached(Limit::Computers(most));
    }
    if let Some(most) = is_beyond(storage, policy.max_storage_gb) {
        return whose.reached(Limit::StorageGib(most));
    }
    match is_beyond(running(tx, whose, None).await?, policy.max_concurrent) {
        Some(most) => whose.reached(Limit::Running(most)),
        None => Ok(()),
    }
}

fn admit_size(policy: &WorkspacePolicy, workspace: WorkspaceId, size: Size) -> Result<(), StoreError> {
    match &policy.allowed_sizes {
        Some(allowed) if !allowed.contains(&size) => Whose::Workspace(workspace).reached(Limit::Size(size)),
        _ => Ok(()),
    }
}

fn admit_region(
    policy: &WorkspacePolicy,
    workspace: WorkspaceId,
    region: &RegionName,
) -> Result<(), StoreError> {
    match &policy.allowed_regions {
        Some(allowed) if !allowed.contains(region) => {
            Whose::Workspace(workspace).reached(Limit::Region(region.clone()))
        }
        _ => Ok(()),
    }
}

async fn admit_owned(
    tx: &mut Transaction<'static, Db>,
    whose: Whose<'_>,
    computers: Option<u32>,
    storage_gib: Option<u32>,
    more_gib: u32,
) -> Result<(), StoreError> {
    if computers.is_none() && storage_gib.is_none() {
        return Ok(());
    }
    let (has, gib) = owned(tx, whose).await?;
    match (computers, storage_gib) {
        (Some(most), _) if has >= most.into() => whose.reached(Limit::Computers(most)),
        (_, Some(most)) if gib + u64::from(more_gib) > most.into() => whose.reached(Limit::StorageGib(most)),
        _ => Ok(()),
    }
}

async fn admit_running(
    tx: &mut Transaction<'static, Db>,
    whose: Whose<'_>,
    most: Option<u32>,
    computer: ComputerId,
) -> Result<(), StoreError> {
    match most {
        Some(most) if running(tx, whose, Some(computer)).await? >= most.into() => {
            whose.reached(Limit::Running(most))
        }
        _ => Ok(()),
    }
}

async fn admit_cost(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    user: &str,
    quota: &QuotaRecord,
    now: Timestamp,
) -> Result<(), StoreError> {
    match quota.cost {
        Some(most) if spent(tx, tenant, user, now).await? >= most => {
            Whose::EndUser(tenant, user).reached(Limit::Cost(most))
        }
        _ => Ok(()),
    }
}

/// Computers that run although their end user has spent what they may spend in a month, and how much that is.
pub(crate) async fn overspent(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
) -> Result<Vec<(ComputerId, MicroCredits)>, StoreError> {
    let rows = sqlx::query(
        "SELECT r.*, q.max_cost FROM quotas q
         JOIN runs r ON r.tenant_id = q.tenant_id AND r.external_user_id = q.external_user_id
             AND r.ended_at IS NULL
         WHERE q.max_cost IS NOT NULL",
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut found = Vec::new();
    for row in &rows {
        let (run, most) = (RunRecord::from_row(row)?, MicroCredits(number(row, "max_cost")?));
        let Some(user) = run.external_user_id.as_deref() else { continue };
        if spent(tx, run.tenant, user, now).await? >= most {
            found.push((run.computer, most));
        }
    }
    Ok(found)
}

async fn load(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    user: &str,
) -> Result<Option<QuotaRecord>, StoreError> {
    let row = sqlx::query(QUOTA).bind(tenant.to_string()).bind(user).fetch_optional(&mut **tx).await?;
    row.as_ref().map(QuotaRecord::from_row).transpose()
}

/// What holds in a workspace: its policy, and the limits among its settings.
pub(crate) async fn policy_of(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
) -> Result<WorkspacePolicy, StoreError> {
    let row = sqlx::query(
        "SELECT w.settings, COALESCE(p.policy, '{}') AS policy FROM workspaces w
         LEFT JOIN workspace_policies p ON p.workspace_id = w.id WHERE w.id = $1",
    )
    .bind(workspace.to_string())
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(WorkspacePolicy::default()) };
    let policy: WorkspacePolicy = json(&row, "policy")?;
    let settings: Map<String, Value> = json(&row, "settings")?;
    // Settings from before they were limits may hold anything under these names.
    Ok(policy.and(WorkspacePolicy::among(&settings).unwrap_or_default()))
}

/// How many computers there are, and what their disks may grow to. What is being deleted is not counted.
async fn owned(tx: &mut Transaction<'static, Db>, whose: Whose<'_>) -> Result<(u64, u64), StoreError> {
    let mut query = QueryBuilder::new(
        "SELECT COUNT(*) AS n, CAST(COALESCE(SUM(c.disk_gib), 0) AS BIGINT) AS gib FROM computers c
         WHERE c.desired <> 'deleted' AND ",
    );
    whose.push(&mut query);
    let row = query.build().fetch_one(&mut **tx).await?;
    Ok((number(&row, "n")?, number(&row, "gib")?))
}

/// How many run, or are about to, beside one.
async fn running(
    tx: &mut Transaction<'static, Db>,
    whose: Whose<'_>,
    beside: Option<ComputerId>,
) -> Result<u64, StoreError> {
    let mut query = QueryBuilder::new("SELECT COUNT(*) AS n FROM computers c WHERE ");
    whose.push(&mut query);
    if let Some(beside) = beside {
        query.push(" AND c.id <> ").push_bind(beside.to_string());
    }
    query.push(" AND c.status").push_in(RUNNING);
    number(&query.build().fetch_one(&mut **tx).await?, "n")
}

/// What runs have cost since the month began.
async fn spent(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    user: &str,
    now: Timestamp,
) -> Result<MicroCredits, StoreError> {
    let start = now.start_of_month();
    let rows = sqlx::query(
        "SELECT * FROM runs WHERE tenant_id = $1 AND external_user_id = $2
             AND (ended_at IS NULL OR ended_at > $3)",
    )
    .bind(tenant.to_string())
    .bind(user)
    .bind(start.as_micros())
    .fetch_all(&mut **tx)
    .await?;
    let mut cost = 0;
    for row in &rows {
        let run = RunRecord::from_row(row)?;
        cost += run.price.of_time(run.micros_between(start, now, now)).0;
    }
    Ok(MicroCredits(cost))
}

impl QuotaRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            computers: optional_number(row, "max_computers")?,
            running: optional_number(row, "max_running")?,
            storage_gib: optional_number(row, "max_storage")?,
            cost: row.try_get::<Option<i64>, _>("max_cost")?.map(MicroCredits),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestDatabase, new_computer};
    use crate::{Begin, Finish, WorkflowKind};

    async fn of_ann(store: &Store) -> NewComputer {
        NewComputer { external_user_id: Some("ann".to_owned()), ..new_computer(store).await }
    }

    fn limit(result: Result<impl std::fmt::Debug, StoreError>) -> Limit {
        match result {
            Err(StoreError::Limit { reached }) => reached.limit,
            other => panic!("no limit was reached: {other:?}"),
        }
    }

    #[tokio::test]
    async fn what_comes_at_once_is_counted_one_by_one() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let tenant = store.home().await.unwrap().tenant;
        let change = QuotaChange { computers: Some(Some(3)), ..QuotaChange::default() };
        store.set_quota(tenant, "ann", &change).await.unwrap();
        let mut made = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (store, new) = (store.clone(), of_ann(&store).await);
            made.spawn(async move { store.insert_computer(&new).await });
        }
        let made = made.join_all().await;
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3);
        for refused in made.into_iter().filter(Result::is_err) {
            assert_eq!(limit(refused), Limit::Computers(3));
        }
        // Somebody else's are others.
        let bob = NewComputer { external_user_id: Some("bob".to_owned()), ..new_computer(&store).await };
        store.insert_computer(&bob).await.unwrap();
        store.insert_computer(&new_computer(&store).await).await.unwrap();
        store.remove_quota(tenant, "ann").await.unwrap();
        store.insert_computer(&of_ann(&store).await).await.unwrap();
    }

    #[tokio::test]
    async fn a_place_is_taken_from_the_request_on_until_the_computer_is_off() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let tenant = store.home().await.unwrap().tenant;
        let change =
            QuotaChange { running: Some(Some(1)), storage_gib: Some(Some(2)), ..QuotaChange::default() };
        store.set_quota(tenant, "ann", &change).await.unwrap();
        let (first, create) = store.insert_computer(&of_ann(&store).await).await.unwrap();
        assert_eq!(limit(store.insert_computer(&of_ann(&store).await).await), Limit::Running(1));
        let fail = async |workflow: &crate::WorkflowRecord| {
            store.claim_workflow(workflow.id).await.unwrap();
            assert!(store.finish_workflow(workflow, &Finish::Failed("why".to_owned())).await.unwrap());
        };
        fail(&create).await;
        // It failed, and takes no place; another does.
        let (_, second) = store.insert_computer(&of_ann(&store).await).await.unwrap();
        let start =
            async || store.begin_workflow(first.id, WorkflowKind::Start, None, |_| Ok::<(), ()>(())).await;
        assert_eq!(limit(start().await), Limit::Running(1));
        fail(&second).await;
        assert!(matches!(start().await, Ok(Begin::Begun(_))));
        assert_eq!(limit(store.insert_computer(&of_ann(&store).await).await), Limit::StorageGib(2));
        let (quota, used) = store.quota_use(tenant, "ann").await.unwrap();
        assert_eq!((quota.running, quota.storage_gib, quota.computers), (Some(1), Some(2), None));
        let cost = MicroCredits(0);
        assert_eq!(used, QuotaUse { computers: 2, running: 1, storage_gib: 2, cost });
        // A refused request leaves nothing behind.
        assert_eq!(store.all_computers().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_workspace_holds_what_its_policy_allows() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let home = store.home().await.unwrap();
        let policy = |text: &str| serde_json::from_str::<WorkspacePolicy>(text).unwrap();
        let set = async |text: &str| assert!(store.set_policy(home.workspace, &policy(text)).await.unwrap());
        let make = async || store.insert_computer(&new_computer(&store).await).await;
        set(r#"{ "allowed_sizes": ["medium"] }"#).await;
        assert_eq!(limit(make().await), Limit::Size(Size::Small));
        set(r#"{ "allowed_regions": ["us-east-ny"] }"#).await;
        assert_eq!(limit(make().await), Limit::Region(RegionName::local()));
        set(r#"{ "max_computers": 1, "allowed_sizes": ["small"], "allowed_regions": ["local"] }"#).await;
        let made = make().await.unwrap().0;
        assert_eq!(limit(make().await), Limit::Computers(1));
        let resize = crate::WorkflowPayload::Resize { size: Size::Large };
        let begun =
            store.begin_workflow(made.id, WorkflowKind::Resize, Some(resize), |_| Ok::<(), ()>(())).await;
        assert_eq!(limit(begun), Limit::Size(Size::Large));
        assert!(!store.set_policy(WorkspaceId::new(), &policy("{}")).await.unwrap());
        assert_eq!(store.policy(home.workspace).await.unwrap().max_computers, Some(1));
    }
}
