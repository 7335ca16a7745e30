//! Several servers on one PostgreSQL database: who is there, who runs which workflow, what the others changed.
//!
//! A server has a row with a lease that it renews. What it runs carries its id; another may claim that when the
//! row is gone or the lease is over, in one conditional `UPDATE`, so exactly one does. A server that was only slow
//! notices when it writes: nobody writes to a workflow that is another's. Clocks must agree to within a fraction of
//! the lease.
//!
//! SQLite has one server at a time (it locks the data directory), so its lease never ends, every other row is that
//! of a server which is gone, and nothing has to be told to anybody.

use std::time::Duration;

use roost_api::{ComputerId, ServerId, SnapshotId, Timestamp, WorkflowId};
use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgListener};

use crate::pool::Engine;
use crate::record::{WorkflowRecord, parsed};
use crate::{Store, StoreError};

/// A workflow `w` that no server is at work on: its owner has left or its lease is over at `$1`.
const ABANDONED: &str = "w.finished_at IS NULL AND w.owner IS NOT NULL
     AND NOT EXISTS (SELECT 1 FROM servers s WHERE s.id = w.owner AND s.lease_until > $1)";

/// What no two servers do at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusive {
    /// Finding out what there is, at the start.
    Start,
    /// Freeing and merging what is kept beside the machines.
    Storage,
    /// Making templates that continue.
    Templates,
}

/// Held until it is dropped, or its holder ends in any way.
#[derive(Debug)]
pub struct Held {
    /// The lock belongs to the connection.
    _connection: Option<PgConnection>,
}

/// What a server did to what others may be waiting for. Its own changes are told to it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Computer(ComputerId),
    /// The row was removed.
    Gone(ComputerId),
    /// The workflow at work on it is to be given up.
    Cancelled(ComputerId),
    Snapshot(SnapshotId),
    Event,
    /// Keys, users or memberships.
    Callers,
    /// A server has left.
    Servers,
    /// Some may have been missed.
    Anything,
}

/// The changes of all servers, from the moment it was made.
#[derive(Debug)]
pub struct Changes {
    listener: PgListener,
}

/// What [`Store::renew`] found.
#[derive(Debug)]
pub struct Renewed {
    /// The lease had ended, or others had given this server up: what it ran may be theirs.
    pub had_lapsed: bool,
    /// The workflows of servers that are gone, which are this one's now.
    pub taken_over: Vec<WorkflowRecord>,
    /// Whether a server was given up.
    pub lost_one: bool,
}

impl Store {
    /// Whether other servers may use the database at the same time.
    pub fn is_shared(&self) -> bool {
        match self.pool.engine() {
            Engine::Sqlite => false,
            Engine::Postgres => true,
        }
    }

    /// The name of this server among the others.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// Takes part from now on.
    pub async fn join(&self, lease: Duration) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let now = Timestamp::now().as_micros();
        if !self.is_shared() {
            sqlx::query("DELETE FROM servers").execute(&mut *tx).await?;
        }
        sqlx::query(
            "INSERT INTO servers (id, lease_until, started_at) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET lease_until = $2",
        )
        .bind(self.server.to_string())
        .bind(self.lease_until(now, lease))
        .bind(now)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    fn lease_until(&self, now: i64, lease: Duration) -> i64 {
        match self.pool.engine() {
            Engine::Sqlite => i64::MAX,
            Engine::Postgres => now.saturating_add(micros(lease)),
        }
    }

