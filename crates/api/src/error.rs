//! Every error a caller can get: its code, its HTTP status and its text.
//!
//! [`ErrorCode::status`] is the one table that maps codes to statuses. Codes are part of the wire: clients
//! match on them, so an existing one never changes its spelling.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// The machine-readable part of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The body is not JSON, or not UTF-8.
    InvalidJson,
    /// The request could be read in two ways.
    AmbiguousRequest,
    MissingParam,
    InvalidId,
    /// A path on a disk that cannot be one, or that leads to something else than was asked for.
    InvalidPath,
    /// The body ended before it was to, or is no form.
    InvalidBody,
    /// A form without the part that is the file.
    MissingFile,
    InvalidToken,
    /// The tenant has no credits left.
    InsufficientCredits,
    WrongPassword,
    InsufficientScope,
    Forbidden,
    /// The path leads out of the directories whose files may be reached.
    ForbiddenPath,
    /// It is too large, or no text.
    InvalidSetupFile,
    /// An end user, or a workspace, has as much as it may have.
    QuotaExceeded,
    /// The policy of a workspace does not have it.
    PolicyDenied,
    NotFound,
    MethodNotAllowed,
    /// The verb does not fit the computer's status.
    InvalidState,
    ComputerNotRunning,
    /// The same in the words of the viewer's routes.
    DesktopNotRunning,
    ComputerStarting,
    /// What the verb needs of the computer or of its machine is not so.
    ResourceState,
    /// Something still needs the snapshot; `details.dependents` says what.
    SnapshotInUse,
    SnapshotNotReady,
    NoSnapshotAvailable,
    SnapshotAlreadyNamed,
    NameTaken,
    /// Another request had the same Idempotency-Key.
    IdempotencyKeyReused,
    /// A request with this Idempotency-Key was begun, and how it ended is not known.
    IdempotencyInProgress,
    /// A request with this Idempotency-Key was carried out, and its answer cannot be given again.
    IdempotencyAnswerLost,
    DeliveryNotFound,
    /// The request does not say clearly for which tenant it is.
    TenantResolutionFailed,
    /// There is no such tenant.
    OrgNotFound,
    /// The credential may not act in that tenant.
    InvalidTenantContext,
    WorkspaceForbidden,
    /// `details.existing` is the workspace that has the name.
    WorkspaceNameExists,
    /// The delivery has not ended yet.
    NotRedeliverable,
    TooLarge,
    FileTooLarge,
    /// The range asked for is not in the file.
    RangeNotSatisfiable,
    ValidationFailed,
    InvalidTtl,
    TimeoutTooLong,
    /// The filesystem of a snapshot is damaged, or of a kind that the server cannot read.
    DiskUnreadable,
    UpgradeRequired,
    /// Too many attempts with a viewer password.
    RateLimited,
    /// The key made more requests than it may.
    RateLimitExceeded,
    AgentUnavailable,
    /// No program listens on the port, or it ended the connection.
    PortUnavailable,
    /// The template is not built, or this host cannot start machines now.
    NoReadyMachine,
    /// A part that the server cannot work without does not answer.
    Unavailable,
    /// The machine did not come up; the computer is in `error` with the reason.
    StartFailed,
    Internal,
}

