//! The computer and the bodies of its CRUD and lifecycle routes.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{ComputerId, ProjectId, Size, TenantId, Timestamp, UserId, WorkspaceId};

/// Where a computer is in its life, as callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Created; its virtual machine is being built.
    Provisioning,
    /// Booting or resuming.
    Starting,
    /// Usable.
    Running,
    Stopping,
    /// Off; the disk is kept.
    Stopped,
    /// It failed. `start` tries again; the disk is kept.
    Error,
    /// Being deleted.
    Destroying,
}

impl Status {
    pub const ALL: [Status; 7] = [
        Status::Provisioning,
        Status::Starting,
        Status::Running,
        Status::Stopping,
        Status::Stopped,
        Status::Error,
        Status::Destroying,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Provisioning => "provisioning",
            Status::Starting => "starting",
            Status::Running => "running",
            Status::Stopping => "stopping",
            Status::Stopped => "stopped",
            Status::Error => "error",
            Status::Destroying => "destroying",
        }
    }

    /// The reduced set that one published client knows as `state`.
    pub fn state(self) -> &'static str {
        match self {
            Status::Provisioning | Status::Starting => "starting",
            Status::Running => "running",
            Status::Stopping | Status::Stopped => "stopped",
            Status::Error => "error",
            Status::Destroying => "destroying",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who may see the computer's web previews by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    Public,
    Tenant,
    Key,
}

impl Visibility {
    pub fn as_str(self) -> &'static str {
        match self {
            Visibility::Public => "public",
            Visibility::Tenant => "tenant",
            Visibility::Key => "key",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Public, Self::Tenant, Self::Key].into_iter().find(|value| value.as_str() == text)
    }
}

/// A computer, as every route answers it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Computer {
    pub id: ComputerId,
    pub tenant_id: TenantId,
    pub owner_user_id: UserId,
    /// Display name; several computers may share one.
    pub name: String,
    /// Unique and safe in host names. Stays when the computer is renamed.
    pub slug: String,
    pub template_type: String,
    pub size: Size,
    pub vcpus: u32,
    /// The same as `vcpus`.
    pub cpu_count: u32,
    /// MiB.
    pub memory_mb: u32,
    /// The virtual size of the disk in MiB.
    pub disk_size_mb: u32,
    pub status: Status,
    /// `status` reduced to fewer words: `starting`, `running`, `stopped`, `error`, `destroying`.
    pub state: String,
    /// True exactly when `status` is `running`.
    pub ready: bool,
    /// Id of the virtual machine; null before there was one.
    pub vm_id: Option<String>,
    pub workspace_id: WorkspaceId,
    pub project_id: ProjectId,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    /// Legacy preview address; use `desktop_url`.
    pub sandbox_url: String,
    pub desktop_url: String,
    pub preview_domain: String,
    /// Always null: a computer is behind its host, and reached through the addresses above.
    pub ip_address: Option<String>,
    pub selected_apps: Vec<String>,
    pub settings: Map<String, Value>,
    pub ai_config: Map<String, Value>,
    pub agent_session_id: Option<String>,
    pub agent_status: Option<String>,
    /// Width x height in pixels.
    pub resolution: String,
    /// Idle seconds before it stops by itself; 0 is never.
    pub auto_stop: u32,
    /// Seconds after each start after which it is stopped; null is never.
    pub timeout_sec: Option<u32>,
    /// How long it may run on, where `timeout_sec` says so and it runs.
    pub timeout_remaining_ms: Option<i64>,
    /// How far the script is that was given as `setup_file`: `waiting`, `running`, `completed` or `failed`; null where
    /// there is none.
    pub setup_status: Option<SetupStatus>,
    pub region: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub visibility: Visibility,
    pub persistent: bool,
    /// Whether it is started again after the host was restarted.
    pub always_on: bool,
    /// Why the last start booted although there was saved memory to continue from; null when nothing was lost.
    /// An extension of the public API.
    pub memory_lost: Option<String>,
    /// Why `status` is `error`, and what to do.
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ready_at: Option<Timestamp>,
    /// Always null: what is destroyed is gone.
    pub destroyed_at: Option<Timestamp>,
}

/// Body of `POST /computers`. Unknown fields are ignored.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateComputer {
    /// Required.
    pub name: Option<String>,
    /// Required: `miosa-desktop`.
    pub template_type: Option<String>,
    /// Stands in for `template_type` where that is absent.
    pub template_id: Option<String>,
    /// `xs`, `small` (default), `medium`, `large` or `xl`.
    pub size: Option<String>,
    /// With the next two, instead of `size`: the smallest size that has at least this.
    pub cpu_count: Option<u32>,
    /// MiB.
    pub memory_mb: Option<u32>,
    /// MiB.
    pub disk_size_mb: Option<u32>,
    /// None has a GPU: 0 and an empty model are all that is accepted.
    pub gpu_count: Option<u32>,
    pub gpu_model: Option<String>,
    /// Where it is placed; `local` by default.
    pub region: Option<String>,
    /// Apps of the catalogue (`GET /apps/catalog`) to install once it runs.
    pub selected_apps: Option<Vec<String>>,
    pub workspace_id: Option<Uuid>,
    /// An existing workspace, or one that is made with this slug.
    pub workspace_slug: Option<String>,
    /// Of a workspace that is made.
    pub workspace_name: Option<String>,
    pub project_id: Option<Uuid>,
    /// An existing project of the workspace, or one that is made with this slug.
    pub project_slug: Option<String>,
    /// Of a project that is made.
    pub project_name: Option<String>,
    /// Your own id of a customer. Without a workspace, the one that has it, or one that is made.
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    /// Without a project, the one of the workspace that has it, or one that is made.
    pub external_project_id: Option<String>,
    pub metadata: Option<Map<String, Value>>,
    pub visibility: Option<Visibility>,
    /// Idle seconds before it stops by itself; 0 (default) is never.
    pub idle_timeout_sec: Option<u32>,
    /// Seconds after each start after which it is stopped with its memory, used or not; 0 (default) is never.
    pub timeout_sec: Option<u32>,
    /// A script that is run once, as the desktop user, when the computer runs for the first time: UTF-8, at most
    /// 64 KiB. `GET /computers/{id}/setup` says how it went.
    pub setup_file: Option<Value>,
    /// Start it again after the host was restarted, and never stop it because it is idle.
    pub always_on: Option<bool>,
    /// Environment variables, as if set one by one.
    pub env: Option<BTreeMap<String, String>>,
    /// Nothing waits for room here: without it the answer is 503 `NO_READY_MACHINE`, whatever this says.
    pub fail_fast: Option<bool>,
}

