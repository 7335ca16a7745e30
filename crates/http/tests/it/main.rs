//! The wire against simulated machines. One program, because linking each file by itself takes longer than running it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod apps;
mod autostop;
mod catalog;
mod computers;
mod connection;
mod credits;
mod domains;
mod env;
mod events;
mod files;
mod guest;
mod guest_events;
mod idempotency;
mod keys;
mod limits;
mod logs;
mod metrics;
mod policies;
mod ports;
mod preview;
mod programs;
mod quotas;
mod settings;
mod setup;
mod shell;
mod snapshots;
mod support;
mod tenancy;
mod webhooks;
