//! Errors that speak twice: what the caller may read, and what the log keeps.

use std::error::Error;

use roost_api::{ApiError, ErrorCode};
use roost_launch::LaunchError;
use roost_store::StoreError;

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
#[error("{public}")]
pub struct Failure {
    /// For the caller.
    pub public: ApiError,
    /// For the log.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ApiError::new(code, message).into()
    }

    /// Something on our side broke; the caller learns that much.
    pub fn internal(source: impl Error + Send + Sync + 'static) -> Self {
        Self {
            public: ApiError::new(
                ErrorCode::Internal,
                "something failed on the server; its log has the details under this request id",
            ),
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn computer_not_found() -> Self {
        Self::new(ErrorCode::NotFound, "computer not found")
    }

    pub(crate) fn snapshot_not_found() -> Self {
        Self::new(ErrorCode::NotFound, "snapshot not found")
    }

    /// What the guest agent answered, or that it did not.
    pub(crate) fn from_guest(status: tonic::Status) -> Self {
        let public = match status.code() {
            tonic::Code::InvalidArgument | tonic::Code::NotFound | tonic::Code::FailedPrecondition => {
                let mut error = ApiError::new(ErrorCode::ValidationFailed, status.message());
                error.fields.insert("request".to_owned(), vec![status.message().to_owned()]);
                error
            }
            tonic::Code::ResourceExhausted => ApiError::new(ErrorCode::ResourceState, status.message()),
            tonic::Code::Unimplemented => ApiError::new(
                ErrorCode::ResourceState,
                "the agent inside this computer is older than the server and cannot do this; make a new computer",
            ),
            _ => ApiError::new(
                ErrorCode::AgentUnavailable,
                "the agent inside the computer does not answer; try again, or restart the computer",
            )
            .retry_after_ms(1000),
        };
        Self { public, source: Some(Box::new(status)) }
    }
}

impl From<ApiError> for Failure {
    fn from(public: ApiError) -> Self {
        Self { public, source: None }
    }
}

impl From<StoreError> for Failure {
    fn from(source: StoreError) -> Self {
        if source.is_unstorable_text() {
            // What no table holds is in no table: neither can it be written, nor found.
            let message = "the request holds a NUL character, which cannot be stored; leave it out";
            return Self { public: ApiError::new(ErrorCode::ValidationFailed, message), source: None };
        }
        match source {
            StoreError::Limit { reached } => crate::quotas::reached(&reached).into(),
            source => Self::internal(source),
        }
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Refused { reason } => Self::new(ErrorCode::ResourceState, reason),
            LaunchError::NoRoom { reason } => Self::new(ErrorCode::NoReadyMachine, reason),
            source @ (LaunchError::File { .. }
            | LaunchError::Spawn { .. }
            | LaunchError::Spec { .. }
            | LaunchError::Unreachable { .. }
            | LaunchError::Cancelled) => Self::internal(source),
        }
    }
}

impl From<crate::TemplateError> for Failure {
    fn from(source: crate::TemplateError) -> Self {
        Self::internal(source)
    }
}
