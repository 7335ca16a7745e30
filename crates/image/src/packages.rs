//! Runs mmdebstrap and understands what it says.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use camino::{Utf8Path, Utf8PathBuf};

use crate::{
    apt::{self, Mirrors, Settings},
    build::{Phase, Progress},
    error::{ImageError, OnFile},
    namespace::as_guest_root,
    recipe,
};

/// Lines of the log an error shows.
const TAIL: usize = 15;

/// Where things are during a build, below its directory.
pub(crate) struct Layout {
    pub(crate) directory: Utf8PathBuf,
    pub(crate) root: Utf8PathBuf,
    /// Kernel, initrd and facts that the recipe leaves.
    pub(crate) products: Utf8PathBuf,
    pub(crate) log: Utf8PathBuf,
}

pub(crate) fn install(
    layout: &Layout,
    mirrors: &Mirrors,
    settings: &Settings,
    report: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ImageError> {
    let recipe = layout.directory.join("recipe");
    recipe::write_to(&recipe)?;
    let sources = layout.directory.join("debian.sources");
    std::fs::write(&sources, mirrors.sources()).on("write", &sources)?;
    let guest_settings = recipe.join("root/etc/apt/apt.conf.d/50mirror");
    if let Some(parent) = guest_settings.parent() {
        std::fs::create_dir_all(parent).on("create", parent)?;
    }
    let text: String = settings.guest.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&guest_settings, text).on("write", &guest_settings)?;
    std::fs::create_dir_all(&layout.products).on("create", &layout.products)?;

    let mut log = File::create(&layout.log).on("create", &layout.log)?;
    let mut command = mmdebstrap(layout, &recipe, &sources, settings);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| ImageError::Spawn { program: "mmdebstrap".into(), source })?;

    let mut reading = Reading::default();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.on("read the messages of", Utf8Path::new("mmdebstrap"))?;
            log.write_all(&line).and_then(|()| log.write_all(b"\n")).on("write", &layout.log)?;
            let line = String::from_utf8_lossy(&line);
            if let Some(percent) = reading.take(line.trim_end()) {
                report(Progress { phase: Phase::Packages, percent: Some(percent), detail: line.trim_end() });
            }
        }
    }
    let status = child.wait().on("wait for", Utf8Path::new("mmdebstrap"))?;
    if status.success() { Ok(()) } else { Err(reading.failure(status.to_string(), layout)) }
}

