//! Wire types, error codes, typed ids and sizes. No I/O: every crate may depend on this one.

mod accessibility;
mod action;
mod address;
mod app;
mod auto_stop;
mod capability;
mod catalog;
mod computer;
mod connection;
mod credits;
mod desktop;
mod domain;
mod env;
mod error;
mod event;
mod exec;
mod file;
mod id;
mod logs;
mod metrics;
mod numbers;
mod policy;
mod port;
mod quota;
mod settings;
mod size;
mod snapshot;
mod tenancy;
mod terminal;
mod time;
mod webhook;

pub use accessibility::{
    AccessibilityTree, AccessibleAction, AccessibleActionRequest, AccessibleNode, Bounds, CompactTree,
    FindQuery, FoundElements, NewValue, TreeAnswer, TreeFormat, TreeQuery,
};
pub use action::{
    ActionWait, ActionsAnswer, ActionsPicture, ActionsRequest, ActionsScreenshot, DesktopAction, ToolFormat,
    Tools, ToolsQuery, WaitForChange, WaitUntilSettled,
};
pub use address::{AddressRange, NotAnAddressRange, admits};
pub use app::{
    App, AppList, Catalog, CatalogApp, Installation, InstallationStatus, Installations, LaunchRequest,
    SelectApps,
};
pub use auto_stop::{AutoStop, ChangeAutoStop};
pub use capability::{ActionDecision, AuthorizeAction, Capability, Decision, WantedCapability};
pub use catalog::{
    ComputeCatalog, ComputePricing, ComputeTemplate, NotARegion, Product, Region, RegionName, SizeOffer,
    TemplateCatalog, TemplateOffer, TemplateReadiness, TemplateState,
};
pub use computer::{
    Computer, ComputerList, CreateComputer, CreateQuery, Deleted, Health, ListComputers, Order, PageMeta,
    Readiness, Setup, SetupStatus, StartComputer, Status, UpdateComputer, Visibility,
};
pub use connection::{
    ComputerUrls, CreateShare, CreatedShare, DesktopSession, Embed, EmbedQuery, NamedUrl, Share, ShareKind,
    ShareRevoked, ShareRole, SharedDesktop, StreamToken, StreamTokenRequest, ViewerPassword,
    ViewerPasswordState, ViewerSessionRequest, VncCredentials,
};
pub use credits::{
    CreditBalance, CreditTransaction, CreditTransactions, CreditUsage, GrantCredits, InvalidPrice,
    MicroCredits, PageQuery, Price, Prices, SessionsQuery, UsageGroup, UsageQuery, UsageReport, UsageSession,
    UsageSessions, UsageSummary,
};
pub use desktop::{
    ButtonRequest, ClickRequest, Clipboard, CursorPosition, DesktopEnvironment, DragRequest, HotkeyRequest,
    KeyRequest, MouseButton, PictureFormat, PictureQuery, PointRequest, ScreenRegion, ScreenSize,
    ScrollDirection, ScrollRequest, SetScreenSize, Success, TypeRequest, WaitRequest, WallpaperRequest,
    Window, WindowFocusRequest, WindowId, WindowSize,
};
pub use domain::{NotADomain, PreviewDomain, SetPreviewDomain, domain_name};
pub use env::{ChangeVariable, MASKED, SetVariable, Variable, VariableDeleted, Variables};
pub use error::{ApiError, ErrorBody, ErrorCode, ErrorDetail};
pub use event::{
    ComputerStreamQuery, Event, EventFrame, EventGap, EventId, EventStatus, EventStreamQuery, GuestEvent,
    GuestEventsQuery, NotAnEventId, Transition,
};
pub use exec::{
    CommandRequest, CommandResult, ExecRequest, ExecResult, ExecStreamRequest, ExecTicket, ExecTicketQuery,
    PythonRequest,
};
pub use file::{
    ArchiveFormat, Binary, ChangeFileMode, CopyFile, DirectoryEntries, DirectoryEntry, ExportedFile,
    FileDone, FileList, FileMode, FilePathRequest, FileQuery, FileRow, FileStat, FileType, FoundFile,
    FoundFiles, MakeDirectory, PutFileQuery, RenameFile, SameRows, SearchFiles, ShownMode, UnpackedArchive,
    UploadForm, UploadProgress, UploadedFile, UploadedFileRow, WatchFiles, WriteFileRequest,
    WriteFilesRequest, WrittenFile, WrittenFiles,
};
pub use id::{
    ApiKeyId, ComputerId, DeliveryId, KeyEventId, LayerId, ProjectId, RunId, ServerId, ShareId, SnapshotId,
    TenantId, TransactionId, UserId, WebhookId, WorkflowId, WorkspaceId,
};
pub use logs::{LogEntry, LogStream, Logs, LogsQuery};
pub use metrics::{MetricPoint, Metrics, MetricsQuery};
pub use policy::{TransferComputers, TransferredComputers, WorkspacePolicy};
pub use port::{
    ChangePort, ExposePort, NotAPort, Port, PortAccess, PortAccessRequest, PortDeleted, PortList, PortNumber,
    PortUrl, PortVisibility,
};
pub use quota::{BillingUsage, Plan, Quota, QuotaRemoved, QuotaUsage, SetQuota};
pub use settings::TenantSettings;
pub use size::{MemoryMib, Size, UnknownSize};
pub use snapshot::{
    AccountSnapshot, BlockedSnapshot, CloneComputer, ComputerWithData, CreateSnapshot, Data, DeleteSnapshots,
    DeletedSnapshots, ForkSnapshot, ForkedComputer, ForkedSnapshot, ListSnapshots, MoveComputer,
    NameSnapshot, NamedSnapshot, NamedSnapshotList, ReleasedName, ResizeComputer, RestoredComputer, Snapshot,
    SnapshotAllowance, SnapshotDependent, SnapshotEntry, SnapshotEntryKind, SnapshotEvent, SnapshotGroup,
    SnapshotPath, SnapshotResource, SnapshotState, SnapshotTree, SseTicket, TicketQuery, WithDependents,
};
pub use tenancy::{
    AddMember, ApiKey, ApiKeyWithSecret, ChangeMember, ComputerCounts, CreateApiKey, CreateProject,
    CreateScopedToken, CreateTenant, CreateUser, CreateWorkspace, Identity, KeyEvent, KeyEventKind,
    KeyEventsQuery, KeyKind, KeyPreset, KeyPresetRemoved, KeyStatus, ListKeys, ListProjects, MakeKeyPreset,
    MoveProject, Project, ProjectList, ProjectSummary, Removed, Role, ScopedToken, Tenant, UnknownWord,
    UpdateApiKey, UpdatePlace, UpdateTenant, UpdateUser, User, Workspace, WorkspaceList, WorkspaceMember,
    WorkspaceRole, WorkspaceStats,
};
pub use terminal::{
    OpenTerminal, ResizeTerminal, Terminal, TerminalClosed, TerminalList, TerminalResized, TerminalRow,
};
pub use time::Timestamp;
pub use webhook::{
    CreatedWebhook, DeletedWebhook, ListWebhooks, ReplayDelivery, Webhook, WebhookDelivery, WebhookRequest,
};
