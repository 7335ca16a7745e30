//! Computers: rows, filters, changes and what machines report.

use std::collections::BTreeMap;

use roost_api::{
    ComputerId, Event, EventId, LayerId, Order, ProjectId, RegionName, ScreenSize, Size, SnapshotId, Status,
    TenantId, Timestamp, UserId, Visibility, WorkspaceId,
};
use sqlx::{Row, Transaction};

use crate::apps::insert_installations;
use crate::env::{NewVariable, insert_variables};
use crate::events::{EventScope, insert_event, record_status};
use crate::places::lasting_place;
use crate::query::QueryBuilder;
use crate::quotas::admit_new;
use crate::reach::{Of, Reach};
use crate::record::{ComputerRecord, Desired, Observed, WorkflowKind, WorkflowRecord, number};
use crate::setups::insert_setup;
use crate::status::status;
use crate::workflows::insert_workflow;
use crate::{Db, Store, StoreError};

/// The nearest verified domain of a computer `c`.
macro_rules! preview_domain {
    () => {
        "(SELECT d.domain FROM preview_domains d
              WHERE d.owner_id IN (c.project_id, c.workspace_id, c.tenant_id) AND d.verified_at IS NOT NULL
              ORDER BY d.distance LIMIT 1) AS preview_domain"
    };
}

/// Every column, the workflow at work as `intended`, and the domain of its ports.
const SELECT: &str = concat!(
    "SELECT c.*, w.kind AS intended, ",
    preview_domain!(),
    " FROM computers c LEFT JOIN workflows w ON w.computer_id = c.id AND w.finished_at IS NULL"
);

#[derive(Debug, Clone)]
pub struct NewComputer {
    pub id: ComputerId,
    pub tenant_id: TenantId,
    pub owner_user_id: UserId,
    pub workspace_id: WorkspaceId,
    pub project_id: ProjectId,
    pub name: String,
    /// What the slug should be; a suffix is added when it is taken.
    pub slug: String,
    pub template_type: String,
    pub template_digest: String,
    pub size: Size,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub selected_apps: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    pub visibility: Visibility,
    /// Idle seconds before it is stopped; 0 is never.
    pub auto_stop: u32,
    /// Seconds after each start after which it is stopped; 0 is never.
    pub timeout: u32,
    pub screen: ScreenSize,
    pub always_on: bool,
    /// The virtual size of the disk.
    pub disk_gib: u32,
    pub region: RegionName,
    /// What its first start continues from. It is complete, or being taken.
    pub snapshot: Option<SnapshotId>,
    /// The layer of that snapshot, where it is complete.
    pub layer: Option<LayerId>,
    /// The newest snapshot of the history it continues.
    pub last_snapshot: Option<SnapshotId>,
    pub env: Vec<NewVariable>,
    /// A script to run once it runs, sealed.
    pub setup: Option<String>,
}

/// Filters of a list; they combine with AND.
#[derive(Debug, Clone, Default)]
pub struct ComputerFilter {
    pub workspace: Option<WorkspaceId>,
    pub project: Option<ProjectId>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    /// Part of a name, slug or id.
    pub search: Option<String>,
    /// `None`: any.
    pub statuses: Option<Vec<Status>>,
    pub order: Order,
    /// How many at most, from which one on.
    pub page: Option<(u64, u64)>,
}

/// What a user may change on a computer; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct ComputerChange {
    pub name: Option<String>,
    pub agent_session_id: Option<Option<String>>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub visibility: Option<Visibility>,
    pub always_on: Option<bool>,
    pub auto_stop: Option<u32>,
    pub timeout: Option<u32>,
    pub screen: Option<ScreenSize>,
}

impl Store {
    /// Inserts a computer whose place is there, and begins its `create` workflow.
    #[cfg(any(test, feature = "testing"))]
    pub async fn insert_computer(
        &self,
        new: &NewComputer,
    ) -> Result<(ComputerRecord, WorkflowRecord), StoreError> {
        let mut tx = self.write().await?;
        let inserted = insert(&mut tx, new, self.clock.now()).await?;
        tx.commit().await?;
        Ok(inserted)
    }

