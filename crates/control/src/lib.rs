//! What Roost does: use cases, the state machine, durable workflows, reconcilers.
//!
//! ```text
//!   use case (computers, snapshots, exec, desktop, connection)
//!       | begins                          | speaks to the guest through
//!   workflow engine --- steps ---------> Launcher ---> machine process ---> guest agent
//!       | records                         | pushes reports
//!   store <---------- observer -----------+
//! ```
//!
//! A computer has three states: what the user **desires**, what a workflow **intends** right now, and what
//! its machine process was **observed** to be. Its public status is a pure function of the three
//! ([`status`]). Nobody polls: machines push reports, the [`hub`] wakes who waits. What becomes of a status is an
//! event, written with the change that made it so; [`events`] hands it to everybody who listens.
//!
//! This crate knows nothing about HTTP, SQL text or QEMU.

mod access;
mod actions;
mod app_catalog;
mod apps;
mod callers;
mod catalog;
mod computers;
mod connection;
mod credits;
mod desktop;
mod domains;
mod env;
mod events;
mod exec;
mod failure;
mod files;
mod guest;
mod guest_events;
mod hub;
mod idempotency;
mod idle;

mod keyfile;
mod keys;
mod layers;
mod logs;
mod metrics;
mod moves;
mod observer;
mod places;
mod policies;
mod ports;
mod presets;
mod preview;
mod quotas;
mod regions;
mod retention;
mod rotate;
mod seal;
mod servers;
mod settings;
mod setup;
mod shares;
mod slug;
mod snapshot_files;
mod snapshots;
mod tenants;
mod terminal;
mod tickets;
mod token;
mod tunnel;
mod viewer;
pub mod warm;
mod webhooks;
mod workflow;

use std::fmt::Debug;
use std::sync::Arc;

use camino::Utf8PathBuf;
use roost_api::{ComputerId, Size, SnapshotId, Timestamp};
use roost_machine_proto::{Accelerator, NetworkSpec};
use roost_store::{Home, Store};

pub use access::{Act, Scope};
pub use computers::Created;
pub use connection::{StreamAccess, StreamViewer};
pub use credits::CreditConfig;
pub use desktop::{Picture, WindowChange};
pub use domains::{Resolver, SystemResolver};
pub use env::VariableOutcome;
pub use events::Frame;
pub use exec::{ExecCommand, ExecLine, ExecLines, ExecOutputs, ExecSession, terminal_size};
pub use failure::Failure;
pub use files::{DEFAULT_DIRECTORY, FileConfig, FileDownload, FileUpload, modified_at};
pub use guest_events::GuestSubscription;
pub use idempotency::{Admission, Operation, Running, answer_lost};
pub use keys::{AdminKey, first_key, key_view};
pub use places::{MadeWorkspace, project_view, workspace_view};
pub use ports::ExposedPort;
pub use preview::{Answer, Decision, Door, Place, Session, Visitor};
pub use regions::Regions;
pub use retention::EventRetention;
pub use roost_guest_proto::v1::TerminalSize;
pub use roost_guest_proto::v1::{FileChange, FileEvent, FileInfo, FileKind};
pub use roost_store::{
    Caller, ComputerRecord, DomainOwner, EventScope, KeyForm, KeyRecord, ProjectRecord, SettingsKind,
    SnapshotRecord, TenantRecord, UserRecord, WebhookRecord, WorkspaceRecord, status,
};
pub use rotate::{Resealed, reseal};
pub use seal::{NotSealKeys, SealKey};
pub use servers::Sharing;
pub use snapshot_files::{Chunks, Download};
pub use snapshots::Restored;
pub use tenants::tenant_view;
pub use terminal::{TerminalOutputs, TerminalViewer};
pub use token::{StreamKey, StreamRights, looks_like_ours};
pub use tunnel::{Tunnel, TunnelIo, TunnelOutputs};
pub use webhooks::Outbound;
pub use workflow::{NoHook, Step, StepHook, plan};

/// The files of one template build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateFiles {
    pub digest: String,
    pub base: Utf8PathBuf,
    pub kernel: Utf8PathBuf,
    pub initrd: Utf8PathBuf,
}

/// A template that continues instead of booting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmFiles {
    pub disk: Utf8PathBuf,
    /// The directory of the memory that belongs to the disk.
    pub memory: Utf8PathBuf,
}

