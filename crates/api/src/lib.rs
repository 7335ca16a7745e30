//! Wire types, error codes, typed ids and sizes. No I/O: every crate may depend on this one.

mod computer;
mod connection;
mod desktop;
mod error;
mod exec;
mod id;
mod size;
mod snapshot;
mod time;

pub use computer::{
    Computer, ComputerList, ConsoleLines, ConsoleQuery, CreateComputer, CreateQuery, Deleted, Health,
    ListComputers, PageMeta, Readiness, Status, UpdateComputer, Visibility,
};
pub use connection::{
    ComputerUrls, DesktopSession, NamedUrl, StreamToken, StreamTokenRequest, VncCredentials,
};
pub use desktop::{
    ClickRequest, CursorPosition, KeyRequest, MouseButton, PointRequest, ScreenSize, ScrollDirection,
    ScrollRequest, Success, TypeRequest,
};
pub use error::{ApiError, ErrorBody, ErrorCode, ErrorDetail};
pub use exec::{ExecRequest, ExecResult, PythonRequest};
pub use id::{
    ApiKeyId, ComputerId, LayerId, ProjectId, SnapshotId, TenantId, UserId, WorkflowId, WorkspaceId,
};
pub use size::{MemoryMib, Size, UnknownSize};
pub use snapshot::{
    AccountSnapshot, BlockedSnapshot, CloneComputer, ComputerWithData, CreateSnapshot, Data, DeleteSnapshots,
    DeletedSnapshots, ForkSnapshot, ForkedComputer, ForkedSnapshot, ListSnapshots, NameSnapshot,
    NamedSnapshot, NamedSnapshotList, ReleasedName, ResizeComputer, RestoredComputer, Snapshot,
    SnapshotAllowance, SnapshotDependent, SnapshotEntry, SnapshotEntryKind, SnapshotEvent, SnapshotGroup,
    SnapshotPath, SnapshotResource, SnapshotState, SnapshotTree, SseTicket, TicketQuery, WithDependents,
};
pub use time::Timestamp;
