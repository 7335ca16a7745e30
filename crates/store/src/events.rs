//! Events: what happened, written in the transaction that made it so, and read back in order.
//!
//! Ids come from one row whose lock is held until the writing transaction ends. They become visible in their
//! order, without holes, on every database: whoever has read up to an id has missed nothing before it.

use roost_api::{
    ComputerId, Event, EventId, EventStatus, Status, TenantId, Timestamp, Transition, UserId, WorkspaceId,
};
use serde_json::{Map, Value};
use sqlx::{Row, Transaction};

use crate::computers::{json, write_status};
use crate::query::QueryBuilder;
use crate::record::{self, ComputerRecord, optional, parsed};
use crate::runs::record_run;
use crate::status::status;
use crate::{Db, DbRow, Store, StoreError};

/// Whom an event concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventScope {
    pub tenant: TenantId,
    pub workspace: Option<WorkspaceId>,
    pub computer: Option<ComputerId>,
    /// The caller's own id of an end user.
    pub external_user: Option<String>,
    /// Who made the computer.
    pub owner: Option<UserId>,
}

impl EventScope {
    /// The tenant as a whole: for its administrators.
    pub fn tenant(tenant: TenantId) -> Self {
        Self { tenant, workspace: None, computer: None, external_user: None, owner: None }
    }

    pub fn of(computer: &ComputerRecord) -> Self {
        Self {
            tenant: computer.tenant_id,
            workspace: Some(computer.workspace_id),
            computer: Some(computer.id),
            external_user: computer.external_user_id.clone(),
            owner: Some(computer.owner_user_id),
        }
    }
}

#[derive(Debug, Clone)]
pub struct EventRecord {
    pub id: EventId,
    pub scope: EventScope,
    pub kind: String,
    pub data: Map<String, Value>,
    pub created_at: Timestamp,
}

/// Whose events to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsOf {
    Everybody,
    Tenant(TenantId),
    Computer(ComputerId),
}

/// What the log holds: events after `removed`, up to and including `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventBounds {
    pub removed: EventId,
    pub last: EventId,
}

/// Events in order, and what the log held after they were read.
#[derive(Debug, Clone)]
pub struct EventBatch {
    pub events: Vec<EventRecord>,
    /// There may be more.
    pub is_full: bool,
    pub bounds: EventBounds,
}

