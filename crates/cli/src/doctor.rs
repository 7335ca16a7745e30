//! `roost doctor`: can this host run computers, and what to do where it cannot.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use serde::Serialize;

use crate::DataArgs;
use crate::output::{print_json, print_line};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    data: DataArgs,
    /// The address a server would listen on
    #[arg(long, env = "ROOST_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: std::net::SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    /// Works, but worse than it could.
    Warning,
    /// Roost cannot run computers like this.
    Problem,
}

#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    grade: Grade,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, grade: Grade::Ok, found: found.into(), remedy: None }
    }

    fn bad(what: &'static str, grade: Grade, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, grade, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// Programs Roost calls, and the Debian package of each.
const PROGRAMS: [(&str, &str); 3] =
    [("qemu-img", "qemu-utils"), ("slirp4netns", "slirp4netns"), ("mmdebstrap", "mmdebstrap")];

const GIB: u64 = 1024 * 1024 * 1024;

pub(crate) async fn doctor(args: &DoctorArgs, json: bool) -> anyhow::Result<ExitCode> {
    let data = args.data.data()?;
    let templates = roost_image::Templates::new(args.data.templates()?);
    let (template, found) = match templates.current(roost_image::DESKTOP) {
        Ok(Some(template)) => {
            let found = Check::ok("template", format!("{} {}", template.name, template.digest));
            (Some(template), found)
        }
        Ok(None) => {
            let what = format!("{} is not built", roost_image::DESKTOP);
            (None, Check::bad("template", Grade::Problem, what, "run `roost image build`"))
        }
        Err(error) => {
            (None, Check::bad("template", Grade::Problem, error.to_string(), "run `roost image build` again"))
        }
    };
    let mut checks = vec![qemu()];
    checks.extend(PROGRAMS.iter().map(|(program, package)| installed(program, package)));
    checks.push(found);
    checks.push(accelerator(template.as_ref(), &data));
    checks.push(namespaces());
    checks.push(tun());
    checks.push(space(&data));
    checks.push(memory());
    checks.push(writable(&data));
    checks.push(port(args.listen).await);

    let worst_is_problem = checks.iter().any(|check| check.grade == Grade::Problem);
    if json {
        print_json(&checks)?;
    } else {
        for check in &checks {
            let mark = match check.grade {
                Grade::Ok => "ok     ",
                Grade::Warning => "warning",
                Grade::Problem => "PROBLEM",
            };
            print_line(&format!("{mark}  {:12} {}", check.what, check.found))?;
            if let Some(remedy) = &check.remedy {
                print_line(&format!("                      -> {remedy}"))?;
            }
        }
    }
    Ok(if worst_is_problem { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn qemu() -> Check {
    match roost_machine::accel::qemu_version() {
        Ok(version) => Check::ok("qemu", version.full),
        Err(error) => Check::bad(
            "qemu",
            Grade::Problem,
            error.to_string(),
            "install qemu-system-x86 9 or newer (Debian 12: from bookworm-backports)",
        ),
    }
}

fn installed(program: &'static str, package: &str) -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    match found {
        Some(path) => Check::ok(program, path.display().to_string()),
        None => Check::bad(program, Grade::Problem, "not installed", format!("apt install {package}")),
    }
}

fn accelerator(template: Option<&roost_image::Template>, data: &Utf8Path) -> Check {
    let Some(template) = template else {
        return Check::bad(
            "accelerator",
            Grade::Warning,
            "not probed: that takes a template's kernel",
            "run `roost image build`, then this again",
        );
    };
    // Without a data directory yet the verdict is not kept, which costs one probe at the first start.
    match roost_machine::accel::probe(&template.kernel, &template.initrd, &data.join("accelerator.json")) {
        Ok(verdict) => match verdict.accelerator {
            roost_machine_proto::Accelerator::Kvm => {
                Check::ok("accelerator", format!("KVM: {}", verdict.why))
            }
            roost_machine_proto::Accelerator::Tcg => Check::bad(
                "accelerator",
                Grade::Warning,
                format!("emulation: {}", verdict.why),
                "everything works, slower; use a host (or a hypervisor setting) with working KVM for speed",
            ),
        },
        Err(error) => Check::bad("accelerator", Grade::Problem, error.to_string(), "see the line on qemu"),
    }
}

fn namespaces() -> Check {
    let run = std::process::Command::new("unshare").args(["--user", "--net", "true"]).output();
    match run {
        Ok(output) if output.status.success() => {
            Check::ok("namespaces", "user and network namespaces can be made")
        }
        Ok(output) => Check::bad(
            "namespaces",
            Grade::Problem,
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            "allow them: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000",
        ),
        Err(error) => Check::bad("namespaces", Grade::Problem, error.to_string(), "apt install util-linux"),
    }
}

/// Root gives each machine a device of its own; others need the usual permissions.
fn tun() -> Check {
    let path = "/dev/net/tun";
    match rustix::fs::access(path, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK) {
        Ok(()) => Check::ok("network", format!("{path} can be opened")),
        Err(error) => Check::bad(
            "network",
            Grade::Problem,
            format!("{path}: {error}; computers would have no network"),
            "modprobe tun; chmod 0666 /dev/net/tun",
        ),
    }
}

fn space(data: &Utf8Path) -> Check {
    let existing = data.ancestors().find(|path| path.exists()).unwrap_or(Utf8Path::new("/"));
    match rustix::fs::statvfs(existing.as_std_path()) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} GiB free at {existing}", free / GIB);
            match free / GIB {
                10.. => Check::ok("disk", found),
                5..10 => Check::bad("disk", Grade::Warning, found, "a few computers fit; 10 GiB are better"),
                0..5 => Check::bad("disk", Grade::Problem, found, "free 5 GiB, or choose another --data"),
            }
        }
        Err(error) => Check::bad("disk", Grade::Problem, error.to_string(), "choose another --data"),
    }
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    match kib {
        Some(kib) if kib >= 2 * 1024 * 1024 => Check::ok("memory", format!("{} MiB available", kib / 1024)),
        Some(kib) => Check::bad(
            "memory",
            Grade::Warning,
            format!("{} MiB available", kib / 1024),
            "one desktop wants about 1 GiB while it boots; close something",
        ),
        None => Check::bad("memory", Grade::Warning, "unknown", "is /proc mounted?"),
    }
}

fn writable(data: &Utf8Path) -> Check {
    let existing: Utf8PathBuf =
        data.ancestors().find(|path| path.exists()).unwrap_or(Utf8Path::new("/")).to_owned();
    match rustix::fs::access(existing.as_std_path(), rustix::fs::Access::WRITE_OK) {
        Ok(()) => Check::ok("data", data.to_string()),
        Err(error) => Check::bad(
            "data",
            Grade::Problem,
            format!("{existing} is not writable: {error}"),
            "choose another --data",
        ),
    }
}

async fn port(listen: std::net::SocketAddr) -> Check {
    match tokio::net::TcpListener::bind(listen).await {
        Ok(_) => Check::ok("port", format!("{listen} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Check::bad(
            "port",
            Grade::Warning,
            format!("{listen} is in use"),
            "that is right while a server runs; otherwise choose another --listen",
        ),
        Err(error) => {
            Check::bad("port", Grade::Problem, format!("{listen}: {error}"), "choose another --listen")
        }
    }
}
