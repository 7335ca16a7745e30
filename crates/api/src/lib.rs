//! Wire types, error codes, typed ids and sizes. No I/O: every crate may depend on this one.

mod id;
mod size;

pub use id::{ApiKeyId, ComputerId, ProjectId, TenantId, UserId, WorkflowId, WorkspaceId};
pub use size::{MemoryMib, Size};
