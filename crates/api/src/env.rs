//! Environment variables of a computer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;

/// What stands for every value: none is ever shown.
pub const MASKED: &str = "********";

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Variable {
    pub name: String,
    /// Always `********`.
    pub value: &'static str,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Variables {
    pub env: Vec<Variable>,
    /// The same rows, for clients that look here.
    pub data: Vec<Variable>,
}

/// Body of `POST /computers/{id}/env`.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct SetVariable {
    /// Required: letters, digits and `_`, no digit first.
    pub name: Option<String>,
    /// Required, plain text of at most 32 KiB. Kept encrypted.
    pub value: Option<String>,
}

/// Body of `PATCH /computers/{id}/env/{name}`.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChangeVariable {
    /// Required, plain text of at most 32 KiB. Kept encrypted.
    pub value: Option<String>,
}

// Values are secrets: what is printed of a request does not have them.
impl std::fmt::Debug for SetVariable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetVariable").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ChangeVariable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeVariable").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct VariableDeleted {
    pub name: String,
    pub deleted: bool,
}
