//! Snapshots, named snapshots, and the computers made from them.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{Computer, ComputerId, SnapshotId, TenantId, Timestamp, WorkspaceId};

/// An answer that is wrapped.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Data<T> {
    pub data: T,
}

/// A computer twice: bare, and where other clients look for it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ComputerWithData {
    #[serde(flatten)]
    pub computer: Computer,
    /// The same computer again.
    pub data: Computer,
}

/// Answer of the restore routes: the new computer twice, and what it was made from.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RestoredComputer {
    #[serde(flatten)]
    pub computer: Computer,
    /// The same computer again.
    pub data: Computer,
    pub snapshot: Snapshot,
}

/// Answer of fork and deploy.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ForkedSnapshot {
    pub data: ForkedComputer,
    pub snapshot: Snapshot,
}

/// The new computer; `state` is its `status` here.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ForkedComputer {
    /// Always `computer`.
    pub machine_type: String,
    #[serde(flatten)]
    pub computer: Computer,
}

/// Body of `POST /computers/{id}/clone`; may be absent.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CloneComputer {
    /// `<name of the source>-clone` by default.
    pub name: Option<String>,
    /// The source's by default.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// The source's by default.
    pub visibility: Option<crate::Visibility>,
    pub always_on: Option<bool>,
    /// The source's by default, unless `always_on` is set.
    pub idle_timeout_sec: Option<u32>,
    /// The source's by default.
    pub timeout_sec: Option<u32>,
    /// The source's by default; a clone has no other.
    pub size: Option<String>,
    /// The source's by default; a clone has no other.
    pub region: Option<String>,
    /// The source's by default.
    pub external_workspace_id: Option<String>,
    /// The source's by default.
    pub external_user_id: Option<String>,
    /// The source's by default.
    pub external_project_id: Option<String>,
    /// Beside the source's, and instead of those of the same name.
    pub env: Option<std::collections::BTreeMap<String, String>>,
}

/// Body of `POST /computers/{id}/resize`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ResizeComputer {
    /// `xs`, `small`, `medium`, `large` or `xl`.
    pub size: Option<String>,
    /// With `memory_mb`, instead of `size`: exactly the numbers of one.
    pub cpu_count: Option<u32>,
    pub memory_mb: Option<u32>,
}

/// Body of `POST /computers/{id}/move`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct MoveComputer {
    /// Required: the slug of a region, such as `us-east-ny`.
    pub region: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    Creating,
    /// Never used here; part of the wire.
    Uploading,
    Ready,
    /// Ready, and a computer is being made from it.
    Restoring,
    Failed,
    Deleted,
}

/// A kept state of a computer: its disk, and its memory where it ran.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub computer_id: ComputerId,
    pub tenant_id: TenantId,
    /// Of a named snapshot.
    pub name: Option<String>,
    pub comment: Option<String>,
    pub status: SnapshotState,
    /// What it takes on the host's disk, memory and disk together.
    pub state_size_bytes: Option<u64>,
    /// Null for a computer that was shut down.
    pub memory_size_bytes: Option<u64>,
    pub rootfs_size_bytes: Option<u64>,
    pub compressed_size_bytes: Option<u64>,
    pub s3_bucket: Option<String>,
    pub s3_prefix: Option<String>,
    /// The newest snapshot of the same history when this one was taken; it may be deleted.
    pub parent_snapshot_id: Option<SnapshotId>,
    /// Never expires.
    pub keep: bool,
    pub retention_seconds: Option<u64>,
    pub expires_at: Option<Timestamp>,
    /// How long the computer stood still, in milliseconds; null for one that did not run.
    pub pause_ms: Option<f64>,
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Body of `POST /computers/{id}/snapshots`; may be absent.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateSnapshot {
    /// At most 500 characters.
    pub comment: Option<String>,
    /// The same as `comment`.
    pub description: Option<String>,
    /// Stands in for `comment` where there is none. For a unique name see `/named-snapshots`.
    pub name: Option<String>,
    /// Never expires.
    pub keep: Option<bool>,
    /// Deleted by itself after so long; without one of the three it stays.
    pub retention_seconds: Option<u64>,
    /// The same as `retention_seconds`.
    pub expiration_seconds: Option<u64>,
    /// The same in days.
    pub expiration_days: Option<u64>,
}

/// What the event stream of a snapshot sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotEvent {
    /// Always `snapshot_progress`.
    #[serde(rename = "type")]
    pub kind: String,
    pub snapshot_id: SnapshotId,
    pub status: SnapshotState,
    pub step: Option<String>,
    /// Percent.
    pub progress: u8,
    pub error: Option<String>,
}