/// A template could not be looked up.
#[derive(Debug, thiserror::Error)]
#[error("failed to look a template up")]
pub struct TemplateError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Which templates this host has.
pub trait Templates: Debug + Send + Sync + 'static {
    /// The build that new computers start from.
    fn current(&self, name: &str) -> Result<Option<TemplateFiles>, TemplateError>;
    /// The build a computer was made from.
    fn build(&self, name: &str, digest: &str) -> Result<Option<TemplateFiles>, TemplateError>;
    /// That build with its memory, for computers of one size on this host. There may be none yet.
    fn warm(&self, name: &str, digest: &str, size: Size) -> Result<Option<WarmFiles>, TemplateError>;
    /// The directory in which [`Templates::warm`] looks for it.
    fn warm_target(&self, name: &str, digest: &str, size: Size) -> Result<Utf8PathBuf, TemplateError>;
    /// When the build that new computers start from was made, where that is known.
    fn created(&self, _name: &str) -> Result<Option<Timestamp>, TemplateError> {
        Ok(None)
    }
}

/// How clients reach this server.
#[derive(Debug, Clone)]
pub struct PublicUrls {
    /// Where the API is, without a trailing slash: `http://127.0.0.1:8080`.
    pub origin: String,
    /// `http` or `https`, for host names below `domain`.
    pub scheme: String,
    /// The domain of computers with its port where that is not the scheme's own: `localhost:8080`.
    pub domain: String,
}

#[derive(Debug)]
pub struct Config {
    pub urls: PublicUrls,
    pub accelerator: Accelerator,
    pub network: NetworkSpec,
    pub stream_key: StreamKey,
    pub seal_key: SealKey,
    /// Where layers and templates are: the only files that the disk of a snapshot may consist of.
    pub disk_directories: Vec<Utf8PathBuf>,
    pub events: EventRetention,
    /// How webhooks are told.
    pub outbound: Arc<dyn Outbound>,
    /// How it is found out where domains lead.
    pub resolver: Arc<dyn Resolver>,
    pub credits: CreditConfig,
    pub sharing: Sharing,
    pub files: FileConfig,
}

/// The control plane. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    regions: Regions,
    templates: Arc<dyn Templates>,
    home: Home,
    config: Config,
    hub: hub::Hub<ComputerId>,
    snapshot_hub: hub::Hub<SnapshotId>,
    callers: callers::Callers,
    log: events::Log,
    requests: idempotency::Requests,
    teller: webhooks::Teller,
    storage: layers::Storage,
    readers: snapshot_files::Readers,
    warm: warm::Builds,
    viewers: viewer::Viewers,
    seat: servers::Seat,
    /// Told when another server has left.
    look: Arc<tokio::sync::Notify>,
    engine: workflow::Engine,
    observers: observer::Observers,
    guests: guest::Guests,
    buses: desktop::Buses,
    idle: idle::Idle,
    installers: apps::Installers,
    setups: setup::Setups,
    samples: metrics::Samples,
    meter: credits::Meter,
}

impl Control {
    /// Opens the control plane: picks up every computer and every unfinished workflow where it is.
    pub async fn start(
        store: Store,
        regions: impl Into<Regions>,
        templates: Arc<dyn Templates>,
        config: Config,
        hook: Arc<dyn StepHook>,
    ) -> Result<Self, Failure> {
        let home = store.home().await?;
        let seat = servers::Seat::take(&config.sharing, store.server()).map_err(Failure::internal)?;
        // Before anything is read that a change may follow.
        let changes = store.changes().await?;
        let control = Self {
            inner: Arc::new(Inner {
                store,
                regions: regions.into(),
                templates,
                home,
                config,
                hub: hub::Hub::default(),
                snapshot_hub: hub::Hub::default(),
                callers: callers::Callers::default(),
                log: events::Log::default(),
                requests: idempotency::Requests::default(),
                teller: webhooks::Teller::default(),
                storage: layers::Storage::default(),
                readers: snapshot_files::Readers::default(),
                warm: warm::Builds::default(),
                viewers: viewer::Viewers::default(),
                seat,
                look: Arc::default(),
                engine: workflow::Engine::new(hook),
                observers: observer::Observers::default(),
                guests: guest::Guests::default(),
                buses: desktop::Buses::default(),
                idle: idle::Idle::default(),
                installers: apps::Installers::default(),
                setups: setup::Setups::default(),
                samples: metrics::Samples::default(),
                meter: credits::Meter::default(),
            }),
        };
        control.tail_events().await?;
        control.open_books().await?;
        control.join(changes).await?;
        control.inner.store.begin_missing_runs().await?;
        control.keep_storage();
        control.keep_books();
        control.keep_samples();
        control.keep_activity();
        control.stop_idle_computers();
        control.keep_installing();
        control.keep_setting_up();
        control.keep_retention();
        control.keep_telling();
        Ok(control)
    }

    /// Whether the database answers.
    pub async fn healthy(&self) -> Result<(), Failure> {
        self.inner.store.ping().await.map_err(|error| Failure {
            public: roost_api::ApiError::new(
                roost_api::ErrorCode::Unavailable,
                "the database does not answer; the server's log has the details",
            ),
            source: Some(Box::new(error)),
        })
    }
}
