//! Apps: which a computer has, and installing those that were selected.
//!
//! What is selected is kept in rows, and the guest does the work: its agent installs what it is asked for whether
//! anybody listens or not, and tells who asks again how far it is. So the installer here only has to ask, for every
//! computer that runs and has something to install: after a start, after a crash of this server, beside another server.
//! A failed app has its reason in its row, and the next one is installed.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use roost_api::{
    App, AppList, Catalog, ComputerId, ErrorCode, Installation, Installations, LaunchRequest, SelectApps,
    Status,
};
use roost_guest_proto::v1::apps_client::AppsClient;
use roost_guest_proto::v1::install_reply::State;
use roost_guest_proto::v1::{InstallRequest, ListAppsRequest};
use roost_store::{ComputerRecord, Desired, InstallationChange, InstallationRecord, Observed};

use crate::status::status;
use crate::{Control, Failure, app_catalog};

/// A step of progress that is worth an event, in percent.
const STEP: u8 = 5;
/// Before an agent that does not answer is asked again: at first, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long to wait for a database that does not answer.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// The computers whose apps this server has installed.
#[derive(Debug, Default)]
pub(crate) struct Installers(Mutex<HashSet<ComputerId>>);

/// The place of the one installer of a computer.
#[derive(Debug)]
struct Place {
    control: Control,
    computer: ComputerId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let installers = &self.control.inner.installers;
        installers.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.computer);
        // Something may have been selected while it was leaving.
        self.control.inner.hub.wake();
    }
}

impl Control {
    pub fn app_catalog(&self) -> Catalog {
        let apps = app_catalog::all();
        Catalog { total: apps.len(), apps }
    }

    pub async fn apps(&self, record: &ComputerRecord) -> Result<AppList, Failure> {
        let mut client = AppsClient::new(self.guest(record.id).await?);
        let found = client.list(ListAppsRequest {}).await.map_err(Failure::from_guest)?.into_inner().apps;
        let view = |app: roost_guest_proto::v1::App| App {
            id: app.id,
            name: app.name,
            exec: app.exec,
            icon: app.icon,
            categories: app.categories,
        };
        let apps: Vec<App> = found.into_iter().map(view).collect();
        let installations = self.installations(record.id).await?;
        Ok(AppList { computer_id: record.id, total: apps.len(), apps, installations })
    }

    /// Selects apps. They are installed as soon as the computer runs.
    pub async fn select_apps(
        &self,
        record: &ComputerRecord,
        request: SelectApps,
    ) -> Result<Installations, Failure> {
        let apps = request.apps.filter(|apps| !apps.is_empty()).ok_or_else(|| {
            let message = "apps is required: ids of the catalogue (GET /api/v1/apps/catalog)";
            Failure::new(ErrorCode::MissingParam, message)
        })?;
        let apps = app_catalog::check("apps", apps)?;
        if !self.inner.store.select_apps(record.id, &apps).await? {
            return Err(Failure::computer_not_found());
        }
        self.inner.hub.notify(record.id);
        let installations = self.installations(record.id).await?;
        Ok(Installations { computer_id: record.id, installations })
    }

    /// Starts a program on the desktop and returns when it was started.
    pub async fn launch_app(&self, id: ComputerId, request: LaunchRequest) -> Result<(), Failure> {
        let app = request.app_name.or(request.app).filter(|app| !app.is_empty()).ok_or_else(|| {
            Failure::new(ErrorCode::MissingParam, "app_name is required: the id or name of an app")
        })?;
        let mut client = AppsClient::new(self.guest(id).await?);
        let launched = client.launch(roost_guest_proto::v1::LaunchRequest { app }).await;
        launched.map(drop).map_err(|status| match status.code() {
            tonic::Code::NotFound => Failure::new(ErrorCode::NotFound, status.message()),
            tonic::Code::FailedPrecondition => Failure::new(ErrorCode::ResourceState, status.message()),
            _ => Failure::from_guest(status),
        })
    }

    async fn installations(&self, computer: ComputerId) -> Result<Vec<Installation>, Failure> {
        Ok(self.inner.store.installations(computer).await?.into_iter().map(view).collect())
    }

