//! Why a call on files failed, and how the host is told.

use std::io;

use roost_guest_proto::{FILE_IS_DIRECTORY, FILE_OUTSIDE};
use tonic::Status;

#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("{path:?} is no path of a file: {why}")]
    Path { path: String, why: &'static str },
    #[error("{FILE_OUTSIDE}: {0}")]
    Outside(String),
    #[error("{0} {FILE_IS_DIRECTORY}")]
    IsDirectory(String),
    #[error("{0} is not a directory")]
    NotADirectory(String),
    #[error("{0} is neither a file nor a directory")]
    NotAFile(String),
    #[error("{0} is there already")]
    Exists(String),
    #[error("{0} is one of the directories that files are in; what is in it can be changed, it cannot")]
    Root(String),
    #[error("{from} cannot be put into itself")]
    IntoItself { from: String },
    #[error("the tree below {0} is too deep")]
    TooDeep(String),
    #[error("{0:?} is no name for an upload: 8 to 64 letters, digits and dashes")]
    Upload(String),
    #[error("the upload has {received} bytes, and goes on from there")]
    Offset { received: u64 },
    #[error("the upload is being written by somebody else")]
    InUse,
    #[error("the upload has more bytes than it was to have")]
    TooMuch,
    #[error("the call ended before the file did")]
    Incomplete,
    #[error("the archive cannot be unpacked: {0}")]
    Archive(String),
    #[error("{0:?} is no pattern of a name")]
    Pattern(String),
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: String, source: io::Error },
}

impl From<FileError> for Status {
    fn from(error: FileError) -> Self {
        let message = error.to_string();
        match error {
            FileError::Path { .. }
            | FileError::Upload(_)
            | FileError::Archive(_)
            | FileError::Pattern(_)
            | FileError::TooMuch => Status::invalid_argument(message),
            FileError::Outside(_) => Status::permission_denied(message),
            FileError::Exists(_) => Status::already_exists(message),
            FileError::IsDirectory(_)
            | FileError::NotADirectory(_)
            | FileError::NotAFile(_)
            | FileError::Root(_)
            | FileError::IntoItself { .. }
            | FileError::TooDeep(_)
            | FileError::InUse => Status::failed_precondition(message),
            FileError::Offset { .. } => Status::out_of_range(message),
            FileError::Incomplete => Status::cancelled(message),
            FileError::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Status::not_found(message),
                io::ErrorKind::AlreadyExists => Status::already_exists(message),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    Status::resource_exhausted(message)
                }
                io::ErrorKind::InvalidFilename => Status::invalid_argument(message),
                io::ErrorKind::NotADirectory
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::DirectoryNotEmpty
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::ResourceBusy
                | io::ErrorKind::ExecutableFileBusy
                | io::ErrorKind::InvalidInput => Status::failed_precondition(message),
                _ => match rustix::io::Errno::from_io_error(&source) {
                    // Links that lead to each other, or into `/proc` of ourselves.
                    Some(rustix::io::Errno::LOOP) => Status::failed_precondition(message),
                    _ => Status::internal(message),
                },
            },
        }
    }
}
