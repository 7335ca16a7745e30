//! Several servers on one database and one data directory.
//!
//! ```text
//!   lease     renewed by a task; who does not renew, or whose lock file is free, is given up
//!   claim     a workflow is run by whose id it carries; what a lost server ran is claimed by one other
//!   changes   what any server commits is told to all: the hubs wake their waiters, the event log its readers
//! ```
//!
//! What only one may do at a time (finding out what there is, freeing storage, making templates) is done under a
//! lock in the database. What a server finds that another has begun, it waits for through the hubs like everybody.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use roost_api::{ApiError, ComputerId, ErrorCode, ServerId};
use roost_store::{Change, Changes, Exclusive, WorkflowRecord};
use rustix::fs::{FlockOperation, flock};

use crate::workflow::Handle;
use crate::{Control, Failure};

/// How this server takes its place among others.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// How long the others wait for a sign of life before they take over what it runs.
    pub lease: Duration,
    /// Where each server on this host holds a locked file while it lives: the others see at once that it ended.
    pub locks: Option<Utf8PathBuf>,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), locks: None }
    }
}

/// The file that says that this process lives; the kernel unlocks it when it does not.
#[derive(Debug)]
pub(crate) struct Seat {
    locks: Option<Utf8PathBuf>,
    _held: Option<File>,
}

impl Seat {
    pub(crate) fn take(sharing: &Sharing, server: ServerId) -> std::io::Result<Self> {
        let Some(locks) = sharing.locks.clone() else { return Ok(Self { locks: None, _held: None }) };
        std::fs::create_dir_all(&locks)?;
        let path = locks.join(format!("{server}.lock"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { locks: Some(locks), _held: Some(file) })
    }

    /// Whether a server of this host is known to have ended. Its file goes.
    fn is_gone(&self, server: ServerId) -> bool {
        let Some(path) = self.locks.as_ref().map(|locks| locks.join(format!("{server}.lock"))) else {
            return false;
        };
        // No file: a server of another host, whose lease decides.
        let Ok(file) = File::open(&path) else { return false };
        let free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        if free && let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%path, %error, "failed to remove the lock file of a server that has ended");
        }
        free
    }
}

impl Control {
    /// Takes part, finds out what there is, and looks after it from now on.
    pub(crate) async fn join(&self, changes: Option<Changes>) -> Result<(), Failure> {
        let store = &self.inner.store;
        let lease = self.inner.config.sharing.lease;
        if let Some(changes) = changes {
            self.hear(changes);
        }
        let starting = store.exclusive(Exclusive::Start).await?;
        store.join(lease).await?;
        if store.is_shared() {
            self.keep_lease();
        }
        self.give_up_ended().await?;
        if store.other_servers().await?.is_empty() {
            self.reconcile().await?;
        } else {
            self.adopt().await?;
            for workflow in store.active_workflows().await? {
                // Those that another server is at work on are only waited for.
                drop(self.run_workflow(workflow));
            }
        }
        drop(starting);
        Ok(())
    }

    /// Ends this server's part: what it runs stops where it is, and another goes on with it at once.
    pub async fn leave(&self) -> Result<(), Failure> {
        self.inner.engine.leave().await;
        Ok(self.inner.store.remove_server(self.inner.store.server()).await?)
    }

    /// Removes the servers that are known to have ended.
    async fn give_up_ended(&self) -> Result<(), Failure> {
        for server in self.inner.store.other_servers().await? {
            if self.inner.seat.is_gone(server) {
                tracing::info!(%server, "a server has ended; what it ran goes on here");
                self.inner.store.remove_server(server).await?;
            }
        }
        Ok(())
    }

    /// Renews the lease, and takes over what servers ran that do not renew theirs.
    fn keep_lease(&self) {
        let control = std::sync::Arc::downgrade(&self.inner);
        let lease = self.inner.config.sharing.lease;
        let left = self.inner.engine.left();
        let look = self.inner.look.clone();
        tokio::spawn(async move {
            // After a gap of its own it gives the others as long to renew as they would have had.
            let mut judge_from = Instant::now();
            loop {
                tokio::select! {
                    () = left.cancelled() => return,
                    () = look.notified() => {}
                    () = tokio::time::sleep(lease / 3) => {}
                }
                let Some(inner) = control.upgrade() else { return };
                let control = Control { inner };
                match control.renew(Instant::now() >= judge_from).await {
                    Ok(false) => {}
                    Ok(true) => judge_from = Instant::now() + lease,
                    Err(failure) => {
                        let failure = &failure as &dyn std::error::Error;
                        tracing::error!(failure, "failed to renew the lease of this server; trying again");
                    }
                }
            }
        });
    }

    /// One round; whether the lease had ended.
    async fn renew(&self, judge: bool) -> Result<bool, Failure> {
        self.give_up_ended().await?;
        let renewed = self.inner.store.renew(self.inner.config.sharing.lease, judge).await?;
        if renewed.had_lapsed {
            tracing::warn!("the lease of this server had ended; others may have taken over what it ran");
        }
        let adopts = renewed.lost_one || !renewed.taken_over.is_empty();
        for workflow in renewed.taken_over {
            tracing::info!(computer = %workflow.computer, kind = workflow.kind.as_str(), "taking a workflow over");
            drop(self.run_workflow(workflow));
        }
        if adopts {
            self.adopt().await?;
        }
        Ok(renewed.had_lapsed)
    }

