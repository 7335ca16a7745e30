//! Warm templates: a desktop that was booted once and is continued by every new computer of its size.
//!
//! [`build`] makes one. The control plane does so in the background, one at a time, when the first computer of
//! a size had to boot; until it is there, and wherever it cannot be made, computers boot.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use camino::Utf8Path;
use futures_util::StreamExt;
use roost_api::{ComputerId, ErrorCode, Size};
use roost_guest_proto::v1::process_client::ProcessClient;
use roost_guest_proto::v1::run_input::Input;
use roost_guest_proto::v1::system_client::SystemClient;
use roost_guest_proto::v1::{RunInput, RunStart, UsageRequest};
use roost_launch::{Launcher, Need, Report};
use roost_machine_proto::{Accelerator, BootSpec, DiskSpec, MachineSpec, NetworkSpec};
use roost_store::Exclusive;

use crate::{Control, Failure, TemplateFiles};

/// Real memory and room on the disk that the building takes.
const NEED: Need = Need { memory: 1024 * 1024 * 1024, disk: 2048 * 1024 * 1024 };

/// Run before the memory is frozen, so that what every computer runs first is in it.
const FIRST_COMMANDS: [&[&str]; 5] = [
    &["/bin/bash", "-lc", "true"],
    &["python3", "-c", "import json"],
    &["ls", "/"],
    &["xdotool", "getmouselocation"],
    &["true"],
];
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A desktop is at rest when it has used no more of its processor than this in each of so many seconds: asking
/// for it costs about half of that under emulation.
const QUIET_MS: u64 = 60;
const QUIET_S: u32 = 4;
const SETTLE_LIMIT_S: u32 = 120;

/// What a warm template is made of.
#[derive(Debug, Clone)]
pub struct WarmParts {
    pub template: TemplateFiles,
    pub size: Size,
    pub accelerator: Accelerator,
    pub network: NetworkSpec,
}

/// Boots a desktop and makes its memory and disk the directory `target`. The machine is nobody's computer and is
/// gone afterwards, also when this fails.
pub async fn build(launcher: &dyn Launcher, parts: &WarmParts, target: &Utf8Path) -> Result<(), Failure> {
    launcher.admit(&NEED).await?;
    let computer = ComputerId::new();
    let built = boot_and_publish(launcher, parts, computer, target).await;
    let ended = match &built {
        Ok(()) => Ok(()),
        Err(_) => launcher.end(computer).await,
    };
    let removed = match ended {
        Ok(()) => launcher.remove(computer).await,
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        // The next start of the server finds it.
        tracing::warn!(%computer, error = &error as &dyn std::error::Error,
            "failed to remove the machine that a warm template was made with");
    }
    built
}

async fn boot_and_publish(
    launcher: &dyn Launcher,
    parts: &WarmParts,
    computer: ComputerId,
    target: &Utf8Path,
) -> Result<(), Failure> {
    let template = &parts.template;
    let (base, size_gib) = (template.base.clone(), parts.size.disk_gib());
    let spec = MachineSpec {
        computer,
        generation: 1,
        hostname: "roost".to_owned(),
        machine_id: computer.as_uuid().simple().to_string(),
        vcpus: parts.size.vcpus(),
        memory: parts.size.memory(),
        disk: DiskSpec::New { base, size_gib, memory: None },
        boot: BootSpec { kernel: template.kernel.clone(), initrd: template.initrd.clone() },
        accelerator: parts.accelerator,
        network: parts.network.clone(),
    };
    launcher.launch(&spec).await?;
    let mut states = launcher.watch(computer);
    loop {
        match states.next().await.map(|state| state.report) {
            Some(Report::Running) => break,
            Some(Report::Preparing | Report::Booting | Report::Stopping) => {}
            Some(Report::Failed { reason, .. }) => {
                let message = format!("the template did not boot: {reason}");
                return Err(Failure::new(ErrorCode::StartFailed, message));
            }
            Some(Report::Stopped | Report::Vanished) | None => {
                let message = "the machine ended while the template booted; see machine.log of the server";
                return Err(Failure::new(ErrorCode::StartFailed, message));
            }
        }
    }
    for argv in FIRST_COMMANDS {
        let ran = tokio::time::timeout(COMMAND_LIMIT, run(launcher, computer, argv)).await;
        match ran {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                let failure = &failure as &dyn std::error::Error;
                tracing::warn!(?argv, failure, "a first command of a warm template failed");
            }
            Err(_) => tracing::warn!(?argv, "a first command of a warm template took too long"),
        }
    }
    settle(launcher, computer).await;
    Ok(launcher.publish(computer, target).await?)
}

