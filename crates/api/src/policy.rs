//! Policies of workspaces: what may be in one.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{ComputerId, RegionName, Size, WorkspaceId};

/// What may be in a workspace. A limit that is null or absent is none; a key that is not known is refused, because it
/// would limit nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkspacePolicy {
    /// Sizes that computers may be made in, and resized to.
    pub allowed_sizes: Option<Vec<Size>>,
    /// Regions that computers may be made in, and moved to.
    #[schema(value_type = Option<Vec<String>>)]
    pub allowed_regions: Option<Vec<RegionName>>,
    pub max_computers: Option<u32>,
    /// Computers that run, or are about to.
    pub max_concurrent: Option<u32>,
    /// What the disks of all may grow to together, in GiB.
    pub max_storage_gb: Option<u32>,
    /// Idle seconds after which a computer stops that is made without a limit of its own.
    pub default_auto_stop_seconds: Option<u32>,
}

const KEYS: [&str; 6] = [
    "allowed_sizes",
    "allowed_regions",
    "max_computers",
    "max_concurrent",
    "max_storage_gb",
    "default_auto_stop_seconds",
];

impl WorkspacePolicy {
    /// The limits among the settings of a workspace, which hold as those of its policy do.
    pub fn among(settings: &Map<String, Value>) -> Result<Self, serde_json::Error> {
        let known = settings.iter().filter(|(key, _)| KEYS.contains(&key.as_str()));
        serde_json::from_value(Value::Object(
            known.map(|(key, value)| (key.clone(), value.clone())).collect(),
        ))
    }

    /// What both allow.
    pub fn and(self, other: Self) -> Self {
        Self {
            allowed_sizes: both(self.allowed_sizes, other.allowed_sizes),
            allowed_regions: both(self.allowed_regions, other.allowed_regions),
            max_computers: least(self.max_computers, other.max_computers),
            max_concurrent: least(self.max_concurrent, other.max_concurrent),
            max_storage_gb: least(self.max_storage_gb, other.max_storage_gb),
            default_auto_stop_seconds: self.default_auto_stop_seconds.or(other.default_auto_stop_seconds),
        }
    }
}

fn both<T: PartialEq>(one: Option<Vec<T>>, other: Option<Vec<T>>) -> Option<Vec<T>> {
    match (one, other) {
        (Some(mut one), Some(other)) => {
            one.retain(|value| other.contains(value));
            Some(one)
        }
        (one, other) => one.or(other),
    }
}

fn least(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Body of `POST /workspaces/{wid}/transfer`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct TransferComputers {
    /// Required: computers of the workspace, at most 100.
    pub resource_ids: Option<Vec<Uuid>>,
    /// Required: where they go.
    pub target_workspace_id: Option<String>,
}

/// Computers that are in another workspace now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TransferredComputers {
    pub transferred: Vec<ComputerId>,
    pub source_workspace_id: WorkspaceId,
    pub target_workspace_id: WorkspaceId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_read_and_nothing_else() {
        let all = serde_json::to_value(WorkspacePolicy::default()).unwrap();
        let keys: Vec<&str> = all.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), KEYS.len());
        assert!(KEYS.iter().all(|key| keys.contains(key)));
        assert!(serde_json::from_str::<WorkspacePolicy>(r#"{ "max_computer": 1 }"#).is_err());
        let settings = serde_json::json!({ "theme": "dark", "max_computers": 3 });
        let among = WorkspacePolicy::among(settings.as_object().unwrap()).unwrap();
        assert_eq!(among, WorkspacePolicy { max_computers: Some(3), ..WorkspacePolicy::default() });
        let wrong = serde_json::json!({ "max_computers": "3" });
        assert!(WorkspacePolicy::among(wrong.as_object().unwrap()).is_err());
    }

    #[test]
    fn the_narrower_limit_holds() {
        let sizes = |sizes: &[Size], most| WorkspacePolicy {
            allowed_sizes: Some(sizes.to_vec()),
            max_computers: most,
            ..WorkspacePolicy::default()
        };
        let one = sizes(&[Size::Xs, Size::Small], Some(3));
        let other = sizes(&[Size::Small, Size::Large], Some(2));
        assert_eq!(one.clone().and(other), sizes(&[Size::Small], Some(2)));
        assert_eq!(one.clone().and(WorkspacePolicy::default()), one);
    }
}