impl Store {
    /// Writes an event that no other change belongs to.
    pub async fn insert_event(&self, scope: &EventScope, event: &Event) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        insert_event(&mut tx, scope, event).await?;
        tx.commit().await?;
        Ok(())
    }

    pub async fn event_bounds(&self) -> Result<EventBounds, StoreError> {
        let row = sqlx::query(BOUNDS).fetch_one(&self.pool).await?;
        bounds(&row)
    }

    /// The first `limit` events after one. Where the log's `removed` is behind `after`, some are missing.
    pub async fn events_after(
        &self,
        after: EventId,
        of: EventsOf,
        limit: u16,
    ) -> Result<EventBatch, StoreError> {
        let mut query = QueryBuilder::new("SELECT * FROM events WHERE id > ");
        query.push_bind(after.0);
        match of {
            EventsOf::Everybody => {}
            EventsOf::Tenant(tenant) => {
                query.push(" AND tenant_id = ").push_bind(tenant.to_string());
            }
            EventsOf::Computer(computer) => {
                query.push(" AND computer_id = ").push_bind(computer.to_string());
            }
        }
        query.push(" ORDER BY id LIMIT ").push_bind(i64::from(limit));
        let rows = query.build().fetch_all(&self.pool).await?;
        let events = rows.iter().map(EventRecord::from_row).collect::<Result<Vec<_>, _>>()?;
        let is_full = events.len() == usize::from(limit);
        // After the rows: what was removed before they were read is known now.
        Ok(EventBatch { events, is_full, bounds: self.event_bounds().await? })
    }

    /// Removes events older than `oldest`, and the oldest beyond `most`.
    pub async fn remove_events(&self, oldest: Timestamp, most: u64) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let row = sqlx::query(
            "SELECT l.last_id, l.removed_id,
                 (SELECT MAX(id) FROM events WHERE created_at < $1) AS aged FROM event_log l WHERE l.id = 1",
        )
        .bind(oldest.as_micros())
        .fetch_one(&mut *tx)
        .await?;
        let EventBounds { removed, last } = bounds(&row)?;
        let aged = row.try_get::<Option<i64>, _>("aged")?.unwrap_or(0);
        let beyond = last.0.saturating_sub(i64::try_from(most).unwrap_or(i64::MAX));
        let until = aged.max(beyond);
        if until > removed.0 {
            sqlx::query("DELETE FROM events WHERE id <= $1").bind(until).execute(&mut *tx).await?;
            sqlx::query("UPDATE event_log SET removed_id = $1 WHERE id = 1")
                .bind(until)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

const BOUNDS: &str = "SELECT last_id, removed_id FROM event_log WHERE id = 1";

fn bounds(row: &DbRow) -> Result<EventBounds, StoreError> {
    Ok(EventBounds { removed: EventId(row.try_get("removed_id")?), last: EventId(row.try_get("last_id")?) })
}

/// Writes an event in the transaction that makes it true.
pub(crate) async fn insert_event(
    tx: &mut Transaction<'static, Db>,
    scope: &EventScope,
    event: &Event,
) -> Result<(), StoreError> {
    let row = sqlx::query("UPDATE event_log SET last_id = last_id + 1 WHERE id = 1 RETURNING last_id")
        .fetch_one(&mut **tx)
        .await?;
    sqlx::query(
        "INSERT INTO events (id, tenant_id, workspace_id, computer_id, external_user, type, data, created_at,
             owner_user_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(row.try_get::<i64, _>("last_id")?)
    .bind(scope.tenant.to_string())
    .bind(scope.workspace.map(|id| id.to_string()))
    .bind(scope.computer.map(|id| id.to_string()))
    .bind(&scope.external_user)
    .bind(event.kind())
    .bind(json(event)?)
    .bind(Timestamp::now().as_micros())
    .bind(scope.owner.map(|id| id.to_string()))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Writes what became of a computer's status between two looks at its row in one transaction: the status itself, events,
/// and the begin or end of a run at `now`.
pub(crate) async fn record_status(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
    before: Option<&ComputerRecord>,
    after: Option<&ComputerRecord>,
) -> Result<(), StoreError> {
    if let Some(after) = after
        && before.map(status) != Some(status(after))
    {
        write_status(tx, after).await?;
    }
    record_run(tx, now, before, after).await?;
    let Some(computer) = after.or(before) else { return Ok(()) };
    let scope = EventScope::of(computer);
    for event in status_events(before, after) {
        insert_event(tx, &scope, &event).await?;
    }
    Ok(())
}

fn status_events(before: Option<&ComputerRecord>, after: Option<&ComputerRecord>) -> Vec<Event> {
    let previous_status = before.map(status);
    let Some(after) = after else {
        let gone = Transition { status: EventStatus::Destroyed, previous_status };
        return vec![Event::StatusChanged(gone), Event::ComputerDeleted(gone)];
    };
    let now = status(after);
    if previous_status == Some(now) {
        return Vec::new();
    }
    let transition = Transition { status: EventStatus::Is(now), previous_status };
    let mut events = Vec::new();
    if before.is_none() {
        events.push(Event::ComputerCreated { name: after.name.clone(), size: after.size });
    }
    events.push(Event::StatusChanged(transition));
    match now {
        Status::Running => {
            events.extend([Event::Started(transition), Event::ComputerRunning(transition)]);
        }
        Status::Stopped => {
            events.extend([Event::Stopped(transition), Event::ComputerStopped(transition)]);
        }
        Status::Error => events.push(Event::Error { transition, message: after.failure.clone() }),
        Status::Provisioning | Status::Starting | Status::Stopping | Status::Destroying => {}
    }
    events
}

impl EventRecord {
    pub(crate) fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: EventId(row.try_get("id")?),
            scope: EventScope {
                tenant: parsed(row, "tenant_id")?,
                workspace: optional(row, "workspace_id")?,
                computer: optional(row, "computer_id")?,
                external_user: row.try_get("external_user")?,
                owner: optional(row, "owner_user_id")?,
            },
            kind: row.try_get("type")?,
            data: record::json(row, "data")?,
            created_at: record::time(row, "created_at")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDatabase;

    fn scope() -> EventScope {
        EventScope {
            tenant: TenantId::new(),
            workspace: None,
            computer: None,
            external_user: None,
            owner: None,
        }
    }

    async fn store() -> (TestDatabase, Store) {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        (database, store)
    }

    fn event() -> Event {
        Event::CheckpointCreated { snapshot_id: roost_api::SnapshotId::new() }
    }

    fn ids(batch: &EventBatch) -> Vec<i64> {
        batch.events.iter().map(|event| event.id.0).collect()
    }

    #[tokio::test]
    async fn events_are_removed_by_age_and_by_count_and_ids_never_come_again() {
        let (_database, store) = store().await;
        let scope = scope();
        for _ in 0..5 {
            store.insert_event(&scope, &event()).await.unwrap();
        }
        let long_ago = Timestamp::from_micros(0).unwrap();
        store.remove_events(long_ago, 100).await.unwrap();
        assert_eq!(store.event_bounds().await.unwrap().removed, EventId(0));
        store.remove_events(long_ago, 2).await.unwrap();
        let batch = store.events_after(EventId(0), EventsOf::Tenant(scope.tenant), 10).await.unwrap();
        assert_eq!((ids(&batch), batch.is_full), (vec![4, 5], false));
        assert_eq!(batch.bounds, EventBounds { removed: EventId(3), last: EventId(5) });

        let soon = Timestamp::from_micros(Timestamp::now().as_micros() + 1).unwrap();
        store.remove_events(soon, 100).await.unwrap();
        store.insert_event(&scope, &event()).await.unwrap();
        let batch = store.events_after(EventId(0), EventsOf::Everybody, 1).await.unwrap();
        assert_eq!((ids(&batch), batch.is_full), (vec![6], true));
        assert_eq!(batch.bounds, EventBounds { removed: EventId(5), last: EventId(6) });
    }

    #[tokio::test]
    async fn parallel_writers_leave_no_holes_and_a_change_that_was_dropped_leaves_nothing() {
        let (_database, store) = store().await;
        let mut tx = store.write().await.unwrap();
        insert_event(&mut tx, &scope(), &event()).await.unwrap();
        drop(tx);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let store = store.clone();
            tasks.spawn(async move { store.insert_event(&scope(), &event()).await.unwrap() });
        }
        tasks.join_all().await;
        let batch = store.events_after(EventId(0), EventsOf::Everybody, 100).await.unwrap();
        assert_eq!(ids(&batch), (1..=20).collect::<Vec<i64>>());
    }
}