/// Waits until the desktop has done what it does once after its start: what is still to be done in the memory is
/// done by every computer that continues from it. There is no event for that; the guest's own account is looked
/// at once a second.
async fn settle(launcher: &dyn Launcher, computer: ComputerId) {
    let busy = async || -> Result<u64, Failure> {
        let mut client = SystemClient::new(launcher.guest(computer)?);
        let usage = client.usage(UsageRequest {}).await.map_err(Failure::from_guest)?;
        Ok(usage.into_inner().cpu_busy_ms)
    };
    let (mut quiet, mut before) = (0, 0);
    for _ in 0..SETTLE_LIMIT_S {
        match busy().await {
            Ok(now) => {
                quiet = if now.saturating_sub(before) <= QUIET_MS { quiet + 1 } else { 0 };
                before = now;
            }
            Err(failure) => {
                let failure = &failure as &dyn std::error::Error;
                tracing::warn!(failure, "the guest does not say how busy it is; its memory is kept as it is");
                return;
            }
        }
        if quiet == QUIET_S {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tracing::warn!(
        "the desktop is still busy {SETTLE_LIMIT_S} s after its start; its memory is kept as it is"
    );
}

/// Runs a command to its end, whatever that is.
async fn run(launcher: &dyn Launcher, computer: ComputerId, argv: &[&str]) -> Result<(), Failure> {
    let mut client = ProcessClient::new(launcher.guest(computer)?);
    let start = RunStart {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        cwd: String::new(),
        env: HashMap::new(),
        user: String::new(),
        timeout_ms: u64::try_from(COMMAND_LIMIT.as_millis()).unwrap_or(u64::MAX),
        stdin: false,
        terminal: None,
    };
    // The input stays open until the command has ended: closing it hangs the command up.
    let start = tokio_stream::once(RunInput { input: Some(Input::Start(start)) });
    let inputs = tokio_stream::StreamExt::chain(start, tokio_stream::pending());
    let mut output = client.run(inputs).await.map_err(Failure::from_guest)?.into_inner();
    while output.message().await.map_err(Failure::from_guest)?.is_some() {}
    Ok(())
}

/// The builds this process has begun.
#[derive(Debug, Default)]
pub(crate) struct Builds {
    /// At work, or failed: that is tried again by the next server.
    asked: Mutex<HashSet<(String, String, Size)>>,
    /// Held by the one that is at work.
    working: tokio::sync::Mutex<()>,
}

impl Builds {
    fn asked(&self) -> std::sync::MutexGuard<'_, HashSet<(String, String, Size)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Begins to make the warm template that this computer would have continued from, if it had been there.
    pub(crate) async fn warm_for(&self, computer: ComputerId) {
        let Ok(Some(record)) = self.inner.store.computer(computer).await else { return };
        let (name, digest, size) = (record.template_type, record.template_digest, record.size);
        if record.layer.is_some() {
            return;
        }
        match self.inner.templates.warm(&name, &digest, size) {
            Ok(None) => {}
            Ok(Some(_)) => return,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(name, digest, error, "failed to look for a warm template");
                return;
            }
        }
        let key = (name, digest, size);
        if !self.inner.warm.asked().insert(key.clone()) {
            return;
        }
        let control = self.clone();
        tokio::spawn(async move {
            let (name, digest, size) = &key;
            let begun = std::time::Instant::now();
            match control.warm_up(name, digest, *size).await {
                Ok(()) => {
                    // Should it ever be damaged or removed, it is made again.
                    control.inner.warm.asked().remove(&key);
                    let seconds = begun.elapsed().as_secs();
                    tracing::info!(name, digest, size = size.as_str(), seconds, "a warm template is ready");
                }
                Err(failure) => {
                    if failure.public.code == ErrorCode::NoReadyMachine {
                        control.inner.warm.asked().remove(&key);
                    }
                    let failure = &failure as &dyn std::error::Error;
                    tracing::warn!(
                        name,
                        digest,
                        size = size.as_str(),
                        failure,
                        "failed to make a warm template; computers of this size boot"
                    );
                }
            }
        });
    }

    async fn warm_up(&self, name: &str, digest: &str, size: Size) -> Result<(), Failure> {
        let _one = self.inner.warm.working.lock().await;
        let _alone = self.inner.store.exclusive(Exclusive::Templates).await?;
        let templates = &self.inner.templates;
        let (Some(template), None) = (templates.build(name, digest)?, templates.warm(name, digest, size)?)
        else {
            return Ok(());
        };
        let target = templates.warm_target(name, digest, size)?;
        let (accelerator, network) = (self.inner.config.accelerator, self.inner.config.network.clone());
        let parts = WarmParts { template, size, accelerator, network };
        build(self.inner.regions.local().as_ref(), &parts, &target).await
    }
}
