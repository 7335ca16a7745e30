//! Rows as the rest of Roost sees them.

use std::collections::BTreeMap;

use roost_api::{
    ComputerId, LayerId, ProjectId, RegionName, ScreenSize, Size, SnapshotId, TenantId, Timestamp, UserId,
    Visibility, WorkflowId, WorkspaceId,
};
use serde::{Deserialize, Serialize};
use sqlx::Row;

use crate::{DbRow, StoreError};

macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($variant),+
        }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text),+
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = StoreError;

            fn from_str(text: &str) -> Result<Self, StoreError> {
                match text {
                    $($text => Ok($name::$variant),)+
                    _ => Err(StoreError::Corrupt { what: format!(concat!(stringify!($name), " {:?}"), text) }),
                }
            }
        }
    };
}

pub(crate) use text_enum;

text_enum!(
    /// What the user asked for.
    Desired { Running = "running", Stopped = "stopped", Deleted = "deleted" }
);

text_enum!(
    /// What the machine process of the current generation last reported.
    Observed {
        // There is no process: it was not started yet, or it vanished without leaving an outcome.
        Absent = "absent",
        Preparing = "preparing",
        Booting = "booting",
        Running = "running",
        Stopping = "stopping",
        Stopped = "stopped",
        Failed = "failed",
    }
);

text_enum!(
    /// What the control plane can be doing with a computer.
    WorkflowKind {
        Create = "create",
        Start = "start",
        Stop = "stop",
        Restart = "restart",
        Delete = "delete",
        // Keeps the state of the computer as a snapshot and a layer.
        Capture = "capture",
        Resize = "resize",
        // Brings the computer's files to another region.
        Move = "move",
    }
);

impl WorkflowKind {
    /// Work of a moment that does not show in the computer's status. Verbs wait for it instead of being
    /// refused.
    pub fn is_brief(self) -> bool {
        match self {
            WorkflowKind::Capture | WorkflowKind::Resize | WorkflowKind::Move => true,
            WorkflowKind::Create
            | WorkflowKind::Start
            | WorkflowKind::Stop
            | WorkflowKind::Restart
            | WorkflowKind::Delete => false,
        }
    }

    /// Whether it opens layers one after the other, each by the name that the one before has for it: none of them
    /// may go meanwhile.
    pub fn reads_layers(self) -> bool {
        match self {
            WorkflowKind::Create | WorkflowKind::Start | WorkflowKind::Restart | WorkflowKind::Move => true,
            WorkflowKind::Stop | WorkflowKind::Delete | WorkflowKind::Capture | WorkflowKind::Resize => false,
        }
    }

    /// Whether a machine is started by it.
    pub fn launches(self) -> bool {
        match self {
            WorkflowKind::Create | WorkflowKind::Start | WorkflowKind::Restart => true,
            WorkflowKind::Stop
            | WorkflowKind::Delete
            | WorkflowKind::Capture
            | WorkflowKind::Resize
            | WorkflowKind::Move => false,
        }
    }
}

text_enum!(
    /// Why a snapshot was taken.
    SnapshotPurpose {
        // A user asked for it.
        Snapshot = "snapshot",
        // The hidden half of a clone; it goes when the clone has started.
        Clone = "clone",
    }
);

text_enum!(
    SnapshotStatus {
        Creating = "creating",
        Ready = "ready",
        Failed = "failed",
        // Nobody sees it any more; its files are being removed.
        Deleted = "deleted",
    }
);

text_enum!(
    /// How far the installation of an app is.
    InstallationState {
        Waiting = "waiting",
        Installing = "installing",
        Installed = "installed",
        Failed = "failed",
    }
);

text_enum!(
    /// How far the script of a computer is.
    SetupState { Waiting = "waiting", Running = "running", Completed = "completed", Failed = "failed" }
);

text_enum!(
    /// How far the delivery of an event to a webhook is.
    DeliveryState { Pending = "pending", Delivered = "delivered", Failed = "failed" }
);

/// One computer, with the workflow that is at work on it.
#[derive(Debug, Clone)]
pub struct ComputerRecord {
    pub id: ComputerId,
    pub tenant_id: TenantId,
    pub owner_user_id: UserId,
    pub workspace_id: WorkspaceId,
    pub project_id: ProjectId,
    pub name: String,
    pub slug: String,
    pub template_type: String,
    pub template_digest: String,
    pub size: Size,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub selected_apps: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    pub visibility: Visibility,
    pub agent_session_id: Option<String>,
    /// Idle seconds before it is stopped; 0 is never.
    pub auto_stop: u32,
    /// Seconds after each start after which it is stopped; 0 is never.
    pub timeout: u32,
    pub screen: ScreenSize,
    /// How far its script is; `None` where it has none.
    pub setup: Option<SetupState>,
    /// When it was last used, as far as it is written down.
    pub last_active_at: Option<Timestamp>,
    pub desired: Desired,
    /// The domain of its ports, where its project, workspace or tenant has one of its own.
    pub preview_domain: Option<String>,
    /// The workflow at work, if any: what the control plane intends.
    pub intended: Option<WorkflowKind>,
    pub generation: u64,
    pub provisioned: bool,
    pub observed: Observed,
    pub failure: Option<String>,
    pub failure_console: Vec<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ready_at: Option<Timestamp>,
    /// The layer the disk lies on; `None` is a template.
    pub layer: Option<LayerId>,
    /// What the first start continues from; `None` once it has succeeded.
    pub snapshot: Option<SnapshotId>,
    /// The newest snapshot of this computer's history.
    pub last_snapshot: Option<SnapshotId>,
    /// Why the last start booted although there was saved memory.
    pub memory_lost: Option<String>,
    /// Whether it is started again after the host was.
    pub always_on: bool,
    /// The virtual size of the disk.
    pub disk_gib: u32,
    /// Where its files are.
    pub region: RegionName,
}

