//! Measures what SPECIFICATION.md promises: each operation through the public API of a real server, beside its
//! floor, which is bare QEMU or the usual tool on the same guest in the same run.
//!
//! * [`operations`] says what is measured; [`roost`] is the client's side, [`bare`] the floors.
//! * Nothing is asserted: a promise that is not met is a word in the table. What fails is what could not be run.
//! * Nothing is left behind: computers go with the server, bare guests with this process.

mod agent;
mod bare;
mod density;
mod host;
mod operations;
mod qmp;
mod report;
mod roost;
mod statistics;
mod streams;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::bare::Parts;
use crate::host::Host;
use crate::operations::{Bench, Counts, Group};
use crate::roost::Roost;

/// Measures Roost beside bare QEMU.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Options {
    /// Write the report as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Measure this group only; may be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<Group>,

    /// Fewer samples: a look, not a measurement
    #[arg(long)]
    quick: bool,

    /// Instead: create idle computers up to this many, and see what becomes of the host
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "100", conflicts_with = "only")]
    density: Option<usize>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    // One thread: QEMU is killed by the kernel when the thread that started it ends, and that is this one.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the asynchronous runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        // Whatever is running is dropped then, and takes its processes and files with it.
        tokio::select! {
            outcome = Box::pin(run(&options)) => outcome,
            outcome = interrupted() => outcome,
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() -> Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    bail!("interrupted")
}

/// Whether everything could be measured.
async fn run(options: &Options) -> Result<bool> {
    let host = Host::this()?;
    let roost = Roost::start()?;

    let (id, warm) = warm_up(&roost).await?;
    say(if warm { "computers come from a warm template" } else { "computers boot" });
    let spec = roost.spec(&id)?;
    roost.delete(&id).await?;
    let template = spec.boot.kernel.parent().context("the kernel's path has no directory")?.to_owned();
    let qemu = first_line("qemu-system-x86_64", &["--version"])?;
    let version = first_line(&roost_tests::roost().to_string_lossy(), &["--version"])?;
    let digest = template.file_name().context("the template has no digest")?;
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let accelerator = format!("{:?}", spec.accelerator).to_lowercase();

    let mut about = format!(
        "{version}, {date}\n\
         host      {}, {} cores, {} MiB, Linux {}, load before the run {}\n\
         QEMU      {qemu}, accelerator {accelerator}\n\
         template  {digest}\n\
         computer  small: {} vCPU, {} MiB\n",
        host.cpu,
        host.cores,
        host.memory_bytes / (1024 * 1024),
        host.kernel,
        host.load,
        spec.vcpus,
        spec.memory.0,
    );
    if !warm {
        about.push_str("NOTE      there was no warm template: computers were booted\n");
    }

    let mut json = json!({
        "roost": version, "date": date, "host": host.to_json(), "qemu": qemu, "accelerator": accelerator,
        "template": digest, "warm_template": warm, "vcpus": spec.vcpus, "memory_mib": spec.memory.0,
    });
    let mut failures = Vec::new();
    if let Some(most) = options.density {
        let density = density::measure(&roost, most).await?;
        print!("\n{about}\n{}", density.table());
        json["density"] = density.to_json();
    } else {
        let directory = tempfile::Builder::new().prefix("roost-bench-").tempdir_in("/var/tmp")?;
        let base = template.join("base.qcow2").into_std_path_buf();
        let parts = Parts { spec, base, disk_gib: DISK_GIB, directory };
        let counts = if options.quick { Counts::QUICK } else { Counts::FULL };
        let mut bench = Bench::new(roost, parts, counts);
        let mut rows = Vec::new();
        for group in Group::ALL {
            if !options.only.is_empty() && !options.only.contains(&group) {
                continue;
            }
            let begun = Instant::now();
            let name = format!("{group:?}").to_lowercase();
            match bench.measure(group).await {
                Ok(measured) => rows.extend(measured),
                Err(error) => {
                    failures.push(format!("{name} was not measured: {error:#}"));
                    bench.roost.delete_everything().await?;
                }
            }
            say(&format!("{name} ({:.0} s)", begun.elapsed().as_secs_f64()));
        }
        print!("\n{about}\n{}", report::table(&rows));
        json["operations"] = report::to_json(&rows);
    }
    for failure in &failures {
        println!("{failure}");
    }
    json["failures"] = Value::from(failures.clone());
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{json:#}\n"))
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(failures.is_empty())
}

/// Of a computer of size `small`.
const DISK_GIB: u32 = 10;
/// Less than any boot of a desktop takes.
const WARM: Duration = Duration::from_secs(2);
/// A template is made in the background, by booting a desktop.
const WARM_LIMIT: Duration = Duration::from_secs(180);

/// Creates computers until one was faster than a boot can be; returns it, and whether that came to be.
async fn warm_up(roost: &Roost) -> Result<(String, bool)> {
    let begun = Instant::now();
    loop {
        let made = roost.create("bench-warm-up").await.context("the first computer")?;
        if made.elapsed < WARM {
            return Ok((made.id, true));
        }
        if begun.elapsed() > WARM_LIMIT {
            return Ok((made.id, false));
        }
        roost.delete(&made.id).await?;
    }
}

fn first_line(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("failed to run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn say(text: &str) {
    eprintln!("  ok   {text}");
}