fn mmdebstrap(layout: &Layout, recipe: &Utf8Path, sources: &Utf8Path, settings: &Settings) -> Command {
    let mut command = as_guest_root("mmdebstrap");
    command
        .args(["--verbose", "--mode=root", "--variant=apt", "--format=directory"])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--aptopt=Acquire::Languages \"none\"")
        // Nothing of this directory survives a crash anyway.
        .arg("--dpkgopt=force-unsafe-io");
    for setting in settings.building.iter().chain(&settings.guest) {
        command.arg(format!("--aptopt={setting}"));
    }
    for pattern in recipe::unneeded() {
        command.arg(format!("--dpkgopt={pattern}"));
    }
    // Hooks are shell text: paths go in as variables, so that no character in them means anything.
    command
        .env("RECIPE", recipe)
        .env("PRODUCTS", &layout.products)
        .env("TMPDIR", &layout.directory)
        .arg(format!("--include={}", recipe::packages().join(",")))
        .arg(r#"--customize-hook=umask 022 && mkdir "$1/tmp/recipe" && cp -R "$RECIPE/." "$1/tmp/recipe""#)
        .arg(r#"--customize-hook=sh "$RECIPE/fetch" "$1/tmp/recipe""#)
        .arg(r#"--customize-hook=chroot "$1" sh /tmp/recipe/setup"#)
        .arg(r#"--customize-hook=cp "$1"/tmp/recipe/out/* "$PRODUCTS""#)
        .args([apt::SUITE, layout.root.as_str(), sources.as_str()]);
    command
}

/// What the messages of mmdebstrap say about how far it is and what went wrong.
#[derive(Debug, Default)]
struct Reading {
    /// apt runs twice: for the essential packages, then for ours.
    runs: u8,
    packages: u32,
    steps: u32,
    percent: u8,
    mirror: Option<String>,
    disk_full: bool,
    tail: VecDeque<String>,
}

impl Reading {
    /// The share of all work done, if the line says something worth showing.
    fn take(&mut self, line: &str) -> Option<u8> {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
        if line.contains("No space left on device") {
            self.disk_full = true;
        }
        let unreachable = ["Failed to fetch", "Could not resolve", "Could not connect", "Cannot initiate"];
        if self.mirror.is_none() && unreachable.iter().any(|text| line.contains(text)) {
            self.mirror = Some(line.trim_start_matches(['E', 'W', 'N', ':', ' ']).to_owned());
        }
        if let Some(count) = newly_installed(line) {
            (self.runs, self.packages, self.steps) = (self.runs.saturating_add(1), count, 0);
            return None;
        }
        // Each package is fetched, unpacked and set up. The first run and the recipe's own steps are short.
        let step = ["Get:", "Unpacking ", "Setting up "].iter().any(|word| line.starts_with(word));
        let own = line.starts_with("roost: ");
        if step {
            self.steps += 1;
            let share = (self.steps * 100 / (self.packages.max(1) * 3)).min(100);
            self.percent = self.percent.max(
                u8::try_from(match self.runs {
                    0 => 0,
                    1 => share / 5,
                    _ => 20 + share * 7 / 10,
                })
                .unwrap_or(u8::MAX),
            );
        } else if own {
            self.percent = self.percent.saturating_add(1).clamp(90, 99);
        }
        (step || own).then_some(self.percent)
    }

    fn failure(self, status: String, layout: &Layout) -> ImageError {
        let log = layout.log.clone();
        match self {
            Self { disk_full: true, .. } => ImageError::DiskFull { path: layout.directory.clone() },
            Self { mirror: Some(detail), .. } => ImageError::Mirror { detail, log },
            Self { tail, .. } => ImageError::Packages { status, log, tail: Vec::from(tail).join("\n") },
        }
    }
}

/// `0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<u32> {
    let (before, _) = line.split_once(" newly installed,")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            directory: "/b".into(),
            root: "/b/root".into(),
            products: "/b/out".into(),
            log: "/log".into(),
        }
    }

    #[test]
    fn progress_grows_to_the_end() {
        let mut reading = Reading::default();
        let mut shown = Vec::new();
        for count in [2, 100] {
            reading.take(&format!("0 upgraded, {count} newly installed, 0 to remove and 0 not upgraded."));
            for word in ["Get:1 http://m trixie/main amd64 x", "Unpacking x (1) ...", "Setting up x (1) ..."]
            {
                for _ in 0..count {
                    shown.extend(reading.take(word));
                }
            }
        }
        assert_eq!(reading.take("Reading package lists..."), None);
        shown.extend(reading.take("roost: packing the initrd"));
        assert!(shown.is_sorted());
        assert_eq!((shown.first(), shown.last()), (Some(&3), Some(&91)));
    }

    #[test]
    fn failures_are_told_apart() {
        let mut reading = Reading::default();
        reading.take("E: Failed to fetch http://m.example/x  Could not connect to m.example:80");
        assert!(matches!(reading.failure("exit status: 1".into(), &layout()),
            ImageError::Mirror { detail, .. } if detail.starts_with("Failed to fetch http://m.example")));

        let mut reading = Reading::default();
        reading.take("dpkg: error: write failed: No space left on device");
        assert!(matches!(reading.failure("exit status: 1".into(), &layout()), ImageError::DiskFull { .. }));

        let mut reading = Reading::default();
        for number in 0..100 {
            reading.take(&format!("line {number}"));
        }
        let error = reading.failure("exit status: 25".into(), &layout()).to_string();
        assert!(error.contains("line 99") && !error.contains("line 80") && error.contains("/log"), "{error}");
    }
}
