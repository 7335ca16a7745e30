//! Snapshots: taking them, making computers from them, naming, expiring and deleting them.

use roost_api::{ComputerId, Event, LayerId, SnapshotId, TenantId, Timestamp, WorkspaceId};
use sqlx::{Row, Transaction};

use crate::computers::{escape_like, insert, json, load, signed};
use crate::events::{EventScope, insert_event};
use crate::layers::put_under;
use crate::query::QueryBuilder;
use crate::reach::{Of, Reach};
use crate::record::{
    ComputerRecord, SnapshotAttributes, SnapshotPurpose, SnapshotRecord, SnapshotStatus, WorkflowKind,
    WorkflowPayload, WorkflowRecord, number, optional_time, parsed,
};
use crate::workflows::{Begin, insert_workflow};
use crate::{Db, NewComputer, Store, StoreError};

/// Every column, and whether a computer is being made from it.
const SELECT: &str = "SELECT s.*, CASE WHEN EXISTS (
         SELECT 1 FROM computers c JOIN workflows w ON w.computer_id = c.id
         WHERE c.snapshot_id = s.id AND w.finished_at IS NULL
     ) THEN 1 ELSE 0 END AS restoring FROM snapshots s";

/// What is asked for of a new snapshot; the rest is the computer's.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    pub id: SnapshotId,
    pub layer: LayerId,
    pub purpose: SnapshotPurpose,
    pub comment: Option<String>,
    pub keep: bool,
    pub expires_at: Option<Timestamp>,
    pub retention_seconds: Option<u64>,
}

/// A snapshot to take and, for a clone, the computer that continues from it.
#[derive(Debug, Clone)]
pub struct NewCapture {
    pub snapshot: NewSnapshot,
    pub clone: Option<NewComputer>,
}

#[derive(Debug)]
pub struct BegunCapture {
    pub snapshot: SnapshotRecord,
    pub workflow: WorkflowRecord,
    pub clone: Option<(ComputerRecord, WorkflowRecord)>,
}

/// What a capture came to.
#[derive(Debug, Clone, Copy)]
pub struct Recorded {
    pub disk_bytes: u64,
    pub memory_bytes: Option<u64>,
    pub pause_us: Option<u64>,
}

/// How [`Store::insert_from_snapshot`] went.
#[derive(Debug)]
pub enum FromSnapshot {
    Inserted(Box<(ComputerRecord, WorkflowRecord, SnapshotRecord)>),
    Missing,
    NotReady(SnapshotStatus),
}

/// How [`Store::name_snapshot`] went.
#[derive(Debug)]
pub enum Naming {
    Named(Box<SnapshotRecord>),
    Missing,
    NotReady(SnapshotStatus),
    /// It has this name already.
    AlreadyNamed(String),
    /// Another snapshot of the tenant has it.
    Taken,
}

/// How [`Store::delete_snapshot`] went.
#[derive(Debug)]
pub enum Deletion {
    Deleted(Box<SnapshotRecord>),
    Missing,
    InUse(Vec<Dependent>),
}

/// Why a snapshot cannot be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependent {
    pub kind: DependentKind,
    /// Of the computer, or of the snapshot itself.
    pub id: String,
    pub name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DependentKind {
    /// It has a name, which is to be released first.
    NamedSnapshot,
    /// A computer is being made from it, or failed to start from it and may try again.
    RestoreInProgress,
    /// It is still being taken.
    SnapshotInProgress,
}

impl DependentKind {
    pub fn as_str(self) -> &'static str {
        match self {
            DependentKind::NamedSnapshot => "named_snapshot",
            DependentKind::RestoreInProgress => "restore_in_progress",
            DependentKind::SnapshotInProgress => "snapshot_in_progress",
        }
    }
}

/// Filters of a list; they combine with AND. Hidden and deleted snapshots are in none.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    pub computer: Option<ComputerId>,
    pub workspace: Option<WorkspaceId>,
    /// Part of a comment, a name, the computer's name or an id.
    pub search: Option<String>,
    pub status: Option<SnapshotStatus>,
    pub named: bool,
    /// How many at most, from which one on.
    pub page: Option<(u32, u32)>,
}

/// The snapshots of one computer, summed up.
#[derive(Debug, Clone)]
pub struct SnapshotGroup {
    pub computer: ComputerId,
    pub computer_name: String,
    pub workspace: WorkspaceId,
    pub count: u64,
    pub stored_bytes: u64,
    pub latest_at: Option<Timestamp>,
}

