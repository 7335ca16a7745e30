//! One file per resource.

pub(crate) mod computers;
pub(crate) mod connection;
pub(crate) mod desktop;
pub(crate) mod exec;
pub(crate) mod server;
pub(crate) mod snapshot_files;
pub(crate) mod snapshots;
pub(crate) mod tickets;
