//! Builds templates: the disk, kernel and initrd that computers start from.
//!
//! # What a build does
//!
//! ```text
//!  images/desktop (embedded)   apt sources of this machine        roost-guest
//!            |                        |                               |
//!            +-----------+------------+                               |
//!                        v                                            |
//!   mmdebstrap -> directory -> mkfs.ext4 -d  =  BASE                  |
//!   (kernel, initrd beside it)  kept in .cache/<name>/<recipe key>/   |
//!                        |                                            |
//!                        +---- sparse copy + debugfs <----------------+
//!                                     v
//!                        qemu-img convert -> base.qcow2 -> <name>/<digest>/, `current`
//! ```
//!
//! The slow half, a minute of mmdebstrap, depends only on the recipe and on where packages come from, so
//! its result is cached; a new agent costs a few seconds. Nothing is ever mounted from an image. The kernel is unpacked
//! on the way (`kernel`): all computers share it then, and none unpacks it while it boots.
//!
//! An ordinary user builds in a user namespace in which that user is root and the other accounts of the
//! guest are the user's subordinate ids (`/etc/subuid`). Root and user thereby run the same commands, and
//! everything that survives the build belongs to whoever ran it.
//!
//! # What stays true
//!
//! * `<name>/current` is a symlink to a complete template, or absent. It is flipped by a rename after all
//!   files of the template are on disk, so a build killed at any moment leaves the old or the new one.
//! * A template directory is named by its digest and never changes: computers have it as backing file.
//!   This crate never deletes one.
//! * Half-done work lives in `.build-*` directories, under a lock that dies with its process. Whoever holds
//!   the lock may delete all of them, so the next build cleans up after a killed one.
//! * Results are world-readable: a QEMU may run as an account of its own.
//!
//! This crate knows nothing of computers, tenants or QEMU's command line.

mod apt;
mod build;
mod command;
mod digest;
mod error;
mod filesystem;
mod kernel;
mod namespace;
mod packages;
mod preflight;
mod recipe;
mod template;

pub use build::{Packages, Phase, Progress};
pub use digest::Digest;
pub use error::{ImageError, Shortcoming};
pub use template::{Manifest, Template, Templates};

/// The name of the one template there is.
pub const DESKTOP: &str = "miosa-desktop";