    /// Installs what is selected, for as long as this control plane lives.
    pub(crate) fn keep_installing(&self) {
        let mut changes = self.inner.hub.subscribe_to_all();
        let control = std::sync::Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                changes.mark_unchanged();
                let Some(inner) = control.upgrade() else { return };
                let looked = (Control { inner }).begin_installing().await;
                let waited = match looked {
                    Ok(()) => changes.changed().await,
                    Err(failure) => {
                        later(&failure, "failed to look for apps to install; trying again");
                        tokio::time::timeout(AFTER_FAILURE, changes.changed()).await.unwrap_or(Ok(()))
                    }
                };
                if waited.is_err() {
                    return;
                }
            }
        });
    }

    async fn begin_installing(&self) -> Result<(), Failure> {
        for computer in self.inner.store.installing_computers().await? {
            let mut installers = self.inner.installers.0.lock().unwrap_or_else(PoisonError::into_inner);
            if installers.insert(computer) {
                let place = Place { control: self.clone(), computer };
                let left = self.inner.engine.left();
                tokio::spawn(async move { left.run_until_cancelled(place.install_all()).await });
            }
        }
        Ok(())
    }
}

impl Place {
    /// Until nothing is left to install, or the computer does not run any more.
    async fn install_all(self) {
        let control = &self.control;
        let mut changes = control.inner.hub.subscribe(self.computer);
        let mut pause = PAUSE;
        loop {
            changes.mark_unchanged();
            match self.install_next().await {
                Ok(Next::Done) => return,
                Ok(Next::More) => pause = PAUSE,
                // The hub lives as long as this control plane.
                Ok(Next::NotYet) => drop(changes.changed().await),
                Err(failure) => {
                    later(&failure, "failed to follow an installation; trying again");
                    drop(tokio::time::timeout(pause, changes.changed()).await);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn install_next(&self) -> Result<Next, Failure> {
        let inner = &self.control.inner;
        let Some(record) = inner.store.computer(self.computer).await? else { return Ok(Next::Done) };
        if record.desired != Desired::Running || record.observed != Observed::Running {
            return Ok(Next::Done); // its next start brings an installer
        }
        if status(&record) != Status::Running {
            return Ok(Next::NotYet);
        }
        let Some(next) = inner.store.next_installation(self.computer).await? else { return Ok(Next::Done) };
        // An app that is being installed is use of the computer: it is not stopped half-way.
        let _busy = inner.idle.of(self.computer).busy();
        self.install(&next).await?;
        Ok(Next::More)
    }

    /// Follows one installation to its end. An error says nothing about it: it may go on.
    async fn install(&self, installation: &InstallationRecord) -> Result<(), Failure> {
        let app = &installation.app;
        let Some(entry) = app_catalog::find(app) else {
            let reason = format!("there is no app {app:?} in this server's catalogue");
            return self.record(app, InstallationChange::Failed(reason)).await;
        };
        let region = self.control.record(self.computer).await?.region;
        let mut client = AppsClient::new(self.control.unused_guest(self.computer, &region)?);
        let packages = entry.packages.iter().map(|package| (*package).to_owned()).collect();
        let mut replies = match client.install(InstallRequest { packages }).await {
            Ok(replies) => replies.into_inner(),
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                let reason = "this computer was made from an older template, whose agent cannot install apps";
                return self.record(app, InstallationChange::Failed(reason.to_owned())).await;
            }
            Err(status) => return Err(Failure::from_guest(status)),
        };
        let mut told = None;
        while let Some(reply) = replies.message().await.map_err(Failure::from_guest)? {
            match reply.state {
                Some(State::Installing(at)) => {
                    let percent = u8::try_from(at.percent.min(99)).unwrap_or(99);
                    if told.is_none_or(|told| percent >= told + STEP) {
                        self.record(app, InstallationChange::Progress(percent)).await?;
                        told = Some(percent);
                    }
                }
                Some(State::Installed(_)) => return self.record(app, InstallationChange::Installed).await,
                Some(State::Failed(reason)) => {
                    return self.record(app, InstallationChange::Failed(reason)).await;
                }
                None => {}
            }
        }
        Err(Failure::new(ErrorCode::AgentUnavailable, "the agent stopped telling how an installation goes"))
    }

    async fn record(&self, app: &str, change: InstallationChange) -> Result<(), Failure> {
        let inner = &self.control.inner;
        if inner.store.record_installation(self.computer, app, &change).await? {
            let computer = self.computer;
            match &change {
                InstallationChange::Progress(_) => {}
                InstallationChange::Installed => tracing::info!(%computer, app, "installed"),
                InstallationChange::Failed(reason) => {
                    tracing::warn!(%computer, app, reason, "an app could not be installed");
                }
            }
            inner.hub.wake();
        }
        Ok(())
    }
}

fn later(failure: &Failure, what: &str) {
    tracing::warn!(failure = failure as &dyn std::error::Error, "{what}");
}

enum Next {
    More,
    /// It is on its way to run.
    NotYet,
    Done,
}

fn view(record: InstallationRecord) -> Installation {
    Installation {
        status: record.state.status(),
        app: record.app,
        progress: record.progress,
        error: record.error,
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}
