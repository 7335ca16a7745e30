//! A PostgreSQL server for the tests: in a directory of its own, on a unix socket, and gone with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::is_root;
use crate::step;

/// Nothing on it outlives the tests, so nothing waits for the disk. Each test has its own connections.
const OPTIONS: &str = "-c listen_addresses= -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
                       -c max_connections=500";

pub(crate) struct Cluster {
    programs: PathBuf,
    directory: PathBuf,
    is_stopped: bool,
}

impl Cluster {
    pub(crate) fn start() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("roost-postgres-{}", std::process::id()));
        let mut cluster = Self { programs: programs()?, directory, is_stopped: false };
        // It does not run as root; Debian's package brings a user for it.
        let mut make = Command::new("install");
        make.args(["-d", "-m", "700"]);
        if is_root() {
            make.args(["-o", "postgres", "-g", "postgres"]);
        }
        step::run("directory of the database server", make.arg(&cluster.directory))?;
        let data = cluster.directory.join("data");
        step::run(
            "new database cluster",
            cluster
                .program("initdb")
                .arg("-D")
                .arg(&data)
                .args(["--username=roost", "--auth=trust", "--no-sync"])
                .args(["--encoding=UTF8", "--locale=C.UTF-8"]),
        )?;
        let options = format!("-k {} {OPTIONS}", cluster.directory.display());
        let started = step::run(
            "start of the database server",
            cluster
                .program("pg_ctl")
                .args(["start", "--wait", "--silent", "-D"])
                .arg(&data)
                .arg("-l")
                .arg(cluster.directory.join("log"))
                .args(["-o", &options]),
        );
        if started.is_err() {
            cluster.is_stopped = true;
        }
        started?;
        Ok(cluster)
    }

    /// What `ROOST_TEST_DATABASE` is to be.
    pub(crate) fn address(&self) -> String {
        format!("postgres:///postgres?host={}&user=roost", self.directory.display())
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        self.is_stopped = true;
        let data = self.directory.join("data");
        step::run(
            "stop of the database server",
            self.program("pg_ctl").args(["stop", "--mode=immediate", "-D"]).arg(data),
        )
    }

    /// One of the server's programs, as a user that may run it.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        // Its user may not be allowed into ours.
        command.current_dir("/");
        command
    }
}

/// Also after a test that failed.
impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.is_stopped {
            let data = self.directory.join("data");
            // There is nobody left to tell.
            drop(
                self.program("pg_ctl")
                    .args(["stop", "--silent", "--mode=immediate", "-D"])
                    .arg(data)
                    .status(),
            );
        }
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// Where Debian keeps them: not on anybody's path, one directory for each version.
fn programs() -> Result<PathBuf> {
    let versions = Path::new("/usr/lib/postgresql");
    let failed = || format!("failed to look for PostgreSQL in {}", versions.display());
    let mut newest: Option<(u32, PathBuf)> = None;
    for entry in std::fs::read_dir(versions).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let programs = entry.path().join("bin");
        let version = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(version) = version
            && programs.join("initdb").exists()
            && newest.as_ref().is_none_or(|(newest, _)| version > *newest)
        {
            newest = Some((version, programs));
        }
    }
    let (_, programs) = newest.with_context(|| format!("{} has no server", versions.display()))?;
    Ok(programs)
}
