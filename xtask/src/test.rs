//! `cargo xtask test`: format, lints, dependencies, unit tests, pages, the database tests on PostgreSQL, then the tests
//! that boot computers.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::Purpose;
use crate::postgres::Cluster;
use crate::{build, packages, step};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Full,
    /// Without virtual machines and without a database server.
    Fast,
}

pub(crate) fn test(extent: Extent) -> Result<()> {
    packages::install(match extent {
        Extent::Full => Purpose::Test,
        Extent::Fast => Purpose::Build,
    })?;
    step::run("format", build::cargo().args(["fmt", "--all", "--check"]))
        .context("`cargo fmt --all` mends it")?;

    let web = build::root().join("web");
    build::npm_install(&web)?;
    step::run("web types", build::npm(&web).args(["run", "check"]))?;
    step::show("web tests", build::npm(&web).arg("test"))?;
    build::web()?;

    step::run(
        "clippy",
        build::cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    )?;
    deny()?;
    build::programs()?;
    openapi()?;
    step::show(
        "unit tests",
        build::cargo().args(["test", "--release", "--locked", "--workspace", "--exclude", "roost-guest"]),
    )?;
    // Its integration tests start processes and count them: one at a time.
    step::show(
        "guest agent tests",
        build::cargo().args(["test", "--release", "--locked", "-p", "roost-guest"]),
    )?;
    if extent == Extent::Full {
        on_postgres()?;
        machines()?;
    }
    Ok(())
}

/// What speaks to the database once more, with the other engine.
fn on_postgres() -> Result<()> {
    let cluster = Cluster::start()?;
    step::show(
        "tests on PostgreSQL",
        build::cargo()
            .args([
                "test",
                "--release",
                "--locked",
                "-p",
                "roost-store",
                "-p",
                "roost-control",
                "-p",
                "roost-http",
            ])
            .env("ROOST_TEST_DATABASE", cluster.address()),
    )?;
    cluster.stop()
}

fn deny() -> Result<()> {
    let there =
        build::cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success());
    if !there {
        step::run(
            "install cargo-deny",
            build::cargo().args(["install", "--locked", "--quiet", "cargo-deny"]),
        )?;
    }
    // Advisories need a database from the network at every run; they belong to a scheduled job.
    step::run(
        "dependencies",
        build::cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]),
    )
}

fn openapi() -> Result<()> {
    let committed = build::root().join("openapi.json");
    step::run(
        "openapi.json is what the routes say",
        Command::new("sh")
            .args(["-c", "\"$0\" openapi | diff -u \"$1\" -"])
            .arg(build::roost())
            .arg(committed),
    )
    .context("`cargo xtask openapi` writes it anew; look at the difference before you commit it")
}

/// Everything that boots real computers.
fn machines() -> Result<()> {
    build::template()?;
    step::run("doctor", Command::new(build::roost()).arg("doctor"))?;
    let python = python()?;
    let cluster = Cluster::start()?;
    let browser = build::root().join("tests/browser");
    build::npm_install(&browser)?;
    step::show(
        "guest agent tests on an X server",
        build::cargo()
            .args(["test", "--release", "--locked", "-p", "roost-guest", "--test", "desktop"])
            .args(["--", "--include-ignored", "--test-threads=1"]),
    )?;
    step::show(
        "machine process tests",
        build::cargo().args([
            "test",
            "--release",
            "--locked",
            "-p",
            "roost-machine",
            "--",
            "--ignored",
            "--test-threads=1",
        ]),
    )?;
    step::show(
        "tests on real computers",
        build::cargo()
            .args([
                "test",
                "--release",
                "--locked",
                "-p",
                "roost-tests",
                // One run shows everything that is wrong.
                "--no-fail-fast",
                "--",
                "--ignored",
                "--test-threads=2",
            ])
            .env("ROOST_BIN", build::roost())
            .env("ROOST_TEST_DATABASE", cluster.address())
            .env("ROOST_TEST_PYTHON", python),
    )?;
    cluster.stop()
}

/// A Python with the official client and what makes requests from OpenAPI, kept outside the checkout.
fn python() -> Result<std::path::PathBuf> {
    let requirements = build::root().join("tests/python/requirements.txt");
    let wanted = std::fs::read(&requirements).context("failed to read tests/python/requirements.txt")?;
    let venv = build::cache()?.join("python");
    let python = venv.join("bin/python");
    let stamp = venv.join("requirements.txt");
    if !std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        if Path::new(&venv).exists() {
            std::fs::remove_dir_all(&venv).with_context(|| format!("failed to remove {}", venv.display()))?;
        }
        step::run("python environment", Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        step::run(
            "official Python client and schemathesis",
            Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements),
        )?;
        std::fs::write(&stamp, wanted).with_context(|| format!("failed to write {}", stamp.display()))?;
    }
    Ok(python)
}