impl ErrorCode {
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidJson => "INVALID_JSON",
            ErrorCode::AmbiguousRequest => "AMBIGUOUS_REQUEST",
            ErrorCode::MissingParam => "MISSING_PARAM",
            ErrorCode::InvalidId => "INVALID_ID",
            ErrorCode::InvalidPath => "INVALID_PATH",
            ErrorCode::InvalidBody => "INVALID_BODY",
            ErrorCode::MissingFile => "MISSING_FILE",
            ErrorCode::InvalidToken => "invalid_token",
            ErrorCode::InsufficientCredits => "INSUFFICIENT_CREDITS",
            ErrorCode::WrongPassword => "wrong_password",
            ErrorCode::InsufficientScope => "insufficient_scope",
            ErrorCode::Forbidden => "FORBIDDEN",
            ErrorCode::ForbiddenPath => "FORBIDDEN_PATH",
            ErrorCode::InvalidSetupFile => "INVALID_SETUP_FILE",
            ErrorCode::PolicyDenied => "POLICY_DENIED",
            ErrorCode::QuotaExceeded => "QUOTA_EXCEEDED",
            ErrorCode::NotFound => "NOT_FOUND",
            ErrorCode::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            ErrorCode::InvalidState => "INVALID_STATE",
            ErrorCode::ComputerNotRunning => "COMPUTER_NOT_RUNNING",
            ErrorCode::DesktopNotRunning => "computer_not_running",
            ErrorCode::ComputerStarting => "COMPUTER_STARTING",
            ErrorCode::ResourceState => "RESOURCE_STATE",
            ErrorCode::SnapshotInUse => "SNAPSHOT_IN_USE",
            ErrorCode::SnapshotNotReady => "SNAPSHOT_NOT_READY",
            ErrorCode::NoSnapshotAvailable => "NO_SNAPSHOT_AVAILABLE",
            ErrorCode::SnapshotAlreadyNamed => "SNAPSHOT_ALREADY_NAMED",
            ErrorCode::NameTaken => "NAME_TAKEN",
            ErrorCode::IdempotencyKeyReused => "IDEMPOTENCY_KEY_REUSED",
            ErrorCode::IdempotencyInProgress => "IDEMPOTENCY_IN_PROGRESS",
            ErrorCode::IdempotencyAnswerLost => "IDEMPOTENCY_ANSWER_LOST",
            ErrorCode::DeliveryNotFound => "DELIVERY_NOT_FOUND",
            ErrorCode::TenantResolutionFailed => "TENANT_RESOLUTION_FAILED",
            ErrorCode::OrgNotFound => "ORG_NOT_FOUND",
            ErrorCode::InvalidTenantContext => "INVALID_TENANT_CONTEXT",
            ErrorCode::WorkspaceForbidden => "WORKSPACE_FORBIDDEN",
            ErrorCode::WorkspaceNameExists => "WORKSPACE_NAME_EXISTS",
            ErrorCode::NotRedeliverable => "NOT_REDELIVERABLE",
            ErrorCode::TooLarge => "TOO_LARGE",
            ErrorCode::FileTooLarge => "FILE_TOO_LARGE",
            ErrorCode::RangeNotSatisfiable => "RANGE_NOT_SATISFIABLE",
            ErrorCode::ValidationFailed => "VALIDATION_FAILED",
            ErrorCode::InvalidTtl => "INVALID_TTL",
            ErrorCode::TimeoutTooLong => "TIMEOUT_TOO_LONG",
            ErrorCode::DiskUnreadable => "DISK_UNREADABLE",
            ErrorCode::UpgradeRequired => "UPGRADE_REQUIRED",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::RateLimitExceeded => "rate_limit_exceeded",
            ErrorCode::AgentUnavailable => "AGENT_UNAVAILABLE",
            ErrorCode::PortUnavailable => "PORT_UNAVAILABLE",
            ErrorCode::NoReadyMachine => "NO_READY_MACHINE",
            ErrorCode::Unavailable => "SERVICE_UNAVAILABLE",
            ErrorCode::StartFailed => "START_FAILED",
            ErrorCode::Internal => "INTERNAL_ERROR",
        }
    }

    /// The HTTP status this code always has.
    pub fn status(self) -> u16 {
        match self {
            ErrorCode::InvalidJson
            | ErrorCode::AmbiguousRequest
            | ErrorCode::MissingParam
            | ErrorCode::InvalidId
            | ErrorCode::InvalidPath
            | ErrorCode::InvalidBody
            | ErrorCode::MissingFile
            | ErrorCode::InvalidSetupFile => 400,
            ErrorCode::InvalidToken | ErrorCode::WrongPassword => 401,
            ErrorCode::InsufficientCredits => 402,
            ErrorCode::InsufficientScope
            | ErrorCode::Forbidden
            | ErrorCode::ForbiddenPath
            | ErrorCode::QuotaExceeded
            | ErrorCode::PolicyDenied
            | ErrorCode::InvalidTenantContext
            | ErrorCode::WorkspaceForbidden => 403,
            ErrorCode::NotFound | ErrorCode::DeliveryNotFound | ErrorCode::OrgNotFound => 404,
            ErrorCode::MethodNotAllowed => 405,
            ErrorCode::InvalidState
            | ErrorCode::ComputerNotRunning
            | ErrorCode::DesktopNotRunning
            | ErrorCode::ComputerStarting
            | ErrorCode::ResourceState
            | ErrorCode::SnapshotInUse
            | ErrorCode::SnapshotNotReady
            | ErrorCode::NoSnapshotAvailable
            | ErrorCode::SnapshotAlreadyNamed
            | ErrorCode::NameTaken
            | ErrorCode::WorkspaceNameExists
            | ErrorCode::IdempotencyKeyReused
            | ErrorCode::IdempotencyInProgress
            | ErrorCode::IdempotencyAnswerLost
            | ErrorCode::NotRedeliverable => 409,
            ErrorCode::TooLarge | ErrorCode::FileTooLarge => 413,
            ErrorCode::RangeNotSatisfiable => 416,
            ErrorCode::ValidationFailed
            | ErrorCode::InvalidTtl
            | ErrorCode::TimeoutTooLong
            | ErrorCode::DiskUnreadable
            | ErrorCode::TenantResolutionFailed => 422,
            ErrorCode::UpgradeRequired => 426,
            ErrorCode::RateLimited | ErrorCode::RateLimitExceeded => 429,
            ErrorCode::AgentUnavailable | ErrorCode::PortUnavailable => 502,
            ErrorCode::NoReadyMachine | ErrorCode::Unavailable => 503,
            ErrorCode::StartFailed | ErrorCode::Internal => 500,
        }
    }

    /// Whether the same request may succeed later without the caller changing anything.
    pub fn retryable(self) -> bool {
        match self {
            ErrorCode::ComputerStarting
            | ErrorCode::RateLimited
            | ErrorCode::IdempotencyInProgress
            | ErrorCode::RateLimitExceeded
            | ErrorCode::AgentUnavailable
            | ErrorCode::PortUnavailable
            | ErrorCode::Unavailable => true,
            ErrorCode::InvalidJson
            | ErrorCode::AmbiguousRequest
            | ErrorCode::MissingParam
            | ErrorCode::InvalidId
            | ErrorCode::InvalidPath
            | ErrorCode::InvalidBody
            | ErrorCode::MissingFile
            | ErrorCode::InvalidToken
            | ErrorCode::InsufficientCredits
            | ErrorCode::WrongPassword
            | ErrorCode::InsufficientScope
            | ErrorCode::Forbidden
            | ErrorCode::ForbiddenPath
            | ErrorCode::InvalidSetupFile
            | ErrorCode::QuotaExceeded
            | ErrorCode::PolicyDenied
            | ErrorCode::NotFound
            | ErrorCode::MethodNotAllowed
            | ErrorCode::InvalidState
            | ErrorCode::ComputerNotRunning
            | ErrorCode::DesktopNotRunning
            | ErrorCode::ResourceState
            | ErrorCode::SnapshotInUse
            | ErrorCode::SnapshotNotReady
            | ErrorCode::NoSnapshotAvailable
            | ErrorCode::SnapshotAlreadyNamed
            | ErrorCode::NameTaken
            | ErrorCode::IdempotencyKeyReused
            | ErrorCode::IdempotencyAnswerLost
            | ErrorCode::DeliveryNotFound
            | ErrorCode::TenantResolutionFailed
            | ErrorCode::OrgNotFound
            | ErrorCode::InvalidTenantContext
            | ErrorCode::WorkspaceForbidden
            | ErrorCode::WorkspaceNameExists
            | ErrorCode::NotRedeliverable
            | ErrorCode::TooLarge
            | ErrorCode::FileTooLarge
            | ErrorCode::RangeNotSatisfiable
            | ErrorCode::ValidationFailed
            | ErrorCode::InvalidTtl
            | ErrorCode::TimeoutTooLong
            | ErrorCode::DiskUnreadable
            | ErrorCode::UpgradeRequired
            | ErrorCode::NoReadyMachine
            | ErrorCode::StartFailed
            | ErrorCode::Internal => false,
        }
    }
}