impl Store {
    /// Begins to take a snapshot of a computer if `plan` allows it on the row as it is now. The snapshot, its
    /// workflow and, for a clone, the new computer with its workflow are one transaction.
    pub async fn begin_capture<E>(
        &self,
        computer: ComputerId,
        plan: impl FnOnce(&ComputerRecord) -> Result<NewCapture, E>,
    ) -> Result<Begin<E, Box<BegunCapture>>, StoreError> {
        let mut tx = self.write().await?;
        let Some(record) = load(&mut tx, computer).await? else {
            return Ok(Begin::Missing);
        };
        let new = match plan(&record) {
            Ok(new) => new,
            Err(refusal) => return Ok(Begin::Refused(refusal)),
        };
        let snapshot = insert_snapshot(&mut tx, &record, &new.snapshot).await?;
        let payload = WorkflowPayload::Capture { snapshot: new.snapshot.id, layer: new.snapshot.layer };
        let kind = WorkflowKind::Capture;
        let workflow = insert_workflow(&mut tx, computer, kind, record.generation, Some(payload)).await?;
        let clone = match &new.clone {
            Some(clone) => Some(insert(&mut tx, clone, self.clock.now()).await?),
            None => None,
        };
        tx.commit().await?;
        Ok(Begin::Begun(Box::new(BegunCapture { snapshot, workflow, clone })))
    }

    /// Makes a computer from a snapshot that is ready, as `build` says, and begins its `create` workflow.
    pub async fn insert_from_snapshot(
        &self,
        id: SnapshotId,
        build: impl FnOnce(&SnapshotRecord) -> NewComputer,
    ) -> Result<FromSnapshot, StoreError> {
        let mut tx = self.write().await?;
        let Some(snapshot) = load_snapshot(&mut tx, id).await? else {
            return Ok(FromSnapshot::Missing);
        };
        match snapshot.status {
            SnapshotStatus::Ready => {}
            SnapshotStatus::Deleted => return Ok(FromSnapshot::Missing),
            other @ (SnapshotStatus::Creating | SnapshotStatus::Failed) => {
                return Ok(FromSnapshot::NotReady(other));
            }
        }
        let (record, workflow) = insert(&mut tx, &build(&snapshot), self.clock.now()).await?;
        sqlx::query("UPDATE snapshots SET last_used_at = $1 WHERE id = $2")
            .bind(Timestamp::now().as_micros())
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        let snapshot = load_snapshot(&mut tx, id).await?.ok_or(sqlx::Error::RowNotFound)?;
        tx.commit().await?;
        Ok(FromSnapshot::Inserted(Box::new((record, workflow, snapshot))))
    }