/// What a computer made from a snapshot takes over, beyond what has a column.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotAttributes {
    pub owner_user_id: UserId,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub selected_apps: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    pub visibility: Visibility,
    /// Snapshots of earlier versions have none.
    #[serde(default)]
    pub auto_stop: u32,
    #[serde(default)]
    pub timeout: u32,
    #[serde(default = "default_screen")]
    pub screen: ScreenSize,
}

fn default_screen() -> ScreenSize {
    ScreenSize::DEFAULT
}

/// A state of a computer that is kept.
#[derive(Debug, Clone)]
pub struct SnapshotRecord {
    pub id: SnapshotId,
    pub tenant_id: TenantId,
    pub computer_id: ComputerId,
    pub computer_name: String,
    pub workspace_id: WorkspaceId,
    pub project_id: ProjectId,
    pub attributes: SnapshotAttributes,
    pub purpose: SnapshotPurpose,
    pub name: Option<String>,
    pub comment: Option<String>,
    pub status: SnapshotStatus,
    /// What is being done, while it is being taken.
    pub step: Option<String>,
    /// Percent.
    pub progress: u8,
    pub error: Option<String>,
    /// There is one exactly when it is ready.
    pub layer: Option<LayerId>,
    pub template_type: String,
    pub template_digest: String,
    pub size: Size,
    pub disk_gib: u32,
    /// `None` for a computer that was shut down.
    pub memory_bytes: Option<u64>,
    pub disk_bytes: u64,
    /// How long the computer stood still, in microseconds.
    pub pause_us: Option<u64>,
    pub keep: bool,
    pub expires_at: Option<Timestamp>,
    pub retention_seconds: Option<u64>,
    pub parent: Option<SnapshotId>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
    /// Whether a computer is being made from it now.
    pub restoring: bool,
    /// Where its files are.
    pub region: RegionName,
}

/// What a workflow needs to know beyond its computer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WorkflowPayload {
    Capture { snapshot: SnapshotId, layer: LayerId },
    Resize { size: Size },
    Move { from: RegionName, to: RegionName },
}

/// One run of a workflow.
#[derive(Debug, Clone)]
pub struct WorkflowRecord {
    pub id: WorkflowId,
    pub computer: ComputerId,
    pub kind: WorkflowKind,
    pub generation: u64,
    /// From which step on it is undone; 0 while it goes forward.
    pub step: usize,
    /// Set while it is being undone.
    pub error: Option<String>,
    /// The code of `error`.
    pub error_code: Option<String>,
    pub payload: Option<WorkflowPayload>,
    /// It is to be given up.
    pub is_cancelled: bool,
    pub is_finished: bool,
}

impl ComputerRecord {
    pub(crate) fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant_id: parsed(row, "tenant_id")?,
            owner_user_id: parsed(row, "owner_user_id")?,
            workspace_id: parsed(row, "workspace_id")?,
            project_id: parsed(row, "project_id")?,
            name: row.try_get("name")?,
            slug: row.try_get("slug")?,
            template_type: row.try_get("template_type")?,
            template_digest: row.try_get("template_digest")?,
            size: parsed(row, "size")?,
            external_workspace_id: row.try_get("external_workspace_id")?,
            external_user_id: row.try_get("external_user_id")?,
            external_project_id: row.try_get("external_project_id")?,
            selected_apps: json(row, "selected_apps")?,
            metadata: json(row, "metadata")?,
            visibility: visibility(row)?,
            agent_session_id: row.try_get("agent_session_id")?,
            auto_stop: number(row, "auto_stop")?,
            timeout: number(row, "timeout_sec")?,
            screen: parsed(row, "resolution")?,
            setup: optional(row, "setup_state")?,
            last_active_at: optional_time(row, "last_active_at")?,
            preview_domain: row.try_get("preview_domain")?,
            desired: parsed(row, "desired")?,
            intended: row
                .try_get::<Option<String>, _>("intended")?
                .map(|kind| kind.parse::<WorkflowKind>())
                .transpose()?,
            generation: number(row, "generation")?,
            provisioned: row.try_get::<i64, _>("provisioned")? != 0,
            observed: parsed(row, "observed")?,
            failure: row.try_get("failure")?,
            failure_console: json(row, "failure_console")?,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
            started_at: optional_time(row, "started_at")?,
            ready_at: optional_time(row, "ready_at")?,
            layer: optional(row, "layer_id")?,
            snapshot: optional(row, "snapshot_id")?,
            last_snapshot: optional(row, "last_snapshot_id")?,
            memory_lost: row.try_get("memory_lost")?,
            always_on: row.try_get::<i64, _>("always_on")? != 0,
            disk_gib: number(row, "disk_gib")?,
            region: parsed(row, "region")?,
        })
    }
}

