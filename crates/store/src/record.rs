//! Rows as the rest of Roost sees them.

use std::collections::BTreeMap;

use roost_api::{
    ComputerId, ProjectId, Size, TenantId, Timestamp, UserId, Visibility, WorkflowId, WorkspaceId,
};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::StoreError;

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
    }
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
    pub auto_stop: u32,
    pub desired: Desired,
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
}

/// One run of a workflow.
#[derive(Debug, Clone)]
pub struct WorkflowRecord {
    pub id: WorkflowId,
    pub computer: ComputerId,
    pub kind: WorkflowKind,
    pub generation: u64,
    /// How many steps are done.
    pub step: usize,
    /// Set while it is being undone.
    pub error: Option<String>,
}

impl ComputerRecord {
    pub(crate) fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
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
        })
    }
}

impl WorkflowRecord {
    pub(crate) fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            computer: parsed(row, "computer_id")?,
            kind: parsed(row, "kind")?,
            generation: number(row, "generation")?,
            step: number(row, "step")?,
            error: row.try_get("error")?,
        })
    }
}

pub(crate) fn parsed<T: std::str::FromStr>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| StoreError::Corrupt { what: format!("{column} {text:?}") })
}

fn json<T: serde::de::DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|_| StoreError::Corrupt { what: format!("{column} {text:?}") })
}

fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    let value: i64 = row.try_get(column)?;
    T::try_from(value).map_err(|_| StoreError::Corrupt { what: format!("{column} {value}") })
}

fn time(row: &SqliteRow, column: &str) -> Result<Timestamp, StoreError> {
    let micros: i64 = row.try_get(column)?;
    Timestamp::from_micros(micros).ok_or_else(|| StoreError::Corrupt { what: format!("{column} {micros}") })
}

fn optional_time(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    let micros: Option<i64> = row.try_get(column)?;
    micros
        .map(|micros| {
            Timestamp::from_micros(micros)
                .ok_or_else(|| StoreError::Corrupt { what: format!("{column} {micros}") })
        })
        .transpose()
}

fn visibility(row: &SqliteRow) -> Result<Visibility, StoreError> {
    let text: String = row.try_get("visibility")?;
    Visibility::parse(&text).ok_or_else(|| StoreError::Corrupt { what: format!("visibility {text:?}") })
}
