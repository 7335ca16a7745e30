//! Tenants, users, workspaces, projects, API keys: who there is, and what they may do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::computer::present;
use crate::{
    AddressRange, ApiKeyId, KeyEventId, PageMeta, ProjectId, TenantId, Timestamp, UserId, WorkspaceId,
};

macro_rules! word_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$variant_meta])* $variant),+
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
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($text => Ok($name::$variant),)+
                    _ => Err(UnknownWord),
                }
            }
        }
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of the known words")]
pub struct UnknownWord;

word_enum!(
    /// What a user is in a tenant.
    Role {
        /// Everything; a tenant has at least one.
        Owner = "owner",
        /// Everything in the tenant.
        Admin = "admin",
        /// Their own computers, and the workspaces they are members of.
        Member = "member",
    }
);

impl Role {
    /// Whether everything in the tenant is open to them.
    pub fn is_administrator(self) -> bool {
        match self {
            Role::Owner | Role::Admin => true,
            Role::Member => false,
        }
    }
}

word_enum!(
    /// What a user is in a workspace.
    WorkspaceRole {
        Owner = "owner",
        Admin = "admin",
        Member = "member",
        /// Sees everything, changes nothing.
        Viewer = "viewer",
    }
);

word_enum!(
    /// What an API key is for.
    KeyKind {
        /// What its user may do.
        User = "user",
        /// Also the routes below `/admin`.
        Admin = "admin",
        /// Automation of a tenant: makes keys of every kind.
        Platform = "platform",
    }
);

word_enum!(
    KeyStatus { Active = "active", Disabled = "disabled" }
);

/// A group of computers inside a tenant; usually one customer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Workspace {
    pub id: WorkspaceId,
    pub tenant_id: TenantId,
    pub name: String,
    /// Unique in the tenant.
    pub slug: String,
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub settings: Map<String, Value>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    /// Where computers go that name no workspace.
    pub is_default: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// True where a workspace with this `external_workspace_id` was there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused: Option<bool>,
}

/// Body of `POST /workspaces`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateWorkspace {
    /// Required.
    pub name: Option<String>,
    pub slug: Option<String>,
    pub description: Option<String>,
    pub metadata: Option<Map<String, Value>>,
    /// An existing workspace with this id is answered instead of making another.
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub allow_duplicate_name: Option<bool>,
}

/// Body of `PATCH` on workspaces and projects. A field that is absent stays as it is.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdatePlace {
    pub name: Option<String>,
    /// Of projects only.
    pub slug: Option<String>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Option<String>>,
    /// Replaces all metadata.
    pub metadata: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WorkspaceList {
    pub data: Vec<Workspace>,
    pub meta: PageMeta,
}

/// How many computers a workspace or project has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ComputerCounts {
    pub total: u64,
    pub running: u64,
    pub stopped: u64,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WorkspaceStats {
    pub computers: ComputerCounts,
    pub projects: u64,
    pub members: u64,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProjectSummary {
    #[serde(flatten)]
    pub project: Project,
    pub computers: ComputerCounts,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkspaceMember {
    pub workspace_id: WorkspaceId,
    pub user_id: UserId,
    pub email: Option<String>,
    pub name: String,
    pub avatar_url: Option<String>,
    pub role: WorkspaceRole,
    pub joined_at: Timestamp,
    pub added_by: Option<UserId>,
}

/// Body of `POST /workspaces/{wid}/members`: one of `user_id` and `email`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct AddMember {
    pub user_id: Option<String>,
    pub email: Option<String>,
    /// `member` by default.
    pub role: Option<WorkspaceRole>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ChangeMember {
    pub role: WorkspaceRole,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Project {
    pub id: ProjectId,
    pub tenant_id: TenantId,
    pub workspace_id: WorkspaceId,
    pub external_workspace_id: Option<String>,
    pub external_project_id: Option<String>,
    pub name: String,
    /// Unique in the workspace.
    pub slug: String,
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub settings: Map<String, Value>,
    pub is_default: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Body of `POST /projects`. Without any workspace it goes to the default one.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateProject {
    /// Required.
    pub name: Option<String>,
    pub slug: Option<String>,
    pub workspace_id: Option<String>,
    pub workspace_slug: Option<String>,
    pub external_workspace_id: Option<String>,
    pub description: Option<String>,
    pub metadata: Option<Map<String, Value>>,
    pub external_project_id: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListProjects {
    pub workspace_id: Option<String>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct MoveProject {
    pub target_workspace_id: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProjectList {
    pub data: Vec<Project>,
    pub total: u64,
}

/// An API key or a scoped token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub tenant_id: TenantId,
    pub user_id: UserId,
    pub name: String,
    /// The first characters of the key, to tell keys apart.
    pub key_prefix: String,
    pub prefix: String,
    pub key_type: KeyKind,
    /// `api`.
    pub key_purpose: String,
    pub scopes: Vec<String>,
    /// Addresses and networks that requests with it may come from; empty: any.
    pub allowed_ips: Vec<AddressRange>,
    /// Requests in a minute; absent where there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_rpm: Option<u32>,
    pub status: KeyStatus,
    pub active: bool,
    /// It reaches nothing outside of this workspace.
    pub workspace_id: Option<WorkspaceId>,
    /// It reaches nothing but the computers of this end user.
    pub external_user_id: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub expires_at: Option<Timestamp>,
    /// To the minute.
    pub last_used_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

/// A key and its secret, which is shown this once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyWithSecret {
    #[serde(flatten)]
    pub details: ApiKey,
    pub key: String,
}

/// Body of `POST /api-keys`, `/api-keys/scoped` and `/admin/tenants/{tid}/keys`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateApiKey {
    pub name: Option<String>,
    /// At most what the caller's own key has; without it, everything that the kind of key may have.
    pub scopes: Option<Vec<String>>,
    /// `user` by default.
    pub key_type: Option<KeyKind>,
    /// `api`.
    pub purpose: Option<String>,
    /// A preset (`GET /api-keys/presets`) whose scopes it has, where `scopes` names none.
    pub preset: Option<String>,
    /// Addresses and networks (CIDR) that requests with it may come from; without it, those of the caller's own key.
    pub allowed_ips: Option<Vec<AddressRange>>,
    pub expires_at: Option<Timestamp>,
    pub expires_in_days: Option<u32>,
    /// Confines the key to a workspace.
    pub workspace_id: Option<String>,
    /// Confines the key to the computers of one end user of yours.
    pub external_user_id: Option<String>,
    /// Whose key it is (below `/admin` only); the tenant's owner by default.
    pub user_id: Option<String>,
    pub metadata: Option<Map<String, Value>>,
}

/// Body of `PATCH /api-keys/{kid}`. A field that is absent stays as it is.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdateApiKey {
    pub name: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub status: Option<KeyStatus>,
    /// Replaces the list; an empty one lets requests come from anywhere.
    pub allowed_ips: Option<Vec<AddressRange>>,
}

word_enum!(
    /// What happened to an API key.
    KeyEventKind {
        Created = "created",
        /// It has another name, other scopes or other addresses.
        Changed = "changed",
        Rotated = "rotated",
        Disabled = "disabled",
        Enabled = "enabled",
        /// A request came from an address that it may not be used from; told once a minute for each address.
        Refused = "refused",
    }
);

/// Something that happened to an API key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyEvent {
    pub id: KeyEventId,
    pub api_key_id: ApiKeyId,
    #[serde(rename = "type")]
    pub kind: KeyEventKind,
    /// Who did it, and with which key; null where it was nobody who may.
    pub user_id: Option<UserId>,
    pub actor_key_id: Option<ApiKeyId>,
    /// Where the request came from, as far as that is known.
    #[schema(value_type = Option<String>)]
    pub ip_address: Option<IpAddr>,
    /// What is so since then, of what was changed.
    pub details: Map<String, Value>,
    pub created_at: Timestamp,
}

/// Query of `GET /api-keys/{kid}/events`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct KeyEventsQuery {
    /// 1 to 200 (50).
    pub limit: Option<u32>,
    /// `created`, `changed`, `rotated`, `disabled`, `enabled` or `refused`.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    pub kind: Option<String>,
}

/// Scopes under a name.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyPreset {
    pub name: String,
    pub scopes: Vec<String>,
    pub description: Option<String>,
    /// It comes with the server, and stays.
    pub builtin: bool,
    /// Null for those that come with the server.
    pub created_at: Option<Timestamp>,
}

/// Body of `POST /api-keys/presets`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct MakeKeyPreset {
    /// Required.
    pub name: Option<String>,
    /// Required.
    pub scopes: Option<Vec<String>>,
    pub description: Option<String>,
}