impl SnapshotRecord {
    pub(crate) fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant_id: parsed(row, "tenant_id")?,
            computer_id: parsed(row, "computer_id")?,
            computer_name: row.try_get("computer_name")?,
            workspace_id: parsed(row, "workspace_id")?,
            project_id: parsed(row, "project_id")?,
            attributes: json(row, "attributes")?,
            purpose: parsed(row, "purpose")?,
            name: row.try_get("name")?,
            comment: row.try_get("comment")?,
            status: parsed(row, "status")?,
            step: row.try_get("step")?,
            progress: number(row, "progress")?,
            error: row.try_get("error")?,
            layer: optional(row, "layer_id")?,
            template_type: row.try_get("template_type")?,
            template_digest: row.try_get("template_digest")?,
            size: parsed(row, "size")?,
            disk_gib: number(row, "disk_gib")?,
            memory_bytes: optional_number(row, "memory_bytes")?,
            disk_bytes: number(row, "disk_bytes")?,
            pause_us: optional_number(row, "pause_us")?,
            keep: row.try_get::<i64, _>("keep")? != 0,
            expires_at: optional_time(row, "expires_at")?,
            retention_seconds: optional_number(row, "retention_seconds")?,
            parent: optional(row, "parent_snapshot_id")?,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
            last_used_at: optional_time(row, "last_used_at")?,
            restoring: row.try_get::<i64, _>("restoring")? != 0,
            region: parsed(row, "region")?,
        })
    }
}

impl WorkflowRecord {
    pub(crate) fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            computer: parsed(row, "computer_id")?,
            kind: parsed(row, "kind")?,
            generation: number(row, "generation")?,
            step: number(row, "step")?,
            error: row.try_get("error")?,
            error_code: row.try_get("error_code")?,
            is_cancelled: row.try_get::<i64, _>("cancelled")? != 0,
            is_finished: row.try_get::<Option<i64>, _>("finished_at")?.is_some(),
            payload: match row.try_get::<Option<String>, _>("payload")? {
                Some(_) => Some(json(row, "payload")?),
                None => None,
            },
        })
    }
}

pub(crate) fn parsed<T: std::str::FromStr>(row: &DbRow, column: &str) -> Result<T, StoreError> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| StoreError::Corrupt { what: format!("{column} {text:?}") })
}

/// An id that may be null.
pub(crate) fn optional<T: std::str::FromStr>(row: &DbRow, column: &str) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.try_get(column)?;
    let parse =
        |text: String| text.parse().map_err(|_| StoreError::Corrupt { what: format!("{column} {text:?}") });
    text.map(parse).transpose()
}

pub(crate) fn json<T: serde::de::DeserializeOwned>(row: &DbRow, column: &str) -> Result<T, StoreError> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|_| StoreError::Corrupt { what: format!("{column} {text:?}") })
}

pub(crate) fn number<T: TryFrom<i64>>(row: &DbRow, column: &str) -> Result<T, StoreError> {
    let value: i64 = row.try_get(column)?;
    T::try_from(value).map_err(|_| StoreError::Corrupt { what: format!("{column} {value}") })
}

pub(crate) fn optional_number<T: TryFrom<i64>>(row: &DbRow, column: &str) -> Result<Option<T>, StoreError> {
    match row.try_get::<Option<i64>, _>(column)? {
        Some(_) => number(row, column).map(Some),
        None => Ok(None),
    }
}

pub(crate) fn time(row: &DbRow, column: &str) -> Result<Timestamp, StoreError> {
    let micros: i64 = row.try_get(column)?;
    Timestamp::from_micros(micros).ok_or_else(|| StoreError::Corrupt { what: format!("{column} {micros}") })
}

pub(crate) fn optional_time(row: &DbRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    let micros: Option<i64> = row.try_get(column)?;
    micros
        .map(|micros| {
            Timestamp::from_micros(micros)
                .ok_or_else(|| StoreError::Corrupt { what: format!("{column} {micros}") })
        })
        .transpose()
}

fn visibility(row: &DbRow) -> Result<Visibility, StoreError> {
    let text: String = row.try_get("visibility")?;
    Visibility::parse(&text).ok_or_else(|| StoreError::Corrupt { what: format!("visibility {text:?}") })
}
