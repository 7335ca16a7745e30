//! Databases for tests: SQLite in a directory of its own, or, where `ROOST_TEST_DATABASE` holds the address of a
//! PostgreSQL database, a new database beside that one. Either goes with the test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::atomic::{AtomicU32, Ordering};

use camino::Utf8PathBuf;
use roost_api::{ApiKeyId, KeyKind, Role};
use sqlx::any::AnyConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::{AnyConnection, AssertSqlSafe, ConnectOptions, Executor};

use crate::pool::{Engine, Pool, sqlite_address};
use crate::{Caller, Confinement, DatabaseUrl, Home, KeyForm, NewKey, Store, StoreError, migrator};

/// An empty database that nobody else uses.
#[derive(Debug)]
pub struct TestDatabase {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Sqlite(tempfile::TempDir),
    Postgres { beside: DatabaseUrl, name: String },
}

impl TestDatabase {
    pub async fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let Ok(beside) = std::env::var("ROOST_TEST_DATABASE") else {
            return Self { place: Place::Sqlite(tempfile::tempdir().unwrap()) };
        };
        let beside: DatabaseUrl = beside.parse().unwrap();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("roost_test_{}_{number}", std::process::id());
        run(&beside, format!("CREATE DATABASE {name} TEMPLATE template0")).await.unwrap();
        Self { place: Place::Postgres { beside, name } }
    }

    /// Opens it; each call is another server on the same database.
    pub async fn store(&self) -> Store {
        Store::on(self.pool(&migrator()).await).await.unwrap()
    }

    /// As if everybody knew that the servers so far have ended, which they have not said themselves.
    pub async fn forget_servers(&self) {
        let store = self.store().await;
        sqlx::query("DELETE FROM servers").execute(&store.pool).await.unwrap();
        store.close().await;
    }

    /// Where its files are, if it has any of its own.
    pub fn directory(&self) -> Option<&std::path::Path> {
        match &self.place {
            Place::Sqlite(directory) => Some(directory.path()),
            Place::Postgres { .. } => None,
        }
    }

    pub(crate) async fn pool(&self, migrator: &Migrator) -> Pool {
        let failed = |source| StoreError::Query { source };
        let (engine, address) = match &self.place {
            Place::Sqlite(directory) => {
                let path = Utf8PathBuf::try_from(directory.path().join("roost.db")).unwrap();
                (Engine::Sqlite, sqlite_address(&path))
            }
            Place::Postgres { beside, name } => (Engine::Postgres, with_database(beside, name)),
        };
        Pool::open(engine, &address, migrator, failed).await.unwrap()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Place::Postgres { beside, name } = &self.place else { return };
        // Whatever the test left running loses its connections. The test's own runtime is in use.
        let (beside, drop) = (beside.clone(), format!("DROP DATABASE {name} WITH (FORCE)"));
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(&beside, drop)).unwrap();
        });
        let dropped = dropping.join();
        // A second panic would hide why the test failed.
        assert!(std::thread::panicking() || dropped.is_ok(), "failed to drop the database {name}");
    }
}

impl Home {
    /// An admin key of its owner, whose secret has this hash.
    pub fn new_key(&self, hash: &str) -> NewKey {
        let Caller { tenant, user, kind, form, scopes, confinement, .. } = self.administrator();
        NewKey {
            tenant,
            user,
            name: "test".to_owned(),
            prefix: "msk".to_owned(),
            hash: hash.to_owned(),
            kind,
            form,
            scopes,
            confinement,
            allowed_ips: Vec::new(),
            expires_at: None,
            metadata: std::collections::BTreeMap::new(),
        }
    }

    /// Its owner, as if they had asked with an admin key.
    pub fn administrator(&self) -> Caller {
        Caller {
            key: ApiKeyId::new(),
            key_hash: String::new(),
            form: KeyForm::Key,
            tenant: self.tenant,
            tenant_slug: "default".to_owned(),
            user: self.user,
            role: Role::Owner,
            kind: KeyKind::Admin,
            scopes: vec!["*".to_owned()],
            memberships: Vec::new(),
            confinement: Confinement::default(),
            allowed_ips: Vec::new(),
            address: None,
            expires_at: None,
            is_operator: true,
            default_workspace: None,
        }
    }
}

async fn run(database: &DatabaseUrl, statement: String) -> Result<(), sqlx::Error> {
    sqlx::any::install_default_drivers();
    let options: AnyConnectOptions = database.secret().parse()?;
    let mut connection: AnyConnection = options.connect().await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    sqlx::Connection::close(connection).await
}

/// The same address with another database.
fn with_database(url: &DatabaseUrl, name: &str) -> String {
    let text = url.secret();
    let (scheme, rest) = text.split_once("://").unwrap();
    let (place, parameters) = rest.split_once('?').map_or((rest, None), |(place, rest)| (place, Some(rest)));
    let authority = place.split('/').next().unwrap_or_default();
    let parameters = parameters.map(|parameters| format!("?{parameters}")).unwrap_or_default();
    format!("{scheme}://{authority}/{name}{parameters}")
}

/// A computer that is being created.
#[cfg(test)]
pub(crate) async fn computer(store: &Store) -> crate::WorkflowRecord {
    let new = new_computer(store).await;
    store.insert_computer(&new).await.unwrap().1
}

/// What such a computer is made of.
#[cfg(test)]
pub(crate) async fn new_computer(store: &Store) -> crate::NewComputer {
    use roost_api::{ComputerId, RegionName, Size, Visibility};

    let home = store.home().await.unwrap();
    crate::NewComputer {
        id: ComputerId::new(),
        tenant_id: home.tenant,
        owner_user_id: home.user,
        workspace_id: home.workspace,
        project_id: home.project,
        name: "box".to_owned(),
        slug: "box".to_owned(),
        template_type: "t".to_owned(),
        template_digest: "d".to_owned(),
        size: Size::Small,
        external_workspace_id: None,
        external_user_id: None,
        external_project_id: None,
        selected_apps: Vec::new(),
        metadata: std::collections::BTreeMap::new(),
        visibility: Visibility::Tenant,
        always_on: false,
        auto_stop: 0,
        timeout: 0,
        screen: roost_api::ScreenSize::DEFAULT,
        disk_gib: 1,
        region: RegionName::local(),
        snapshot: None,
        layer: None,
        last_snapshot: None,
        env: Vec::new(),
        setup: None,
    }
}