    /// Wakes who waits here for what any server changes.
    fn hear(&self, mut changes: Changes) {
        let control = std::sync::Arc::downgrade(&self.inner);
        let left = self.inner.engine.left();
        tokio::spawn(async move {
            while let Some(change) = left.run_until_cancelled(changes.next()).await {
                let Some(inner) = control.upgrade() else { return };
                Control { inner }.heard(change).await;
            }
        });
    }

    async fn heard(&self, change: Change) {
        let inner = &self.inner;
        match change {
            Change::Computer(computer) => inner.hub.notify(computer),
            Change::Gone(computer) => {
                inner.guests.forget(computer);
                inner.hub.notify(computer);
            }
            Change::Cancelled(computer) => drop(inner.engine.cancel(computer)),
            Change::Snapshot(snapshot) => inner.snapshot_hub.notify(snapshot),
            Change::Event => inner.hub.wake(),
            Change::Callers => inner.callers.changed(),
            Change::Servers => inner.look.notify_one(),
            Change::Anything => {
                inner.hub.notify_all();
                inner.snapshot_hub.notify_all();
                inner.callers.changed();
                if let Err(failure) = self.hear_cancelled().await {
                    let failure = &failure as &dyn std::error::Error;
                    tracing::error!(failure, "failed to look for workflows that were given up");
                }
            }
        }
    }

    async fn hear_cancelled(&self) -> Result<(), Failure> {
        for workflow in self.inner.store.active_workflows().await? {
            if workflow.is_cancelled {
                drop(self.inner.engine.cancel(workflow.computer));
            }
        }
        Ok(())
    }

    /// What to wait for until the work on a computer is done, wherever it is done.
    pub(crate) async fn handle(&self, computer: ComputerId) -> Result<Option<Handle>, Failure> {
        if let Some(handle) = self.inner.engine.handle(computer) {
            return Ok(Some(handle));
        }
        if !self.inner.store.is_shared() {
            return Ok(None);
        }
        let workflow = self.inner.store.active_workflow(computer).await?;
        Ok(workflow.map(|workflow| Handle::elsewhere(self.clone(), workflow)))
    }

    /// The same, after whoever does it was asked to give up.
    pub(crate) async fn cancel(&self, computer: ComputerId) -> Result<Option<Handle>, Failure> {
        if let Some(handle) = self.inner.engine.cancel(computer) {
            // It may be another server's by now.
            if self.inner.store.is_shared() {
                self.inner.store.cancel_workflow(computer).await?;
            }
            return Ok(Some(handle));
        }
        let handle = self.handle(computer).await?;
        if handle.is_some() {
            self.inner.store.cancel_workflow(computer).await?;
        }
        Ok(handle)
    }

    /// What to wait for until no server is reading layers that it began to read before.
    pub(crate) async fn launching(&self) -> Result<Vec<Handle>, Failure> {
        let mut handles = self.inner.engine.launching();
        if self.inner.store.is_shared() {
            for workflow in self.inner.store.active_workflows().await? {
                if workflow.kind.reads_layers() {
                    handles.push(Handle::elsewhere(self.clone(), workflow));
                }
            }
        }
        Ok(handles)
    }

    /// How a workflow ends that another server runs.
    pub(crate) async fn outcome(&self, workflow: &WorkflowRecord) -> Result<(), ApiError> {
        let mut changes = self.inner.hub.subscribe(workflow.computer);
        loop {
            if let Some(result) = self.result(workflow).await {
                return result;
            }
            if changes.changed().await.is_err() {
                changes = self.inner.hub.subscribe(workflow.computer);
            }
        }
    }

    /// How a workflow ended, if it has.
    pub(crate) async fn result(&self, workflow: &WorkflowRecord) -> Option<Result<(), ApiError>> {
        match self.persist(|| self.inner.store.workflow(workflow.id)).await {
            // Rows of computers that are gone go with them: it did what it was to do, or was given up for that.
            None => Some(Ok(())),
            Some(found) if found.is_finished => {
                let code = found.error_code;
                Some(found.error.map_or(Ok(()), |error| Err(failed(error, code.as_deref()))))
            }
            Some(_) => None,
        }
    }
}

/// The error of a workflow as its row has it. Those that callers are told apart by keep their code.
pub(crate) fn failed(message: String, code: Option<&str>) -> ApiError {
    let kept = [
        ErrorCode::NoReadyMachine,
        ErrorCode::ResourceState,
        ErrorCode::StartFailed,
        ErrorCode::InvalidState,
    ];
    let code = kept.into_iter().find(|kept| code == Some(kept.as_str()));
    ApiError::new(code.unwrap_or(ErrorCode::Internal), message)
}
