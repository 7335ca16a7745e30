//! One file per resource.

pub(crate) mod admin;
pub(crate) mod apps;
pub(crate) mod auto_stop;
pub(crate) mod catalog;
pub(crate) mod computers;
pub(crate) mod connection;
pub(crate) mod credits;
pub(crate) mod desktop;
pub(crate) mod env;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod identity;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod ports;
pub(crate) mod projects;
pub(crate) mod server;
pub(crate) mod shares;
pub(crate) mod snapshot_files;
pub(crate) mod snapshots;
pub(crate) mod tickets;
pub(crate) mod webhooks;
pub(crate) mod workspaces;