    /// Any snapshot, also a hidden or deleted one.
    pub async fn snapshot(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>, StoreError> {
        let mut query = QueryBuilder::new(SELECT);
        query.push(" WHERE s.id = ").push_bind(id.to_string());
        let row = query.build().fetch_optional(&self.pool).await?;
        row.as_ref().map(SnapshotRecord::from_row).transpose()
    }

    pub async fn snapshot_by_name(
        &self,
        tenant: TenantId,
        name: &str,
    ) -> Result<Option<SnapshotRecord>, StoreError> {
        let mut query = QueryBuilder::new(SELECT);
        query.push(" WHERE s.tenant_id = ").push_bind(tenant.to_string());
        query.push(" AND s.name = ").push_bind(name);
        let row = query.build().fetch_optional(&self.pool).await?;
        row.as_ref().map(SnapshotRecord::from_row).transpose()
    }

    /// The snapshots within reach that match, newest first; without a reach, of everybody.
    pub async fn snapshots(
        &self,
        reach: Option<&Reach>,
        filter: &SnapshotFilter,
    ) -> Result<Vec<SnapshotRecord>, StoreError> {
        let mut query = QueryBuilder::new(SELECT);
        push_filter(&mut query, reach, filter);
        query.push(" ORDER BY s.created_at DESC, s.id DESC");
        push_page(&mut query, filter);
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(SnapshotRecord::from_row).collect()
    }

    /// The same, summed up per computer.
    pub async fn snapshot_groups(
        &self,
        reach: &Reach,
        filter: &SnapshotFilter,
    ) -> Result<Vec<SnapshotGroup>, StoreError> {
        let mut query = QueryBuilder::new(
            "SELECT s.computer_id, MAX(s.computer_name) AS computer_name, MAX(s.workspace_id) AS workspace_id,
                 COUNT(*) AS snapshot_count,
                 CAST(SUM(s.disk_bytes + COALESCE(s.memory_bytes, 0)) AS BIGINT) AS stored_bytes,
                 MAX(s.created_at) AS latest_at
             FROM snapshots s",
        );
        push_filter(&mut query, Some(reach), filter);
        query.push(" GROUP BY s.computer_id ORDER BY MAX(s.created_at) DESC");
        push_page(&mut query, filter);
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(SnapshotGroup {
                    computer: parsed(row, "computer_id")?,
                    computer_name: row.try_get("computer_name")?,
                    workspace: parsed(row, "workspace_id")?,
                    count: number(row, "snapshot_count")?,
                    stored_bytes: number(row, "stored_bytes")?,
                    latest_at: optional_time(row, "latest_at")?,
                })
            })
            .collect()
    }

    /// How far the taking is.
    pub async fn snapshot_progress(
        &self,
        id: SnapshotId,
        step: &str,
        progress: u8,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE snapshots SET step = $1, progress = $2, updated_at = $3
             WHERE id = $4 AND status = 'creating'",
        )
        .bind(step)
        .bind(i64::from(progress))
        .bind(Timestamp::now().as_micros())
        .bind(id.to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The snapshot is ready and the computer's disk lies on `layer`; computers that wait for it lie there too.
    pub async fn record_capture(
        &self,
        computer: ComputerId,
        id: SnapshotId,
        layer: LayerId,
        recorded: &Recorded,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        put_under(&mut tx, computer, layer, recorded.disk_bytes).await?;
        let now = Timestamp::now().as_micros();
        let ready = sqlx::query(
            "UPDATE snapshots SET status = 'ready', step = NULL, progress = 100, layer_id = $1,
                 disk_bytes = $2, memory_bytes = $3, pause_us = $4, updated_at = $5
             WHERE id = $6 AND status = 'creating'",
        )
        .bind(layer.to_string())
        .bind(signed(recorded.disk_bytes)?)
        .bind(recorded.memory_bytes.map(signed).transpose()?)
        .bind(recorded.pause_us.map(signed).transpose()?)
        .bind(now)
        .bind(id.to_string())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE computers SET last_snapshot_id = $1 WHERE id = $2
                 AND EXISTS (SELECT 1 FROM snapshots WHERE id = $1 AND purpose = 'snapshot')",
        )
        .bind(id.to_string())
        .bind(computer.to_string())
        .execute(&mut *tx)
        .await?;
        sqlx::query("UPDATE computers SET layer_id = $1 WHERE snapshot_id = $2 AND layer_id IS NULL")
            .bind(layer.to_string())
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        let snapshot = load_snapshot(&mut tx, id).await?;
        let is_visible = snapshot.is_some_and(|snapshot| snapshot.purpose == SnapshotPurpose::Snapshot);
        if ready.rows_affected() > 0
            && is_visible
            && let Some(record) = load(&mut tx, computer).await?
        {
            let event = Event::CheckpointCreated { snapshot_id: id };
            insert_event(&mut tx, &EventScope::of(&record), &event).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The snapshot could not be taken. With `layer`, the computer's disk lies on a new layer all the same.
    /// A snapshot that is ready stays so.
    pub async fn fail_capture(
        &self,
        computer: ComputerId,
        id: SnapshotId,
        layer: Option<(LayerId, u64)>,
        reason: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        if let Some((layer, disk_bytes)) = layer {
            put_under(&mut tx, computer, layer, disk_bytes).await?;
        }
        sqlx::query(
            "UPDATE snapshots SET status = 'failed', step = NULL, error = $1, updated_at = $2
             WHERE id = $3 AND status = 'creating'",
        )
        .bind(reason)
        .bind(Timestamp::now().as_micros())
        .bind(id.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    pub async fn name_snapshot(
        &self,
        tenant: TenantId,
        id: SnapshotId,
        name: &str,
    ) -> Result<Naming, StoreError> {
        let mut tx = self.write().await?;
        let found = load_snapshot(&mut tx, id).await?.filter(|found| {
            found.tenant_id == tenant
                && found.purpose == SnapshotPurpose::Snapshot
                && found.status != SnapshotStatus::Deleted
        });
        let Some(found) = found else { return Ok(Naming::Missing) };
        if found.status != SnapshotStatus::Ready {
            return Ok(Naming::NotReady(found.status));
        }
        if let Some(name) = found.name {
            return Ok(Naming::AlreadyNamed(name));
        }
        let taken = sqlx::query("SELECT 1 FROM snapshots WHERE tenant_id = $1 AND name = $2")
            .bind(tenant.to_string())
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        if taken.is_some() {
            return Ok(Naming::Taken);
        }
        set_name(&mut tx, id, Some(name)).await?;
        let record = load_snapshot(&mut tx, id).await?.ok_or(sqlx::Error::RowNotFound)?;
        tx.commit().await?;
        Ok(Naming::Named(Box::new(record)))
    }

    /// Takes the name away; the snapshot stays.
    pub async fn release_name(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>, StoreError> {
        let mut tx = self.write().await?;
        set_name(&mut tx, id, None).await?;
        let record = load_snapshot(&mut tx, id).await?;
        tx.commit().await?;
        Ok(record)
    }

    /// Marks a snapshot as deleted if nobody needs it. Its files and its row go afterwards.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<Deletion, StoreError> {
        let mut tx = self.write().await?;
        let Some(record) = load_snapshot(&mut tx, id).await? else { return Ok(Deletion::Missing) };
        if record.status == SnapshotStatus::Deleted {
            return Ok(Deletion::Missing);
        }
        let dependents = dependents(&mut tx, &record).await?;
        if !dependents.is_empty() {
            return Ok(Deletion::InUse(dependents));
        }
        sqlx::query("UPDATE snapshots SET status = 'deleted', updated_at = $1 WHERE id = $2")
            .bind(Timestamp::now().as_micros())
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        let record = load_snapshot(&mut tx, id).await?.ok_or(sqlx::Error::RowNotFound)?;
        tx.commit().await?;
        Ok(Deletion::Deleted(Box::new(record)))
    }

    pub async fn snapshot_dependents(&self, record: &SnapshotRecord) -> Result<Vec<Dependent>, StoreError> {
        let mut tx = self.pool.begin().await?;
        dependents(&mut tx, record).await
    }

    /// Snapshots whose time is over and that nobody needs now.
    pub async fn expired_snapshots(&self, now: Timestamp) -> Result<Vec<SnapshotId>, StoreError> {
        let mut query = QueryBuilder::new("SELECT s.id FROM snapshots s WHERE ");
        query.push(EXPIRES).push(" AND s.expires_at <= ").push_bind(now.as_micros());
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(|row| parsed(row, "id")).collect()
    }

    /// When the next one expires.
    pub async fn next_expiry(&self) -> Result<Option<Timestamp>, StoreError> {
        let mut query = QueryBuilder::new("SELECT MIN(s.expires_at) AS at FROM snapshots s WHERE ");
        query.push(EXPIRES);
        optional_time(&query.build().fetch_one(&self.pool).await?, "at")
    }
}

/// Whether a snapshot goes by itself when its time is over.
const EXPIRES: &str = "s.expires_at IS NOT NULL AND s.keep = 0 AND s.name IS NULL
     AND s.status IN ('ready', 'failed')
     AND NOT EXISTS (SELECT 1 FROM computers c WHERE c.snapshot_id = s.id)";

fn push_filter(query: &mut QueryBuilder, reach: Option<&Reach>, filter: &SnapshotFilter) {
    query.push(" WHERE s.purpose = 'snapshot' AND s.status <> 'deleted'");
    if let Some(reach) = reach {
        reach.push(query, Of::Snapshots);
    }
    let equal = [
        (" AND s.computer_id = ", filter.computer.map(|id| id.to_string())),
        (" AND s.workspace_id = ", filter.workspace.map(|id| id.to_string())),
        (" AND s.status = ", filter.status.map(|status| status.as_str().to_owned())),
    ];
    for (condition, value) in equal {
        if let Some(value) = value {
            query.push(condition).push_bind(value);
        }
    }
    if filter.named {
        query.push(" AND s.name IS NOT NULL");
    }
    if let Some(text) = &filter.search {
        let pattern = format!("%{}%", escape_like(text));
        let columns =
            [" AND (LOWER(s.comment)", " OR LOWER(s.name)", " OR LOWER(s.computer_name)", " OR LOWER(s.id)"];
        for column in columns {
            query.push(column).push(" LIKE LOWER(").push_bind(pattern.clone()).push(") ESCAPE '\\'");
        }
        query.push(")");
    }
}

fn push_page(query: &mut QueryBuilder, filter: &SnapshotFilter) {
    if let Some((limit, offset)) = filter.page {
        query.push(" LIMIT ").push_bind(i64::from(limit));
        query.push(" OFFSET ").push_bind(i64::from(offset));
    }
}

async fn insert_snapshot(
    tx: &mut Transaction<'static, Db>,
    computer: &ComputerRecord,
    new: &NewSnapshot,
) -> Result<SnapshotRecord, StoreError> {
    let attributes = SnapshotAttributes {
        owner_user_id: computer.owner_user_id,
        external_workspace_id: computer.external_workspace_id.clone(),
        external_user_id: computer.external_user_id.clone(),
        external_project_id: computer.external_project_id.clone(),
        selected_apps: computer.selected_apps.clone(),
        metadata: computer.metadata.clone(),
        visibility: computer.visibility,
        auto_stop: computer.auto_stop,
        timeout: computer.timeout,
        screen: computer.screen,
    };
    sqlx::query(
        "INSERT INTO snapshots (id, tenant_id, computer_id, computer_name, workspace_id, project_id,
             attributes, purpose, comment, status, step, progress, template_type, template_digest, size,
             disk_gib, disk_bytes, keep, expires_at, retention_seconds, parent_snapshot_id, created_at,
             updated_at, owner_user_id, external_user_id, region)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'creating', 'waiting', 0, $10, $11, $12, $13, 0, $14, $15,
             $16, $17, $18, $18, $19, $20, $21)",
    )
    .bind(new.id.to_string())
    .bind(computer.tenant_id.to_string())
    .bind(computer.id.to_string())
    .bind(&computer.name)
    .bind(computer.workspace_id.to_string())
    .bind(computer.project_id.to_string())
    .bind(json(&attributes)?)
    .bind(new.purpose.as_str())
    .bind(&new.comment)
    .bind(&computer.template_type)
    .bind(&computer.template_digest)
    .bind(computer.size.as_str())
    .bind(i64::from(computer.disk_gib))
    .bind(i64::from(new.keep))
    .bind(new.expires_at.map(Timestamp::as_micros))
    .bind(new.retention_seconds.map(signed).transpose()?)
    .bind(computer.last_snapshot.map(|id| id.to_string()))
    .bind(Timestamp::now().as_micros())
    .bind(computer.owner_user_id.to_string())
    .bind(&computer.external_user_id)
    .bind(computer.region.as_str())
    .execute(&mut **tx)
    .await?;
    Ok(load_snapshot(tx, new.id).await?.ok_or(sqlx::Error::RowNotFound)?)
}

async fn load_snapshot(
    tx: &mut Transaction<'static, Db>,
    id: SnapshotId,
) -> Result<Option<SnapshotRecord>, StoreError> {
    let mut query = QueryBuilder::new(SELECT);
    query.push(" WHERE s.id = ").push_bind(id.to_string());
    let row = query.build().fetch_optional(&mut **tx).await?;
    row.as_ref().map(SnapshotRecord::from_row).transpose()
}

async fn set_name(
    tx: &mut Transaction<'static, Db>,
    id: SnapshotId,
    name: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE snapshots SET name = $1, updated_at = $2 WHERE id = $3")
        .bind(name)
        .bind(Timestamp::now().as_micros())
        .bind(id.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn dependents(
    tx: &mut Transaction<'static, Db>,
    record: &SnapshotRecord,
) -> Result<Vec<Dependent>, StoreError> {
    let mut found = Vec::new();
    if record.status == SnapshotStatus::Creating {
        let (kind, id) = (DependentKind::SnapshotInProgress, record.id.to_string());
        found.push(Dependent { kind, id, name: None });
    }
    if let Some(name) = &record.name {
        let (kind, id) = (DependentKind::NamedSnapshot, record.id.to_string());
        found.push(Dependent { kind, id, name: Some(name.clone()) });
    }
    let rows = sqlx::query("SELECT id, name FROM computers WHERE snapshot_id = $1 ORDER BY created_at")
        .bind(record.id.to_string())
        .fetch_all(&mut **tx)
        .await?;
    for row in &rows {
        let (kind, id) = (DependentKind::RestoreInProgress, row.try_get("id")?);
        found.push(Dependent { kind, id, name: Some(row.try_get("name")?) });
    }
    Ok(found)
}
