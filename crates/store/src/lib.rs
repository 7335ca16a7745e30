//! Everything that is kept in SQL: one [`Store`], plain queries, typed records.
//!
//! SQL is written so that SQLite and PostgreSQL read it alike (numbered parameters, `BIGINT`, JSON as text), and
//! so are the migrations. SQLite runs in WAL mode with `synchronous=FULL`: what was acknowledged survives a power
//! cut. Writers take the write lock at the start of their transaction on both engines (`pool`), so a transaction
//! never fails half-way for a lock, and a number taken as `MAX + 1` in one is nobody else's.
//!
//! This crate knows nothing about HTTP and nothing about how machines run.

mod apps;
mod clock;
mod computers;
mod credits;
mod domains;
mod env;
mod events;
mod idempotency;
mod identity;
mod key_events;
mod keys;
mod layers;
mod metrics;
mod places;
mod pool;
mod ports;
mod query;
mod quotas;
mod reach;
mod record;
mod runs;
mod sealed;
mod servers;
mod settings;
mod setups;
mod snapshots;
pub mod status;
mod tenants;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tickets;
mod transfer;
mod url;
mod viewers;
mod webhooks;
mod workflows;

use std::borrow::Cow;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use roost_api::ServerId;
use sqlx::Transaction;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use crate::pool::{Engine, Pool, sqlite_address};

pub use apps::{InstallationChange, InstallationRecord};
pub use clock::{Clock, HostClock};
pub use computers::{ComputerChange, ComputerFilter, NewComputer};
pub use credits::{Balance, TransactionRecord};
pub use domains::{DomainOwner, DomainRecord, DomainVerified};
pub use env::{EnvRecord, IfMissing, NewVariable, VariableRecord, VariableSet};
pub use events::{EventBatch, EventBounds, EventRecord, EventScope, EventsOf};
pub use idempotency::{RequestLimits, RequestState};
pub use identity::{Caller, Home};
pub use key_events::{KeyActor, KeyEventRecord, PresetRecord};
pub use keys::{KeyChange, KeyForm, KeyRecord, NewKey};
pub use layers::LayerRecord;
pub use metrics::{Measurement, Resolution, Usage};
pub use places::{
    NewProject, NewWorkspace, NotPlaced, PlaceChange, PlaceInserted, ProjectRecord, Removal, WantedPlace,
    WorkspaceRecord,
};
pub use ports::{Exposed, PortLink, PortRecord};
pub use quotas::{Limit, LimitOf, LimitReached, QuotaChange, QuotaRecord, QuotaUse};
pub use reach::{Confinement, Reach};
pub use record::{
    ComputerRecord, DeliveryState, Desired, InstallationState, Observed, SetupState, SnapshotAttributes,
    SnapshotPurpose, SnapshotRecord, SnapshotStatus, WorkflowKind, WorkflowPayload, WorkflowRecord,
};
pub use runs::{RunFilter, RunRecord, Spent, Unpaid};
pub use sealed::SealedPlace;
pub use servers::{Change, Changes, Exclusive, Held, Renewed};
pub use settings::SettingsKind;
pub use setups::{SetupChange, SetupRecord};
pub use snapshots::{
    BegunCapture, Deletion, Dependent, DependentKind, FromSnapshot, Naming, NewCapture, NewSnapshot,
    Recorded, SnapshotFilter, SnapshotGroup,
};
pub use tenants::{MemberRecord, NewUser, TenantDeleted, TenantRecord, UserChanged, UserRecord};
pub use transfer::Transfer;
pub use url::{DatabaseUrl, InvalidUrl};
pub use viewers::{ShareRecord, ViewerPasswordRecord};
pub use webhooks::{Attempt, DeliveryRecord, WebhookRecord};
pub use workflows::{Begin, Finish};

/// The driver that every query is written for: whichever engine there is behind it.
pub(crate) type Db = sqlx::Any;
pub(crate) type DbRow = sqlx::any::AnyRow;

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
    clock: Arc<dyn Clock>,
    /// As whom it claims what it runs.
    server: ServerId,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to open the database {path}: check that its directory exists and is writable")]
    Open { path: Utf8PathBuf, source: sqlx::Error },
    #[error(
        "failed to connect to the database {address}: check that PostgreSQL runs there, that the database exists, \
         and that its user may log in"
    )]
    Connect { address: String, source: sqlx::Error },
    #[error("failed to bring the database to this version's schema: was it written by a newer roost?")]
    Migrate { source: sqlx::migrate::MigrateError },
    #[error("database query failed")]
    Query {
        #[from]
        source: sqlx::Error,
    },
    #[error("a limit is reached: {reached:?}")]
    Limit { reached: LimitReached },
    #[error("the database holds a value this version cannot read: {what}")]
    Corrupt { what: String },
}