    pub async fn computer(&self, id: ComputerId) -> Result<Option<ComputerRecord>, StoreError> {
        let mut query = QueryBuilder::new(SELECT);
        query.push(" WHERE c.id = ").push_bind(id.to_string());
        let row = query.build().fetch_optional(&self.pool).await?;
        row.as_ref().map(ComputerRecord::from_row).transpose()
    }

    /// The computer, and the newest event, as they are at one moment.
    pub async fn computer_and_last_event(
        &self,
        id: ComputerId,
    ) -> Result<Option<(ComputerRecord, EventId)>, StoreError> {
        let row = sqlx::query(concat!(
            "SELECT c.*, w.kind AS intended, l.last_id AS last_event, ",
            preview_domain!(),
            " FROM event_log l JOIN computers c ON c.id = $1
             LEFT JOIN workflows w ON w.computer_id = c.id AND w.finished_at IS NULL
             WHERE l.id = 1"
        ))
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| Ok((ComputerRecord::from_row(&row)?, EventId(row.try_get("last_event")?)))).transpose()
    }

    pub async fn computer_by_slug(&self, slug: &str) -> Result<Option<ComputerRecord>, StoreError> {
        let mut query = QueryBuilder::new(SELECT);
        query.push(" WHERE c.slug = ").push_bind(slug);
        let row = query.build().fetch_optional(&self.pool).await?;
        row.as_ref().map(ComputerRecord::from_row).transpose()
    }

    /// All computers, of every tenant; for reconciling.
    pub async fn all_computers(&self) -> Result<Vec<ComputerRecord>, StoreError> {
        let rows = QueryBuilder::new(SELECT).build().fetch_all(&self.pool).await?;
        rows.iter().map(ComputerRecord::from_row).collect()
    }

    /// Gives computers from before there was a column for it their status.
    pub(crate) async fn write_missing_statuses(&self) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let mut query = QueryBuilder::new(SELECT);
        query.push(" WHERE c.status = ''");
        for row in query.build().fetch_all(&mut *tx).await? {
            write_status(&mut tx, &ComputerRecord::from_row(&row)?).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Computers that run and are to be stopped once they are idle, or have run for long enough.
    pub async fn auto_stopping(&self) -> Result<Vec<ComputerRecord>, StoreError> {
        let mut query = QueryBuilder::new(SELECT);
        query.push(
            " WHERE (c.auto_stop > 0 OR c.timeout_sec > 0) AND c.desired = 'running' AND c.observed = 'running'",
        );
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(ComputerRecord::from_row).collect()
    }

    /// Writes down when computers were last used. What is known to be later stays.
    pub async fn record_activity(&self, last: &[(ComputerId, Timestamp)]) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for (computer, at) in last {
            sqlx::query(
                "UPDATE computers SET last_active_at = $1
                 WHERE id = $2 AND (last_active_at IS NULL OR last_active_at < $1)",
            )
            .bind(at.as_micros())
            .bind(computer.to_string())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The computers within reach that match, in the filter's order.
    pub async fn computers(
        &self,
        reach: &Reach,
        filter: &ComputerFilter,
    ) -> Result<Vec<ComputerRecord>, StoreError> {
        let mut query = QueryBuilder::new(SELECT);
        match filter.page {
            None => push_filter(&mut query, reach, filter),
            // Which ones first, mostly from an index alone: what is passed over is not read.
            Some((limit, offset)) => {
                query.push(" WHERE c.id IN (SELECT c.id FROM computers c");
                push_filter(&mut query, reach, filter);
                query.push(order_by(filter.order));
                query.push(" LIMIT ").push_bind(signed(limit)?);
                query.push(" OFFSET ").push_bind(i64::try_from(offset).unwrap_or(i64::MAX));
                query.push(")");
            }
        }
        query.push(order_by(filter.order));
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(ComputerRecord::from_row).collect()
    }

    /// How many match, on all pages.
    pub async fn count_computers(&self, reach: &Reach, filter: &ComputerFilter) -> Result<u64, StoreError> {
        let mut query = QueryBuilder::new("SELECT COUNT(*) AS n FROM computers c");
        push_filter(&mut query, reach, filter);
        number(&query.build().fetch_one(&self.pool).await?, "n")
    }

    pub async fn change_computer(
        &self,
        id: ComputerId,
        change: &ComputerChange,
    ) -> Result<Option<ComputerRecord>, StoreError> {
        let mut tx = self.write().await?;
        let mut query = QueryBuilder::new("UPDATE computers SET updated_at = ");
        query.push_bind(Timestamp::now().as_micros());
        if let Some(name) = &change.name {
            query.push(", name = ").push_bind(name);
            query.push(", search_text = ").push_bind(format!("{}\n", name.to_lowercase()));
            query.push(" || slug || '\n' || id");
        }
        if let Some(session) = &change.agent_session_id {
            query.push(", agent_session_id = ").push_bind(session);
        }
        if let Some(metadata) = &change.metadata {
            query.push(", metadata = ").push_bind(json(metadata)?);
        }
        if let Some(visibility) = change.visibility {
            query.push(", visibility = ").push_bind(visibility.as_str());
        }
        if let Some(always_on) = change.always_on {
            query.push(", always_on = ").push_bind(i64::from(always_on));
        }
        if let Some(auto_stop) = change.auto_stop {
            query.push(", auto_stop = ").push_bind(i64::from(auto_stop));
        }
        if let Some(timeout) = change.timeout {
            query.push(", timeout_sec = ").push_bind(i64::from(timeout));
        }
        if let Some(screen) = change.screen {
            query.push(", resolution = ").push_bind(screen.to_string());
        }
        query.push(" WHERE id = ").push_bind(id.to_string());
        query.build().execute(&mut *tx).await?;
        let record = load(&mut tx, id).await?;
        tx.commit().await?;
        Ok(record)
    }

    /// Records what the machine of `generation` reported. An older generation loses, and so does what came before
    /// its end, which several servers may have seen: false.
    pub async fn observe(
        &self,
        id: ComputerId,
        generation: u64,
        observed: Observed,
        failure: Option<(&str, &[String])>,
        memory_lost: Option<&str>,
    ) -> Result<bool, StoreError> {
        let (reason, console) = match failure {
            Some((reason, console)) => (Some(reason), Some(json(&console)?)),
            None => (None, None),
        };
        let mut tx = self.write().await?;
        let before = load(&mut tx, id).await?;
        let changed = sqlx::query(
            "UPDATE computers SET observed = $1, failure = COALESCE($2, failure),
                 failure_console = COALESCE($3, failure_console), updated_at = $4,
                 memory_lost = COALESCE($7, memory_lost)
             WHERE id = $5 AND generation = $6 AND (observed <> $1 OR $2 IS NOT NULL OR $7 IS NOT NULL)
                 AND (observed <> 'stopped' OR $1 IN ('stopped', 'failed', 'absent'))",
        )
        .bind(observed.as_str())
        .bind(reason)
        .bind(console)
        .bind(Timestamp::now().as_micros())
        .bind(id.to_string())
        .bind(signed(generation)?)
        .bind(memory_lost)
        .execute(&mut *tx)
        .await?;
        let after = load(&mut tx, id).await?;
        record_status(&mut tx, self.clock.now(), before.as_ref(), after.as_ref()).await?;
        tx.commit().await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Changes what is wanted of a computer nobody is working on, and that nobody has started since `generation`;
    /// what reconcilers use when a guest turned itself off or the host lost all its processes.
    pub async fn settle(
        &self,
        id: ComputerId,
        generation: u64,
        from: Desired,
        to: Desired,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let before = load(&mut tx, id).await?;
        let changed = sqlx::query(
            "UPDATE computers SET desired = $1, updated_at = $2 WHERE id = $3 AND desired = $4 AND generation = $5
                 AND NOT EXISTS (SELECT 1 FROM workflows WHERE computer_id = $3 AND finished_at IS NULL
                     AND kind NOT IN ('capture', 'resize', 'move'))",
        )
        .bind(to.as_str())
        .bind(Timestamp::now().as_micros())
        .bind(id.to_string())
        .bind(from.as_str())
        .bind(signed(generation)?)
        .execute(&mut *tx)
        .await?;
        let after = load(&mut tx, id).await?;
        record_status(&mut tx, self.clock.now(), before.as_ref(), after.as_ref()).await?;
        tx.commit().await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Gives the computer another size. Its disk stays as large as it is. Memory that a first start was to
    /// continue from does not fit any more; the disk does.
    pub async fn resize_computer(&self, id: ComputerId, size: Size) -> Result<(), StoreError> {
        sqlx::query("UPDATE computers SET size = $1, snapshot_id = NULL, updated_at = $2 WHERE id = $3")
            .bind(size.as_str())
            .bind(Timestamp::now().as_micros())
            .bind(id.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The computer's files are in `to` now, where its disk lies on a template. Done already: nothing.
    pub async fn move_computer(
        &self,
        id: ComputerId,
        from: &RegionName,
        to: &RegionName,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let moved = sqlx::query(
            "UPDATE computers SET region = $1, layer_id = NULL, updated_at = $2 WHERE id = $3 AND region = $4",
        )
        .bind(to.as_str())
        .bind(Timestamp::now().as_micros())
        .bind(id.to_string())
        .bind(from.as_str())
        .execute(&mut *tx)
        .await?;
        if moved.rows_affected() > 0
            && let Some(record) = load(&mut tx, id).await?
        {
            let event = Event::Moved { region: to.clone(), previous_region: from.clone() };
            insert_event(&mut tx, &EventScope::of(&record), &event).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Removes the row. Its finished workflows go with it; the running one is the caller's.
    pub async fn remove_computer(&self, id: ComputerId) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let before = load(&mut tx, id).await?;
        sqlx::query("DELETE FROM workflows WHERE computer_id = $1 AND finished_at IS NOT NULL")
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM metrics WHERE computer_id = $1")
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM computers WHERE id = $1").bind(id.to_string()).execute(&mut *tx).await?;
        record_status(&mut tx, self.clock.now(), before.as_ref(), None).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// The id last, so that no computer is on two pages.
fn order_by(order: Order) -> &'static str {
    match order {
        Order::Newest => " ORDER BY c.created_at DESC, c.id DESC",
        Order::Oldest => " ORDER BY c.created_at, c.id",
        Order::LastChanged => " ORDER BY c.updated_at DESC, c.id DESC",
        Order::FirstChanged => " ORDER BY c.updated_at, c.id",
        Order::Name => " ORDER BY LOWER(c.name), c.id",
        Order::NameBackwards => " ORDER BY LOWER(c.name) DESC, c.id DESC",
    }
}

fn push_filter(query: &mut QueryBuilder, reach: &Reach, filter: &ComputerFilter) {
    query.push(" WHERE 1 = 1");
    reach.push(query, Of::Computers);
    let equal = [
        (" AND c.workspace_id = ", filter.workspace.map(|id| id.to_string())),
        (" AND c.project_id = ", filter.project.map(|id| id.to_string())),
        (" AND c.external_workspace_id = ", filter.external_workspace_id.clone()),
        (" AND c.external_user_id = ", filter.external_user_id.clone()),
        (" AND c.external_project_id = ", filter.external_project_id.clone()),
    ];
    for (condition, value) in equal {
        if let Some(value) = value {
            query.push(condition).push_bind(value);
        }
    }
    if let Some(text) = &filter.search {
        let pattern = format!("%{}%", escape_like(&text.to_lowercase()));
        query.push(" AND c.search_text LIKE ").push_bind(pattern).push(" ESCAPE '\\'");
    }
    match filter.statuses.as_deref() {
        None => {}
        // The index has them in the order of the list, which it has not of several.
        Some([status]) => {
            query.push(" AND c.status = ").push_bind(status.as_str());
        }
        Some(statuses) => {
            query.push(" AND c.status").push_in(statuses);
        }
    }
}

/// The computer and its `create` workflow come in one transaction, so that there is never one without the other.
pub(crate) async fn insert(
    tx: &mut Transaction<'static, Db>,
    new: &NewComputer,
    clock: Timestamp,
) -> Result<(ComputerRecord, WorkflowRecord), StoreError> {
    let slug = free_slug(tx, &new.slug).await?;
    let (workspace, project) = lasting_place(tx, new.tenant_id, new.workspace_id, new.project_id).await?;
    admit_new(tx, new, workspace, clock).await?;
    let now = Timestamp::now().as_micros();
    sqlx::query(
        "INSERT INTO computers (id, tenant_id, owner_user_id, workspace_id, project_id, name, slug,
             template_type, template_digest, size, external_workspace_id, external_user_id,
             external_project_id, selected_apps, metadata, visibility, auto_stop, desired, generation,
             provisioned, observed, failure_console, created_at, updated_at, always_on, disk_gib, snapshot_id,
             layer_id, last_snapshot_id, region, search_text, timeout_sec, resolution)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $23, 'running', 1,
             0, 'absent', '[]', $17, $17, $18, $19, $20, $21, $22, $24, $25, $26, $27)",
    )
    .bind(new.id.to_string())
    .bind(new.tenant_id.to_string())
    .bind(new.owner_user_id.to_string())
    .bind(workspace.to_string())
    .bind(project.to_string())
    .bind(&new.name)
    .bind(&slug)
    .bind(&new.template_type)
    .bind(&new.template_digest)
    .bind(new.size.as_str())
    .bind(&new.external_workspace_id)
    .bind(&new.external_user_id)
    .bind(&new.external_project_id)
    .bind(json(&new.selected_apps)?)
    .bind(json(&new.metadata)?)
    .bind(new.visibility.as_str())
    .bind(now)
    .bind(i64::from(new.always_on))
    .bind(i64::from(new.disk_gib))
    .bind(new.snapshot.map(|id| id.to_string()))
    .bind(new.layer.map(|id| id.to_string()))
    .bind(new.last_snapshot.map(|id| id.to_string()))
    .bind(i64::from(new.auto_stop))
    .bind(new.region.as_str())
    .bind(format!("{}\n{slug}\n{}", new.name.to_lowercase(), new.id))
    .bind(i64::from(new.timeout))
    .bind(new.screen.to_string())
    .execute(&mut **tx)
    .await?;
    insert_variables(tx, new.id, &new.env).await?;
    if let Some(script) = &new.setup {
        insert_setup(tx, new.id, script).await?;
    }
    // Of a clone or a restored computer the guest has them already, or goes on with them: it says so when asked.
    insert_installations(tx, new.id, &new.selected_apps).await?;
    let workflow = insert_workflow(tx, new.id, WorkflowKind::Create, 1, None).await?;
    let record = load(tx, new.id).await?.ok_or(sqlx::Error::RowNotFound)?;
    record_status(tx, clock, None, Some(&record)).await?;
    Ok((record, workflow))
}

/// Writes down what the status of a row is by now.
pub(crate) async fn write_status(
    tx: &mut Transaction<'static, Db>,
    computer: &ComputerRecord,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE computers SET status = $1 WHERE id = $2")
        .bind(status(computer).as_str())
        .bind(computer.id.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(crate) async fn load(
    tx: &mut Transaction<'static, Db>,
    id: ComputerId,
) -> Result<Option<ComputerRecord>, StoreError> {
    let mut query = QueryBuilder::new(SELECT);
    query.push(" WHERE c.id = ").push_bind(id.to_string());
    let row = query.build().fetch_optional(&mut **tx).await?;
    row.as_ref().map(ComputerRecord::from_row).transpose()
}

async fn free_slug(tx: &mut Transaction<'static, Db>, wanted: &str) -> Result<String, StoreError> {
    let rows = sqlx::query("SELECT slug FROM computers WHERE slug = $1 OR slug LIKE $2")
        .bind(wanted)
        .bind(format!("{wanted}-%"))
        .fetch_all(&mut **tx)
        .await?;
    let mut taken = std::collections::HashSet::new();
    for row in &rows {
        taken.insert(row.try_get::<String, _>("slug")?);
    }
    if !taken.contains(wanted) {
        return Ok(wanted.to_owned());
    }
    let free = (2u32..).map(|n| format!("{wanted}-{n}")).find(|slug| !taken.contains(slug));
    free.ok_or_else(|| StoreError::Corrupt { what: format!("no free slug for {wanted:?}") })
}

pub(crate) fn json<T: serde::Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt { what: error.to_string() })
}

pub(crate) fn signed(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Corrupt { what: format!("number {value}") })
}

pub(crate) fn escape_like(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}
