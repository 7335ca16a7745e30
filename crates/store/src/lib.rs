//! Everything that is kept in SQL: one [`Store`], plain queries, typed records.
//!
//! SQL is written so that SQLite and PostgreSQL read it alike (numbered parameters, `BIGINT`, JSON as text).
//! SQLite runs in WAL mode with `synchronous=FULL`: what was acknowledged survives a power cut. Writers take
//! the write lock at the start of their transaction, so a transaction never fails half-way for a lock.
//!
//! This crate knows nothing about HTTP and nothing about how machines run.

mod computers;
mod identity;
mod layers;
mod record;
mod snapshots;
mod workflows;

use std::borrow::Cow;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

pub use computers::{ComputerChange, ComputerFilter, NewComputer};
pub use identity::{Caller, Home, NewApiKey};
pub use layers::LayerRecord;
pub use record::{
    ComputerRecord, Desired, Observed, SnapshotAttributes, SnapshotPurpose, SnapshotRecord, SnapshotStatus,
    WorkflowKind, WorkflowPayload, WorkflowRecord,
};
pub use snapshots::{
    BegunCapture, Deletion, Dependent, DependentKind, FromSnapshot, Naming, NewCapture, NewSnapshot,
    Recorded, SnapshotFilter, SnapshotGroup,
};
pub use workflows::{Begin, Finish};

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to open the database {path}: check that its directory exists and is writable")]
    Open { path: Utf8PathBuf, source: sqlx::Error },
    #[error("failed to bring the database to this version's schema: was it written by a newer roost?")]
    Migrate { source: sqlx::migrate::MigrateError },
    #[error("database query failed")]
    Query {
        #[from]
        source: sqlx::Error,
    },
    #[error("the database holds a value this version cannot read: {what}")]
    Corrupt { what: String },
}

impl Store {
    /// Opens (and makes, if need be) the SQLite database at `path` and brings its schema up to date.
    pub async fn open(path: &Utf8Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path.as_std_path())
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(20));
        let pool = SqlitePoolOptions::new()
            .max_connections(8)
            .connect_with(options)
            .await
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        migrator().run(&pool).await.map_err(|source| StoreError::Migrate { source })?;
        Ok(Self { pool })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Finishes running queries and closes the files.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}

fn migrator() -> Migrator {
    let migration = |version, name, text| {
        let text = sqlx::SqlStr::from_static(text);
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, text, false)
    };
    let migrations = vec![
        migration(1, "start", include_str!("../migrations/0001_start.sql")),
        migration(2, "snapshots", include_str!("../migrations/0002_snapshots.sql")),
    ];
    Migrator { migrations: Cow::Owned(migrations), ..Migrator::DEFAULT }
}

#[cfg(test)]
mod tests {
    use roost_api::{Size, SnapshotId};

    use super::*;

    /// A computer of the first version, as it was written then, is read by this one.
    #[tokio::test]
    async fn an_older_database_is_brought_up_to_date() {
        let directory = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(directory.path().join("roost.db")).unwrap();
        let options = SqliteConnectOptions::new().filename(path.as_std_path()).create_if_missing(true);
        let pool = SqlitePoolOptions::new().connect_with(options).await.unwrap();
        let first = migrator().migrations.iter().take(1).cloned().collect();
        Migrator { migrations: Cow::Owned(first), ..Migrator::DEFAULT }.run(&pool).await.unwrap();
        let id = "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000";
        for statement in [
            "INSERT INTO tenants VALUES ('3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000', 't', 0)",
            "INSERT INTO users VALUES ('3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000',
                 '3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000', 'u', 0)",
            "INSERT INTO workspaces VALUES ('3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000',
                 '3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000', 'default', 'w', 0)",
            "INSERT INTO projects VALUES ('3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000',
                 '3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000', 'default', 'p', 0)",
            "INSERT INTO computers (id, tenant_id, owner_user_id, workspace_id, project_id, name, slug,
                 template_type, template_digest, size, selected_apps, metadata, visibility, auto_stop, desired,
                 generation, provisioned, observed, failure_console, created_at, updated_at)
             SELECT id, id, id, id, id, 'box', 'box', 'miosa-desktop', 'd', 'large', '[]', '{}', 'tenant', 0,
                 'stopped', 1, 1, 'stopped', '[]', 0, 0 FROM tenants",
        ] {
            sqlx::query(statement).execute(&pool).await.unwrap();
        }
        pool.close().await;

        let store = Store::open(&path).await.unwrap();
        let record = store.computer(id.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!((record.size, record.disk_gib), (Size::Large, 40));
        assert_eq!((record.layer, record.snapshot, record.memory_lost), (None, None, None));
        assert!(!record.always_on);
        // Opening it again changes nothing.
        store.close().await;
        let store = Store::open(&path).await.unwrap();
        assert!(store.snapshot(SnapshotId::new()).await.unwrap().is_none());
        assert!(store.layers().await.unwrap().is_empty());
    }
}