/// How far the script of a computer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SetupStatus {
    /// The computer has not run yet.
    Waiting,
    Running,
    /// It ended with exit code 0.
    Completed,
    /// It ended with another exit code, or did not come to its end. The computer is as it is.
    Failed,
}

/// Answer of `GET /computers/{id}/setup`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Setup {
    pub computer_id: ComputerId,
    /// Null: the computer was made without a script.
    pub status: Option<SetupStatus>,
    pub exit_code: Option<i32>,
    /// What it said, the last 64 KiB; null as long as it runs.
    pub output: Option<String>,
    /// Why it did not come to its end.
    pub error: Option<String>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

/// Body of `POST /computers/{id}/start`.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct StartComputer {
    /// Environment variables beside the computer's own, until its next start.
    pub env: Option<BTreeMap<String, String>>,
}

// Values are secrets: what is printed of a request does not have them.
impl std::fmt::Debug for StartComputer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.env.as_ref().map(|env| env.keys().collect::<Vec<_>>());
        f.debug_struct("StartComputer").field("names", &names).finish_non_exhaustive()
    }
}

/// Query of `POST /computers`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CreateQuery {
    /// `true` (30 s) or 2 to 120 seconds: answer when the computer runs, when it failed, or when the time is over.
    /// The header `X-MIOSA-Wait-Outcome` says which: `ready`, `error` or `timeout`.
    pub wait: Option<String>,
    /// As in the body.
    pub fail_fast: Option<bool>,
}

/// Body of `PATCH` and `PUT /computers/{id}`. A field that is absent stays as it is.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdateComputer {
    /// Null unlinks the session.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub agent_session_id: Option<Option<String>>,
    pub name: Option<String>,
    /// Replaces all metadata.
    pub metadata: Option<Map<String, Value>>,
    pub visibility: Option<Visibility>,
    pub always_on: Option<bool>,
    /// Seconds after its last start after which it is stopped; 0 and null are never.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    pub timeout_sec: Option<Option<u32>>,
}

/// Tells a field that is null from one that is absent.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Query of `GET /computers`. Filters combine with AND; without paging parameters all rows come.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListComputers {
    pub workspace_id: Option<String>,
    pub project_id: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub status: Option<String>,
    /// Like `status`; also takes the words of the field `state`.
    pub state: Option<String>,
    /// Part of a name, slug or id.
    pub search: Option<String>,
    /// `created-desc` (default), `created-asc`, `updated-desc`, `updated-asc`, `name-asc` or `name-desc`.
    pub sort: Option<String>,
    /// From 1.
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub page: Option<u32>,
    /// Rows a page, 1 to 100 (20); `per_page` and `limit` say the same.
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub page_size: Option<u32>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub per_page: Option<u32>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub limit: Option<u32>,
}

/// How a list of computers is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    Newest,
    Oldest,
    LastChanged,
    FirstChanged,
    Name,
    NameBackwards,
}

impl Order {
    pub const ALL: [Order; 6] = [
        Order::Newest,
        Order::Oldest,
        Order::LastChanged,
        Order::FirstChanged,
        Order::Name,
        Order::NameBackwards,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Order::Newest => "created-desc",
            Order::Oldest => "created-asc",
            Order::LastChanged => "updated-desc",
            Order::FirstChanged => "updated-asc",
            Order::Name => "name-asc",
            Order::NameBackwards => "name-desc",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.as_str() == text)
    }
}

/// Answer of `GET /computers`, newest first unless `sort` says otherwise.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ComputerList {
    pub computers: Vec<Computer>,
    /// All matches, not only this page.
    pub total: u64,
    /// The same rows again, where other clients look for them.
    pub data: Vec<Computer>,
    pub meta: PageMeta,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PageMeta {
    pub page: u32,
    pub per_page: u64,
    pub limit: u64,
    pub total: u64,
    pub total_pages: u64,
    pub has_next_page: bool,
    pub next_cursor: Option<String>,
}

/// Answer of `DELETE /computers/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Deleted {
    pub id: ComputerId,
    pub deleted: bool,
}

/// Answer of `GET /computers/{id}/readiness`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    pub status: Status,
    pub state: String,
}

/// Answer of `GET /health`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    pub version: String,
}
