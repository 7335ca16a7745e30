//! `cargo xtask bench`: what a measurement needs, then the measurement.

use anyhow::Result;

use crate::packages::Purpose;
use crate::{build, packages, step};

/// The options are `roost-bench`'s own; `--help` lists them.
pub(crate) fn bench(options: &[&str]) -> Result<()> {
    packages::install(Purpose::Test)?;
    build::web()?;
    build::programs()?;
    build::template(&build::roost())?;
    step::run(
        "build roost-bench",
        build::cargo().args(["build", "--release", "--locked", "-p", "roost-bench"]),
    )?;
    step::show(
        "bench",
        std::process::Command::new(build::target().join("release/roost-bench"))
            .args(options)
            .env("ROOST_BIN", build::roost()),
    )
}