/// What a caller is told. The log keeps the source; it never goes over the wire.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    /// A sentence for a person: what, why, what to do. Seed texts are kept to the letter.
    pub message: String,
    /// Problems per request field, for 422.
    pub fields: BTreeMap<String, Vec<String>>,
    pub details: Option<Value>,
    pub retry_after_ms: Option<u64>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), fields: BTreeMap::new(), details: None, retry_after_ms: None }
    }

    /// A request field that does not fit.
    pub fn field(field: &str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        let mut error = Self::new(ErrorCode::ValidationFailed, format!("{field}: {problem}"));
        error.fields.insert(field.to_owned(), vec![problem]);
        error
    }

    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    pub fn retry_after_ms(mut self, milliseconds: u64) -> Self {
        self.retry_after_ms = Some(milliseconds);
        self
    }

    /// The envelope of every answer that is not 2xx. Text and code stand twice because the published
    /// clients look in different places.
    pub fn body(&self, request_id: &str) -> ErrorBody {
        ErrorBody {
            ok: false,
            error: ErrorDetail {
                code: self.code.as_str().to_owned(),
                message: self.message.clone(),
                request_id: request_id.to_owned(),
                retryable: self.code.retryable(),
                retry_after_ms: self.retry_after_ms,
                existing: self.details.as_ref().and_then(|details| details.get("existing")).cloned(),
                details: self.details.clone(),
            },
            message: self.message.clone(),
            code: self.code.as_str().to_owned(),
            request_id: request_id.to_owned(),
            retry_after: self.retry_after_ms.map(|ms| ms.div_ceil(1000)),
            errors: (!self.fields.is_empty()).then(|| self.fields.clone()),
        }
    }
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorBody {
    /// Always false.
    pub ok: bool,
    pub error: ErrorDetail,
    pub message: String,
    pub code: String,
    pub request_id: String,
    /// Seconds, when a later try may succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// Problems per request field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorDetail {
    pub code: String,
    pub message: String,
    pub request_id: String,
    pub retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What has the name that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existing: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}
