//! Building: the web pages, the programs, the template.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // A failed test says what it wanted; the frames of its runtime are noise around that.
    command.current_dir(root()).env("RUST_BACKTRACE", "0");
    command
}

pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The `roost` program with the checks of a debug build, as the tests run it.
pub(crate) fn roost_under_test() -> PathBuf {
    target().join("debug/roost")
}

/// The `roost` program of this checkout, optimised.
pub(crate) fn roost() -> PathBuf {
    target().join("release/roost")
}

/// Where things are kept that take long to make and belong to no checkout.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(cache).join("roost"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".cache/roost"))
}

/// `npm ci`, unless `node_modules` is of this lock file already.
pub(crate) fn npm_install(directory: &Path) -> Result<()> {
    let lock = directory.join("package-lock.json");
    let stamp = directory.join("node_modules/.roost-lock");
    let wanted = std::fs::read(&lock).with_context(|| format!("failed to read {}", lock.display()))?;
    if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let name = directory.strip_prefix(root()).unwrap_or(directory).display().to_string();
    step::run(&format!("npm packages of {name}"), npm(directory).args(["ci", "--no-audit", "--no-fund"]))
        .context("is Node 20 installed, and is there a network?")?;
    std::fs::write(&stamp, wanted).with_context(|| format!("failed to write {}", stamp.display()))
}

pub(crate) fn npm(directory: &Path) -> Command {
    let mut command = Command::new("npm");
    command.current_dir(directory);
    command
}

/// The pages that the binary embeds.
pub(crate) fn web() -> Result<()> {
    let web = root().join("web");
    npm_install(&web)?;
    step::run("web pages", npm(&web).args(["run", "build"]))
}

/// The server and the guest agent, optimised: what runs and is measured.
pub(crate) fn programs() -> Result<()> {
    if !root().join("web/dist/index.html").exists() {
        bail!("web/dist is missing; the web pages are built before the programs");
    }
    step::run("build roost", cargo().args(["build", "--release", "--locked", "-p", "roost-cli"]))?;
    agent()
}

/// The agent as it is in every computer, also in those of the tests.
pub(crate) fn agent() -> Result<()> {
    // Static, so that it runs in a guest with another C library than the host's.
    step::run(
        "build roost-guest",
        cargo()
            .args(["rustc", "--profile", "guest", "--locked", "-p", "roost-guest", "--bin", "roost-guest"])
            .args(["--", "-C", "target-feature=+crt-static"]),
    )
}

/// The template and the memory of its small computers, unless these very ones are there already.
pub(crate) fn template(roost: &Path) -> Result<()> {
    let agent = target().join("guest/roost-guest");
    step::run("template miosa-desktop", Command::new(roost).args(["image", "build", "--agent"]).arg(agent))?;
    step::run("memory of small desktops", Command::new(roost).args(["image", "warm", "--size", "small"]))
}

pub(crate) fn write_openapi() -> Result<()> {
    web()?;
    step::run("build roost", cargo().args(["build", "--workspace", "--bins", "--locked"]))?;
    let text = step::output("openapi", Command::new(roost_under_test()).arg("openapi"))?;
    std::fs::write(root().join("openapi.json"), text).context("failed to write openapi.json")
}
