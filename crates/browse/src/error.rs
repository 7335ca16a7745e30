//! What can go wrong, in words for whoever asked for a file.

use std::{fmt, io};

use camino::{Utf8Path, Utf8PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum BrowseError {
    #[error("there is no {path} on this disk")]
    NotFound { path: String },
    #[error("{path} is not a folder")]
    NotADirectory { path: String },
    #[error("{path} is a folder, not a file")]
    IsADirectory { path: String },
    #[error("the path {path:?} cannot be used: {reason}")]
    InvalidPath { path: String, reason: &'static str },
    #[error("{path} is too large: more than {limit} {what}")]
    TooLarge { path: String, what: Quantity, limit: u64 },
    /// The bytes contradict themselves or the format.
    #[error("the disk is damaged: {detail}")]
    Corrupt { detail: String },
    /// Valid as far as can be told, but written by something newer or other than what Roost makes.
    #[error("the disk cannot be read: {detail}")]
    Unsupported { detail: String },
    /// The disk refers to something that it must not reach. Nothing of it was read.
    #[error("the disk {path} was refused: {reason}")]
    Refused { path: Utf8PathBuf, reason: String },
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: Utf8PathBuf, source: io::Error },
    /// Whoever receives the file or the archive stopped taking it.
    #[error("cannot pass the data on: {source}")]
    Write { source: io::Error },
}

/// What there is too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    Bytes,
    Entries,
    Directories,
    /// Bytes of folders (their lists of names) that one call had to look through.
    DirectoryBytes,
    /// Bytes in the path of one file.
    PathBytes,
}

impl fmt::Display for Quantity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Bytes => "bytes",
            Self::Entries => "entries",
            Self::Directories => "folders",
            Self::DirectoryBytes => "bytes of lists of names",
            Self::PathBytes => "bytes of path",
        })
    }
}

pub(crate) fn corrupt(detail: impl Into<String>) -> BrowseError {
    BrowseError::Corrupt { detail: detail.into() }
}

pub(crate) fn unsupported(detail: impl Into<String>) -> BrowseError {
    BrowseError::Unsupported { detail: detail.into() }
}

pub(crate) fn refused(path: &Utf8Path, reason: impl Into<String>) -> BrowseError {
    BrowseError::Refused { path: path.to_owned(), reason: reason.into() }
}

pub(crate) trait OnFile<T> {
    fn on(self, action: &'static str, path: &Utf8Path) -> Result<T, BrowseError>;
}

impl<T> OnFile<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Utf8Path) -> Result<T, BrowseError> {
        self.map_err(|source| BrowseError::Io { action, path: path.to_owned(), source })
    }
}
