//! Debian packages: what running and testing need, installed where it is missing.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;

/// To build and to run computers.
const RUN: &[&str] = &[
    "ca-certificates",
    "debian-archive-keyring",
    "e2fsprogs",
    "gcc",
    "iproute2",
    "libc6-dev",
    "mmdebstrap",
    "protobuf-compiler",
    "slirp4netns",
    "uidmap",
    "util-linux",
];

/// From backports on Debian 12, whose own QEMU is older than 9.
const QEMU: &[&str] = &["qemu-system-x86", "qemu-utils"];

/// To test as a person does: in a browser, by ssh, with the official client.
const TEST: &[&str] = &[
    "chromium",
    "fonts-dejavu-core",
    "openssh-client",
    "postgresql",
    "procps",
    "python3",
    "python3-venv",
    "tigervnc-standalone-server",
    "xterm",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To compile and to test without virtual machines.
    Build,
    Run,
    Test,
}

pub(crate) fn install(purpose: Purpose) -> Result<()> {
    let mut wanted: Vec<&str> = match purpose {
        Purpose::Build => vec!["gcc", "libc6-dev", "protobuf-compiler"],
        Purpose::Run => RUN.to_vec(),
        Purpose::Test => [RUN, TEST].concat(),
    };
    wanted.retain(|package| !installed(package));
    let mut qemu: Vec<&str> = QEMU.to_vec();
    if purpose == Purpose::Build || qemu_is_new_enough() {
        qemu.clear();
    }
    if wanted.is_empty() && qemu.is_empty() {
        return Ok(());
    }
    if !std::path::Path::new("/usr/bin/apt-get").exists() {
        let list = [wanted, qemu].concat().join(" ");
        bail!("this is not a Debian system; install these programs' packages yourself: {list}");
    }
    step::run("package lists", &mut apt(&["update"]))
        .context("apt-get update failed: is there a network, and are the sources of this machine right?")?;
    if !wanted.is_empty() {
        let arguments = [&["install", "-y", "--no-install-recommends"], wanted.as_slice()].concat();
        step::run(&format!("packages: {}", wanted.join(" ")), &mut apt(&arguments))?;
    }
    if !qemu.is_empty() {
        install_qemu(&qemu)?;
    }
    Ok(())
}

fn install_qemu(packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    let release = os_release()?;
    let suite = format!("{release}-backports");
    if release == "bookworm" {
        enable_backports(&release, &suite)?;
        arguments.extend(["-t", &suite]);
    }
    arguments.extend(packages);
    step::run("packages: qemu", &mut apt(&arguments))?;
    if !qemu_is_new_enough() {
        bail!("the QEMU of {release} is older than 9: install a newer one, or use Debian 13");
    }
    Ok(())
}

/// Adds the backports suite on the mirror that this machine already uses.
fn enable_backports(release: &str, suite: &str) -> Result<()> {
    let list = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(CODENAME) $(COMPONENT) $(ORIGIN) $(REPO_URI)",
            "Created-By: Packages",
        ])
        .output()
        .context("failed to run apt-get indextargets")?;
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    if text.lines().any(|line| line.starts_with(&format!("{suite} main "))) {
        return Ok(());
    }
    let mirror = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{release} main Debian ")))
        .with_context(|| format!("the apt sources of this machine have no mirror of {release} main"))?;
    let source = format!(
        "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        mirror.trim_end_matches('/')
    );
    let file = std::env::temp_dir().join(format!("roost-backports-{}.sources", std::process::id()));
    std::fs::write(&file, source).with_context(|| format!("failed to write {}", file.display()))?;
    let target = "/etc/apt/sources.list.d/roost-backports.sources";
    let copied = step::run(
        &format!("apt source {target} for QEMU 10"),
        as_root("install").arg("-m644").arg(&file).arg(target),
    );
    std::fs::remove_file(&file).with_context(|| format!("failed to remove {}", file.display()))?;
    copied?;
    step::run("package lists", &mut apt(&["update"]))
}

fn qemu_is_new_enough() -> bool {
    let Ok(output) = Command::new("qemu-system-x86_64").arg("--version").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = text.strip_prefix("QEMU emulator version ").and_then(|rest| rest.split('.').next());
    installed("qemu-utils")
        && major.and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 9)
}

fn installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    output.is_ok_and(|output| output.stdout == b"installed")
}

fn os_release() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("failed to read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = as_root("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    command
}

fn as_root(program: &str) -> Command {
    let mut command = if is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(program);
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

pub(crate) fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}
