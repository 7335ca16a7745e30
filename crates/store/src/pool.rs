//! The connections: one driver for SQLite and PostgreSQL, and what makes writers safe on both.
//!
//! Writers go one after the other. SQLite has one write lock; on PostgreSQL a write transaction begins by taking
//! an advisory lock, so "read, guard, write" finds there what it finds on SQLite: nothing changes between the
//! look and the write. Nothing is ever aborted because of another writer, so nothing needs to be tried again.
//! Numbers given out as `MAX + 1` in a write transaction grow in the order in which they can be seen.
//!
//! A statement that is executed on the pool itself is a write transaction of its own; what is fetched from it
//! is read. PostgreSQL holds the second half of that: outside of a write transaction a connection is read-only.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyQueryResult, AnyRow, AnyStatement};
use sqlx::migrate::Migrator;
use sqlx::{
    Any, AnyConnection, AnyPool, ConnectOptions, Connection, Either, Error, Execute, Executor, SqlStr,
    Transaction,
};

use crate::StoreError;

/// How long a writer waits for the others, and a statement or an idle transaction is let be.
const PATIENCE: Duration = Duration::from_secs(20);

/// "roost" on a telephone: the advisory lock of writers.
const WRITER: i64 = 76_678;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    fn begin_writing(self) -> &'static str {
        match self {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            // Each statement sees what was committed before it, so all after the lock see all earlier writers.
            Engine::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        }
    }

    /// What every new connection is told.
    fn greeting(self) -> String {
        let patience = PATIENCE.as_millis();
        match self {
            Engine::Sqlite => format!(
                "PRAGMA busy_timeout = {patience}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 PRAGMA foreign_keys = ON"
            ),
            // A server that stands still in a transaction must not hold up the others for ever.
            Engine::Postgres => format!(
                "SET default_transaction_read_only = on; SET lock_timeout = {patience};
                 SET idle_in_transaction_session_timeout = {patience}"
            ),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Pool {
    connections: AnyPool,
    engine: Engine,
    /// Where the database is; a password may be in it.
    address: Arc<str>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl Pool {
    /// Brings the schema up to date first. `address` may have a password in it; `failed` says which database.
    pub(crate) async fn open(
        engine: Engine,
        address: &str,
        migrator: &Migrator,
        failed: impl Fn(Error) -> StoreError,
    ) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let options: AnyConnectOptions = address.parse().map_err(&failed)?;
        // What is wrong with an address is told at once; a pool would try until its time is over, and not say why.
        options.connect().await.map_err(&failed)?.close().await.map_err(&failed)?;
        let migrating = AnyPoolOptions::new().max_connections(1);
        let migrating = match engine {
            Engine::Sqlite => migrating.after_connect(move |first, _| Box::pin(greet(first, engine))),
            // Its greeting is for connections that read.
            Engine::Postgres => migrating,
        };
        let migrating = migrating.connect_with(options.clone()).await.map_err(&failed)?;
        migrator.run(&migrating).await.map_err(|source| StoreError::Migrate { source })?;
        migrating.close().await;
        let connections = AnyPoolOptions::new()
            .max_connections(8)
            .after_connect(move |connection, _| Box::pin(greet(connection, engine)))
            .connect_with(options)
            .await
            .map_err(&failed)?;
        Ok(Self { connections, engine, address: address.into() })
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// Where others can connect to the database; SQLite takes no others.
    pub(crate) fn address(&self) -> Option<&str> {
        match self.engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(&self.address),
        }
    }

    /// Has PostgreSQL tell all servers what each changes.
    pub(crate) async fn tell_changes(&self) -> Result<(), Error> {
        match self.engine {
            Engine::Sqlite => Ok(()),
            Engine::Postgres => {
                let mut tx = self.write().await?;
                tx.execute(sqlx::raw_sql(include_str!("../postgres/notify.sql"))).await?;
                tx.commit().await
            }
        }
    }

    pub(crate) async fn close(&self) {
        self.connections.close().await;
    }

    /// A transaction that only reads.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Any>, Error> {
        self.begin_with("BEGIN").await
    }

    pub(crate) async fn write(&self) -> Result<Transaction<'static, Any>, Error> {
        let mut tx = self.begin_with(self.engine.begin_writing()).await?;
        if self.engine == Engine::Postgres {
            sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WRITER).execute(&mut *tx).await?;
        }
        Ok(tx)
    }

    /// A caller that is given up while its `BEGIN` is on the way would leave the connection in a transaction
    /// nobody ends, so it is brought to its end by a task.
    async fn begin_with(&self, statement: &'static str) -> Result<Transaction<'static, Any>, Error> {
        let connections = self.connections.clone();
        let begun = tokio::spawn(async move { connections.begin_with(statement).await });
        begun.await.map_err(|_| Error::WorkerCrashed)?
    }
}

async fn greet(connection: &mut AnyConnection, engine: Engine) -> Result<(), Error> {
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(engine.greeting()))).await?;
    Ok(())
}

impl<'p> Executor<'p> for &'_ Pool {
    type Database = Any;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<AnyQueryResult, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let pool = self.clone();
        Box::pin(async move {
            let mut tx = pool.write().await?;
            let done = tx.execute(query).await?;
            tx.commit().await?;
            Ok(done)
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<AnyQueryResult, AnyRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Any>,
    {
        self.connections.fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Any>,
    {
        self.connections.fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [sqlx::any::AnyTypeInfo],
    ) -> BoxFuture<'e, Result<AnyStatement, Error>>
    where
        'p: 'e,
    {
        self.connections.prepare_with(sql, parameters)
    }
}

/// The address of a SQLite file: what has a meaning in addresses is escaped.
pub(crate) fn sqlite_address(path: &Utf8Path) -> String {
    let escaped = path.as_str().replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    format!("sqlite://{escaped}?mode=rwc")
}