    /// Prolongs the lease. With `judge`, also takes over what servers run whose lease is over, and what somebody
    /// has begun a lease ago and never run. A server whose own lease has ended is in no position to judge.
    pub async fn renew(&self, lease: Duration, judge: bool) -> Result<Renewed, StoreError> {
        let mut tx = self.write().await?;
        let now = Timestamp::now().as_micros();
        let renewed = sqlx::query("UPDATE servers SET lease_until = $1 WHERE id = $2 AND lease_until > $3")
            .bind(self.lease_until(now, lease))
            .bind(self.server.to_string())
            .bind(now)
            .execute(&mut *tx)
            .await?;
        if renewed.rows_affected() == 0 {
            drop(tx);
            self.join(lease).await?;
            return Ok(Renewed { had_lapsed: true, taken_over: Vec::new(), lost_one: false });
        }
        let (mut taken_over, mut lost_one) = (Vec::new(), false);
        if judge {
            let gone = sqlx::query("DELETE FROM servers WHERE lease_until <= $1")
                .bind(now)
                .execute(&mut *tx)
                .await?;
            lost_one = gone.rows_affected() > 0;
            let abandoned = format!(
                "SELECT w.* FROM workflows w WHERE {ABANDONED}
                     OR (w.finished_at IS NULL AND w.owner IS NULL AND w.created_at <= $2)
                 ORDER BY w.created_at"
            );
            let rows = sqlx::query(sqlx::AssertSqlSafe(abandoned))
                .bind(now)
                .bind(now.saturating_sub(micros(lease)))
                .fetch_all(&mut *tx)
                .await?;
            for row in &rows {
                let workflow = WorkflowRecord::from_row(row)?;
                sqlx::query("UPDATE workflows SET owner = $1 WHERE id = $2")
                    .bind(self.server.to_string())
                    .bind(workflow.id.to_string())
                    .execute(&mut *tx)
                    .await?;
                taken_over.push(workflow);
            }
        }
        tx.commit().await?;
        Ok(Renewed { had_lapsed: false, taken_over, lost_one })
    }

    /// The servers whose lease runs, beside this one.
    pub async fn other_servers(&self) -> Result<Vec<ServerId>, StoreError> {
        let rows = sqlx::query("SELECT id FROM servers WHERE id <> $1 AND lease_until > $2 ORDER BY id")
            .bind(self.server.to_string())
            .bind(Timestamp::now().as_micros())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| parsed(row, "id")).collect()
    }

    /// Gives up a server that is known to have ended: what it ran can be claimed at once.
    pub async fn remove_server(&self, id: ServerId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM servers WHERE id = $1").bind(id.to_string()).execute(&self.pool).await?;
        Ok(())
    }

    /// Makes the workflow this server's, if it is nobody's; as it is now. `None`: it is another's, or over.
    pub async fn claim_workflow(&self, id: WorkflowId) -> Result<Option<WorkflowRecord>, StoreError> {
        let mut tx = self.write().await?;
        let row = sqlx::query(
            "UPDATE workflows SET owner = $1 WHERE id = $2 AND finished_at IS NULL
                 AND (owner IS NULL OR owner = $1 OR NOT EXISTS (
                     SELECT 1 FROM servers s WHERE s.id = workflows.owner AND s.lease_until > $3))
             RETURNING *",
        )
        .bind(self.server.to_string())
        .bind(id.to_string())
        .bind(Timestamp::now().as_micros())
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        row.as_ref().map(WorkflowRecord::from_row).transpose()
    }

    /// Whoever runs the workflow at work on the computer is to give it up.
    pub async fn cancel_workflow(&self, computer: ComputerId) -> Result<(), StoreError> {
        sqlx::query("UPDATE workflows SET cancelled = 1 WHERE computer_id = $1 AND finished_at IS NULL")
            .bind(computer.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// A workflow, also one that is over. Those of computers that are gone are not kept.
    pub async fn workflow(&self, id: WorkflowId) -> Result<Option<WorkflowRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM workflows WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(WorkflowRecord::from_row).transpose()
    }

    /// Waits until no other server does this. On SQLite there is no other.
    pub async fn exclusive(&self, what: Exclusive) -> Result<Held, StoreError> {
        let Some(address) = self.pool.address() else { return Ok(Held { _connection: None }) };
        let mut connection = PgConnection::connect(address).await?;
        let number = match what {
            Exclusive::Start => 1,
            Exclusive::Storage => 2,
            Exclusive::Templates => 3,
        };
        sqlx::query("SELECT pg_advisory_lock(76678, $1)").bind(number).execute(&mut connection).await?;
        Ok(Held { _connection: Some(connection) })
    }

    /// What all servers change from now on; `None` where there is one server.
    pub async fn changes(&self) -> Result<Option<Changes>, StoreError> {
        let Some(address) = self.pool.address() else { return Ok(None) };
        let mut listener = PgListener::connect(address).await?;
        listener.listen("roost").await?;
        Ok(Some(Changes { listener }))
    }
}

