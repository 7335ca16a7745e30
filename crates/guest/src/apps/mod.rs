//! Desktop programs: which there are, installing more of them, and starting them.

mod entry;
mod install;
mod launch;

use std::pin::Pin;

use futures_util::{Stream, stream};
use roost_guest_proto::v1::{
    InstallReply, InstallRequest, LaunchReply, LaunchRequest, ListAppsReply, ListAppsRequest,
    apps_server::Apps,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use self::{
    entry::Entry,
    install::{Installer, Progress},
};
use crate::{
    desktop::display::DisplayAddress,
    process::{Account, find_account},
    system::blocking,
};

#[derive(Debug)]
pub(crate) struct AppsService {
    user: String,
    display: DisplayAddress,
    installer: Installer,
}

impl AppsService {
    pub(crate) fn new(user: String, display: DisplayAddress) -> Self {
        Self { user, display, installer: Installer::default() }
    }

    fn account(&self) -> Result<Account, Status> {
        find_account(&self.user).map_err(|error| Status::internal(error.to_string()))
    }

    async fn entries(&self) -> Result<Vec<Entry>, Status> {
        let home = self.account()?.home;
        blocking(move || Ok::<_, Status>(entry::all(&home))).await
    }
}

#[tonic::async_trait]
impl Apps for AppsService {
    type InstallStream = Pin<Box<dyn Stream<Item = Result<InstallReply, Status>> + Send>>;

    async fn list(&self, _: Request<ListAppsRequest>) -> Result<Response<ListAppsReply>, Status> {
        let apps = self.entries().await?.into_iter().map(Entry::into_app).collect();
        Ok(Response::new(ListAppsReply { apps }))
    }

    async fn install(
        &self,
        request: Request<InstallRequest>,
    ) -> Result<Response<Self::InstallStream>, Status> {
        let packages = request.into_inner().packages;
        if packages.is_empty() {
            return Err(Status::invalid_argument("packages must name what to install"));
        }
        if let Some(name) = packages.iter().find(|name| !install::is_package(name)) {
            return Err(Status::invalid_argument(format!("`{name}` is no name of a Debian package")));
        }
        Ok(Response::new(Box::pin(follow(self.installer.install(packages)))))
    }

    async fn launch(&self, request: Request<LaunchRequest>) -> Result<Response<LaunchReply>, Status> {
        let wanted = request.into_inner().app;
        let entries = self.entries().await?;
        let (name, argv) = match entry::find(&entries, &wanted) {
            Some(entry) => (entry.id.as_str(), entry.command_line()),
            None if launch::is_program(&wanted) => (wanted.as_str(), vec![wanted.clone()]),
            None => return Err(Status::not_found(format!("there is no app `{wanted}` on this computer"))),
        };
        launch::start(&self.account()?, &self.display, name, &argv).await?;
        Ok(Response::new(LaunchReply {}))
    }
}

/// What is so now, then every change, up to and including the end.
fn follow(progress: watch::Receiver<Progress>) -> impl Stream<Item = Result<InstallReply, Status>> + Send {
    stream::unfold(Some((progress, true)), |place| async move {
        let (mut progress, is_first) = place?;
        if !is_first && progress.changed().await.is_err() {
            return Some((Err(Status::internal("the agent failed to install it")), None));
        }
        let now = progress.borrow_and_update().clone();
        let next = (!now.is_final()).then_some((progress, false));
        Some((Ok(now.into_reply()), next))
    })
}