/// What a snapshot was taken of.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SnapshotResource {
    /// Always `computer`.
    #[serde(rename = "type")]
    pub kind: String,
    pub id: ComputerId,
    pub name: String,
    /// Its status; null when it is deleted.
    pub state: Option<String>,
    pub workspace_id: WorkspaceId,
}

/// A row of the account-wide history.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AccountSnapshot {
    pub id: SnapshotId,
    pub resource: SnapshotResource,
    pub status: SnapshotState,
    pub comment: Option<String>,
    pub size_bytes: u64,
    pub disk_bytes: u64,
    pub memory_bytes: Option<u64>,
    pub keep: bool,
    /// Its unique name.
    pub named_snapshot: Option<String>,
    /// Whether its files can be looked at.
    pub browsable: bool,
    pub parent_snapshot_id: Option<SnapshotId>,
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
}

/// What keeps a snapshot from being deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SnapshotDependent {
    /// `named_snapshot`, `restore_in_progress` or `snapshot_in_progress`.
    pub kind: String,
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Something with what depends on it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WithDependents<T> {
    pub data: T,
    pub dependents: Vec<SnapshotDependent>,
}

/// Query of `GET /snapshots`, `GET /snapshots/groups` and `GET /named-snapshots`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListSnapshots {
    /// The computer.
    pub resource_id: Option<String>,
    /// The same as `resource_id`.
    pub computer_id: Option<String>,
    pub workspace_id: Option<String>,
    pub status: Option<String>,
    /// Part of a comment, a name, the computer's name or an id.
    pub q: Option<String>,
    /// 1 to 200 (50).
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub limit: Option<u32>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub offset: Option<u32>,
}

/// The snapshots of one computer, summed up.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SnapshotGroup {
    pub resource_id: ComputerId,
    pub resource: SnapshotResource,
    pub snapshot_count: u64,
    pub stored_bytes: u64,
    pub latest_at: Option<Timestamp>,
}

/// Body of `POST /snapshots/delete`: ids, or everything of one computer.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct DeleteSnapshots {
    pub ids: Option<Vec<String>>,
    pub resource_id: Option<String>,
    pub all: Option<bool>,
    /// `resource_id` again.
    pub confirm: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct DeletedSnapshots {
    pub deleted: Vec<String>,
    pub blocked: Vec<BlockedSnapshot>,
    pub not_found: Vec<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BlockedSnapshot {
    pub id: String,
    pub dependents: Vec<SnapshotDependent>,
}

/// Body of fork and deploy; may be absent.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ForkSnapshot {
    /// Of the new computer: `<name of the snapshot's computer>-restored` by default.
    pub name: Option<String>,
}

/// Body of `POST /named-snapshots`: a name for a snapshot, or for the newest one of a computer.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct NameSnapshot {
    /// 1 to 63 of `A-Z a-z 0-9 . _ -`, unique in the tenant.
    pub name: Option<String>,
    pub snapshot_id: Option<String>,
    pub computer_id: Option<String>,
    /// There are no sandboxes here.
    pub sandbox_id: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NamedSnapshot {
    pub name: String,
    pub snapshot_id: SnapshotId,
    pub workspace_id: WorkspaceId,
    pub snapshot: AccountSnapshot,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NamedSnapshotList {
    pub data: Vec<NamedSnapshot>,
    pub allowance: SnapshotAllowance,
}

/// Names cost nothing on a server of one's own; there are as many as anybody likes.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SnapshotAllowance {
    pub included: u64,
    pub used: u64,
    pub remaining_free: u64,
    pub billable: u64,
    pub monthly_price_cents: u64,
    pub monthly_cost_cents: u64,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReleasedName {
    pub data: NamedSnapshot,
    /// Always `released`: the name is free, the snapshot stays.
    pub outcome: String,
}

/// Query of `GET /snapshots/{sid}/tree` and `GET /snapshots/{sid}/files`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SnapshotPath {
    /// Absolute, on the disk of the snapshot. Symlinks are followed; `..` ends at the root.
    pub path: Option<String>,
}

/// A folder on the disk of a snapshot.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SnapshotTree {
    /// In its shortest form.
    pub path: String,
    /// By name.
    pub entries: Vec<SnapshotEntry>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SnapshotEntry {
    pub name: String,
    /// Absolute.
    pub path: String,
    #[serde(rename = "type")]
    pub kind: SnapshotEntryKind,
    /// Bytes.
    pub size: u64,
    /// The permission bits: 420 is `rw-r--r--`.
    pub mode: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotEntryKind {
    File,
    Directory,
    Symlink,
    /// A device, a socket or a pipe.
    Other,
}

/// A credential for one event stream.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SseTicket {
    /// For `?ticket=`; opens one stream.
    pub ticket: String,
    /// Seconds.
    pub expires_in: u64,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TicketQuery {
    /// From `POST /sse/ticket`, instead of a header.
    pub ticket: Option<String>,
}