impl Changes {
    /// Waits for the next one, for as long as it takes to reach the database again.
    pub async fn next(&mut self) -> Change {
        let mut pause = Duration::from_millis(100);
        match self.listener.try_recv().await {
            Ok(Some(told)) => return Change::read(told.payload()),
            Ok(None) => return Change::Anything,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what other servers change is not heard; trying again");
            }
        }
        // It listens again as soon as it is connected.
        while sqlx::query("SELECT 1").execute(&mut self.listener).await.is_err() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        Change::Anything
    }
}

impl Change {
    fn read(text: &str) -> Self {
        let (word, id) = text.split_once(' ').unwrap_or((text, ""));
        let read = match word {
            "computer" => id.parse().ok().map(Change::Computer),
            "gone" => id.parse().ok().map(Change::Gone),
            "cancelled" => id.parse().ok().map(Change::Cancelled),
            "snapshot" => id.parse().ok().map(Change::Snapshot),
            "event" => Some(Change::Event),
            "callers" => Some(Change::Callers),
            "servers" => Some(Change::Servers),
            _ => None,
        };
        // A newer server may have words of its own.
        read.unwrap_or(Change::Anything)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestDatabase, computer};
    use crate::{Begin, Finish, WorkflowKind};

    const LEASE: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_workflow_is_one_servers_and_whoever_lost_it_writes_nothing() {
        let database = TestDatabase::new().await;
        let (a, b) = (database.store().await, database.store().await);
        a.join(LEASE).await.unwrap();
        let workflow = computer(&a).await;
        assert!(a.claim_workflow(workflow.id).await.unwrap().is_some());
        assert!(a.claim_workflow(workflow.id).await.unwrap().is_some(), "it is its own");
        assert!(b.claim_workflow(workflow.id).await.unwrap().is_none(), "it is another's");
        assert!(!b.owns_workflow(workflow.id).await.unwrap());
        assert!(a.owns_workflow(workflow.id).await.unwrap());

        b.join(LEASE).await.unwrap();
        b.remove_server(a.server()).await.unwrap();
        b.cancel_workflow(workflow.computer).await.unwrap();
        let claimed = b.claim_workflow(workflow.id).await.unwrap().unwrap();
        assert!(claimed.is_cancelled);
        assert!(a.claim_workflow(workflow.id).await.unwrap().is_none());
        let error = roost_api::ApiError::new(roost_api::ErrorCode::Internal, "late");
        assert!(!a.owns_workflow(workflow.id).await.unwrap());
        assert!(!a.fail_workflow(workflow.id, 2, &error).await.unwrap());
        assert!(!a.finish_workflow(&workflow, &Finish::Failed("late".to_owned())).await.unwrap());
        let found = a.workflow(workflow.id).await.unwrap().unwrap();
        assert_eq!((found.step, found.error, found.is_finished), (0, None, false));
        assert_eq!(a.computer(workflow.computer).await.unwrap().unwrap().failure, None);
        assert!(b.finish_workflow(&workflow, &Finish::Done).await.unwrap());
        assert!(b.claim_workflow(workflow.id).await.unwrap().is_none(), "it is over");
    }