/// Answer of `DELETE /api-keys/presets/{name}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyPresetRemoved {
    pub name: String,
    /// Always true.
    pub deleted: bool,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListKeys {
    /// 1 to 200 (all).
    pub limit: Option<u32>,
}

/// Body of `POST /tokens/scoped`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateScopedToken {
    /// Required: a user of the tenant.
    pub user_id: Option<String>,
    /// Required: what the token is confined to.
    pub workspace_id: Option<String>,
    /// 1 to 86400 (3600).
    pub expires_in_seconds: Option<u32>,
    /// At most the caller's own.
    pub scopes: Option<Vec<String>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ScopedToken {
    pub id: ApiKeyId,
    pub token: String,
    pub expires_at: Option<Timestamp>,
    pub scopes: Vec<String>,
}

/// Something that was removed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    pub id: Uuid,
    /// Always true.
    pub deleted: bool,
}

impl Removed {
    pub fn of(id: Uuid) -> Self {
        Self { id, deleted: true }
    }
}

/// Whom a credential speaks for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Identity {
    pub user_id: UserId,
    pub email: Option<String>,
    pub name: String,
    pub role: Role,
    pub tenant_id: TenantId,
    pub organization_slug: String,
    /// Where computers go that name no workspace.
    pub workspace_id: WorkspaceId,
    /// `self-hosted`.
    pub plan: String,
    pub scopes: Vec<String>,
    /// `api_key` or `scoped_token`.
    #[serde(rename = "type")]
    pub kind: String,
    pub key_type: KeyKind,
    pub key_id: ApiKeyId,
    /// Whether the credential may act in every tenant of the server.
    pub is_operator: bool,
}

/// An organization: the boundary of authorization and billing.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    pub slug: String,
    pub created_at: Timestamp,
}

/// Body of `POST /admin/tenants`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateTenant {
    /// Required.
    pub name: Option<String>,
    /// From the name by default.
    pub slug: Option<String>,
    /// Of its first user, who is its owner.
    pub owner_name: Option<String>,
    pub owner_email: Option<String>,
}

/// Body of `PATCH /admin/tenants/{tid}`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdateTenant {
    pub name: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct User {
    pub id: UserId,
    pub tenant_id: TenantId,
    pub name: String,
    pub email: Option<String>,
    pub role: Role,
    pub created_at: Timestamp,
}

/// Body of `POST /admin/tenants/{tid}/users`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateUser {
    /// Required.
    pub name: Option<String>,
    pub email: Option<String>,
    /// `member` by default.
    pub role: Option<Role>,
}

/// Body of `PATCH /admin/tenants/{tid}/users/{uid}`. A field that is absent stays as it is.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdateUser {
    pub name: Option<String>,
    pub email: Option<String>,
    pub role: Option<Role>,
}