impl StoreError {
    /// Whether PostgreSQL refused a text that it cannot hold: one with a NUL character.
    pub fn is_unstorable_text(&self) -> bool {
        match self {
            StoreError::Query { source: sqlx::Error::Database(error) } => {
                error.code().as_deref() == Some(CHARACTER_NOT_IN_REPERTOIRE)
            }
            _ => false,
        }
    }
}

/// The SQL state of such a refusal.
const CHARACTER_NOT_IN_REPERTOIRE: &str = "22021";

impl Store {
    /// Opens (and makes, if need be) the SQLite database at `path` and brings its schema up to date.
    pub async fn open(path: &Utf8Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        let pool = Pool::open(Engine::Sqlite, &sqlite_address(path), &migrator(), failed).await?;
        Self::on(pool).await
    }

    /// Connects to a PostgreSQL database and brings its schema up to date.
    pub async fn connect(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Connect { address: url.to_string(), source };
        let pool = Pool::open(Engine::Postgres, url.secret(), &migrator(), failed).await?;
        Self::on(pool).await
    }

    async fn on(pool: Pool) -> Result<Self, StoreError> {
        pool.tell_changes().await?;
        let store = Self { pool, clock: Arc::new(HostClock), server: ServerId::new() };
        store.write_missing_statuses().await?;
        Ok(store)
    }

    /// What is counted by the clock is counted by another one.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    pub fn now(&self) -> roost_api::Timestamp {
        self.clock.now()
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

    async fn write(&self) -> Result<Transaction<'static, Db>, StoreError> {
        Ok(self.pool.write().await?)
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
        migration(3, "tenancy", include_str!("../migrations/0003_tenancy.sql")),
        migration(4, "events", include_str!("../migrations/0004_events.sql")),
        migration(5, "ports", include_str!("../migrations/0005_ports.sql")),
        migration(6, "env", include_str!("../migrations/0006_env.sql")),
        migration(7, "metering", include_str!("../migrations/0007_metering.sql")),
        migration(8, "regions", include_str!("../migrations/0008_regions.sql")),
        migration(9, "servers", include_str!("../migrations/0009_servers.sql")),
        migration(10, "apps", include_str!("../migrations/0010_apps.sql")),
        migration(11, "start_env", include_str!("../migrations/0011_start_env.sql")),
        migration(14, "idempotency", include_str!("../migrations/0014_idempotency.sql")),
        migration(24, "webhooks", include_str!("../migrations/0024_webhooks.sql")),
        migration(30, "reach", include_str!("../migrations/0030_reach.sql")),
        migration(40, "quotas", include_str!("../migrations/0040_quotas.sql")),
        migration(41, "keys", include_str!("../migrations/0041_keys.sql")),
        migration(42, "life", include_str!("../migrations/0042_life.sql")),
        migration(43, "policies", include_str!("../migrations/0043_policies.sql")),
        migration(46, "search", include_str!("../migrations/0046_search.sql")),
        migration(50, "preview_domains", include_str!("../migrations/0050_preview_domains.sql")),
        migration(51, "settings", include_str!("../migrations/0051_settings.sql")),
        migration(52, "status", include_str!("../migrations/0052_status.sql")),
        migration(53, "resolution", include_str!("../migrations/0053_resolution.sql")),
    ];
    Migrator { migrations: Cow::Owned(migrations), ..Migrator::DEFAULT }
}

#[cfg(test)]
mod tests {
    use roost_api::{RegionName, Size, SnapshotId};

    use super::*;
    use crate::testing::TestDatabase;

    /// A computer of the first version, as it was written then, is read by this one.
    #[tokio::test]
    async fn an_older_database_is_brought_up_to_date() {
        let database = TestDatabase::new().await;
        let first = migrator().migrations.iter().take(1).cloned().collect();
        let first = Migrator { migrations: Cow::Owned(first), ..Migrator::DEFAULT };
        let pool = database.pool(&first).await;
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

        let store = database.store().await;
        let record = store.computer(id.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!((record.size, record.disk_gib), (Size::Large, 40));
        assert_eq!((record.layer, record.snapshot, record.memory_lost), (None, None, None));
        assert_eq!(record.region, RegionName::local());
        assert!(!record.always_on && record.last_active_at.is_none());
        let reach = Reach::whole(record.tenant_id);
        let of = |status| ComputerFilter { statuses: Some(vec![status]), ..ComputerFilter::default() };
        assert_eq!(store.count_computers(&reach, &of(roost_api::Status::Stopped)).await.unwrap(), 1);
        assert_eq!(store.count_computers(&reach, &of(roost_api::Status::Running)).await.unwrap(), 0);
        // Opening it again changes nothing.
        store.close().await;
        let store = database.store().await;
        assert!(store.snapshot(SnapshotId::new()).await.unwrap().is_none());
        assert!(store.layers().await.unwrap().is_empty());
    }
}