    #[tokio::test]
    async fn what_a_silent_server_ran_is_taken_over_once() {
        let database = TestDatabase::new().await;
        let (a, b) = (database.store().await, database.store().await);
        if !a.is_shared() {
            return;
        }
        a.join(Duration::ZERO).await.unwrap();
        b.join(LEASE).await.unwrap();
        let (claimed, fresh) = (computer(&a).await, computer(&a).await);
        a.claim_workflow(claimed.id).await.unwrap();
        assert!(b.renew(LEASE, false).await.unwrap().taken_over.is_empty(), "it does not judge");
        let renewed = b.renew(LEASE, true).await.unwrap();
        let ids: Vec<WorkflowId> = renewed.taken_over.iter().map(|workflow| workflow.id).collect();
        assert_eq!((ids, renewed.lost_one, renewed.had_lapsed), (vec![claimed.id], true, false));
        assert!(b.renew(LEASE, true).await.unwrap().taken_over.is_empty());
        // Nobody has run this one: whoever began it has a lease's time for that.
        let renewed = b.renew(Duration::from_micros(1), true).await.unwrap();
        assert_eq!(renewed.taken_over.first().map(|workflow| workflow.id), Some(fresh.id));
        // Back again, it finds that it was given up, and judges nobody.
        let renewed = a.renew(LEASE, true).await.unwrap();
        assert!(renewed.had_lapsed && renewed.taken_over.is_empty());
    }

    /// Read, guard, write: of many at several servers one is let through.
    #[tokio::test(flavor = "multi_thread")]
    async fn guards_hold_across_servers() {
        let database = TestDatabase::new().await;
        let (a, b) = (database.store().await, database.store().await);
        a.join(LEASE).await.unwrap();
        let workflow = computer(&a).await;
        a.claim_workflow(workflow.id).await.unwrap();
        a.finish_workflow(&workflow, &Finish::Done).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..20 {
            let store = if number % 2 == 0 { a.clone() } else { b.clone() };
            tasks.spawn(async move {
                let guard = |record: &crate::ComputerRecord| record.intended.map_or(Ok(()), Err);
                let begun = store.begin_workflow(workflow.computer, WorkflowKind::Stop, None, guard);
                matches!(begun.await.unwrap(), Begin::Begun(_))
            });
        }
        let begun = tasks.join_all().await;
        assert_eq!(begun.iter().filter(|begun| **begun).count(), 1);
    }

    /// A caller who is given up while it waits for its turn leaves no transaction behind.
    #[tokio::test]
    async fn writers_that_are_given_up_hold_nobody_up() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        for _ in 0..20 {
            let first = store.write().await.unwrap();
            let second = store.write();
            assert!(tokio::time::timeout(Duration::from_millis(1), second).await.is_err());
            drop(first);
        }
        store.join(LEASE).await.unwrap();
    }

    #[tokio::test]
    async fn outside_of_a_write_transaction_postgresql_only_reads() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        if store.is_shared() {
            let written = sqlx::query("DELETE FROM tickets RETURNING hash").fetch_all(&store.pool).await;
            let error = written.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("read-only"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_ticket_is_used_up_and_there_are_not_too_many() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let home = store.home().await.unwrap();
        let id = store
            .insert_key(&home.new_key("of the key"), &crate::KeyActor::default())
            .await
            .unwrap()
            .unwrap()
            .id;
        assert!(store.insert_ticket("old", id, Timestamp::EPOCH, 1).await.unwrap());
        assert_eq!(store.take_ticket("old").await.unwrap(), None);
        let soon = Timestamp::from_micros(Timestamp::now().as_micros() + 60_000_000).unwrap();
        assert!(store.insert_ticket("one", id, soon, 1).await.unwrap());
        assert!(!store.insert_ticket("two", id, soon, 1).await.unwrap());
        assert_eq!(store.take_ticket("one").await.unwrap().as_deref(), Some("of the key"));
        assert_eq!(store.take_ticket("one").await.unwrap(), None);
    }
}
