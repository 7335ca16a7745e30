//! `cargo xtask test`: format, lints, dependencies, unit tests, pages, the database tests on PostgreSQL, then the tests
//! that boot computers.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

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
    let programs = Programs::build()?;
    openapi()?;
    for program in &programs.tests {
        // What boots computers has its turn below.
        if program.package != "roost-tests" {
            program.run(&[], &[])?;
        }
    }
    if extent == Extent::Full {
        on_postgres(&programs)?;
        machines(&programs)?;
    }
    Ok(())
}

/// What speaks to the database once more, with the other engine.
fn on_postgres(programs: &Programs) -> Result<()> {
    let cluster = Cluster::start()?;
    for program in &programs.tests {
        if ["roost-store", "roost-control", "roost-http"].contains(&program.package.as_str()) {
            program.run(&[], &[("ROOST_TEST_DATABASE", &cluster.address())])?;
        }
    }
    cluster.stop()
}

fn openapi() -> Result<()> {
    let committed = build::root().join("openapi.json");
    step::run(
        "openapi.json is what the routes say",
        Command::new("sh")
            .args(["-c", "\"$0\" openapi | diff -u \"$1\" -"])
            .arg(build::roost_under_test())
            .arg(committed),
    )
    .context("`cargo xtask openapi` writes it anew; look at the difference before you commit it")
}

/// Everything that boots real computers.
fn machines(programs: &Programs) -> Result<()> {
    build::agent()?;
    build::template(&build::roost_under_test())?;
    step::run("doctor", Command::new(build::roost_under_test()).arg("doctor"))?;
    let python = python()?;
    let cluster = Cluster::start()?;
    let browser = build::root().join("tests/browser");
    build::npm_install(&browser)?;
    programs.named("roost-guest", "desktop")?.run(&["--ignored", "--test-threads=1"], &[])?;
    programs.named("roost-machine", "vm")?.run(&["--ignored", "--test-threads=1"], &[])?;
    programs.named("roost-tests", "it")?.run(
        &["--ignored", "--test-threads=2"],
        &[
            ("ROOST_BIN", &build::roost_under_test().to_string_lossy()),
            ("ROOST_TEST_DATABASE", &cluster.address()),
            ("ROOST_TEST_PYTHON", &python.to_string_lossy()),
        ],
    )?;
    cluster.stop()
}

/// The test programs of the workspace. Cargo builds them all at once and they are started from here, because
/// `cargo test -p` unites the features of other packages than `--workspace` does, and would compile most things again.
struct Programs {
    tests: Vec<Program>,
}

struct Program {
    package: String,
    target: String,
    /// The directory of the package, where `cargo test` would run it.
    directory: PathBuf,
    executable: PathBuf,
}

impl Programs {
    fn build() -> Result<Self> {
        let messages = step::output(
            "build of roost and its tests",
            build::cargo().args([
                "build",
                "--workspace",
                "--bins",
                "--tests",
                "--locked",
                "--message-format=json",
            ]),
        )?;
        let mut tests = Vec::new();
        for line in messages.lines() {
            let message: Value = serde_json::from_str(line).context("cargo writes what is not JSON")?;
            let (Some(executable), true) =
                (message["executable"].as_str(), message["profile"]["test"] == true)
            else {
                continue;
            };
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let manifest = PathBuf::from(text(&message["manifest_path"]));
            let directory = manifest.parent().context("a manifest is in no directory")?.to_owned();
            let id = text(&message["package_id"]);
            tests.push(Program {
                // `path+file:///somewhere/crates/store#roost-store@0.1.0`, without the name where the directory has it.
                package: match id.rsplit_once('#') {
                    Some((_, name)) if name.contains('@') => {
                        name.split('@').next().unwrap_or(name).to_owned()
                    }
                    _ => directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                },
                target: text(&message["target"]["name"]),
                directory,
                executable: executable.into(),
            });
        }
        ensure!(!tests.is_empty(), "cargo has built no tests");
        tests.sort_by(|one, other| (&one.package, &one.target).cmp(&(&other.package, &other.target)));
        Ok(Self { tests })
    }

    fn named(&self, package: &str, target: &str) -> Result<&Program> {
        self.tests
            .iter()
            .find(|program| program.package == package && program.target == target)
            .with_context(|| format!("there is no test program {target} in {package}"))
    }
}

impl Program {
    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        step::show(
            &format!("{} {}", self.package, self.target),
            Command::new(&self.executable)
                .args(arguments)
                .current_dir(&self.directory)
                .env("RUST_BACKTRACE", "0")
                .envs(environment.iter().copied()),
        )
    }
}

/// What may come into the tree: a check for whoever changes the dependencies. The tool takes longer to compile than Roost
/// itself, so it is no part of the tests.
pub(crate) fn deny() -> Result<()> {
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
