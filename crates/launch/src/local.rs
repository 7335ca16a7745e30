//! Machine processes on this host.
//!
//! One directory per computer, `<data>/machines/<id>/`. The process holds a lock on `machine.lock` for as
//! long as it or its QEMU lives: whoever can take the lock knows that both are gone. The lock is taken and
//! the gRPC socket is made here, and both are handed to the process, so there is no moment in which the
//! process exists and cannot be seen or reached.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Stdio;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use hyper_util::rt::TokioIo;
use roost_api::{ComputerId, LayerId, SnapshotId};
use roost_machine_proto::v1::machine_client::MachineClient;
use roost_machine_proto::v1::{ConsoleRequest, Observation, Phase, StopRequest, WatchRequest};
use roost_machine_proto::{
    CONSOLE_FILE, LOCK_FILE, LOG_FILE, MachineResult, MachineSpec, OUTCOME_FILE, Outcome, SOCKET_FILE,
    SPEC_FILE,
};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{Abandoned, Capture, Captured, LaunchError, Launcher, MachineState, Need, Report, Stored};

/// User ids of machines begin here when the server is root: above every range that distributions, systemd
/// and container engines hand out.
const FIRST_USER: u32 = 2_000_000_000;

/// How much of `console.log` is read for its newest lines.
const CONSOLE_TAIL: u64 = 256 * 1024;

#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// `<data>/machines`.
    pub machines: Utf8PathBuf,
    /// Where templates are; machines read them.
    pub templates: Utf8PathBuf,
    /// The `roost` program.
    pub program: Utf8PathBuf,
}

/// Spawns machine processes on this host.
#[derive(Debug)]
pub struct Local {
    config: LocalConfig,
    /// Set when the server is root: each machine then runs as a user of its own.
    drop_root: bool,
    /// Choosing a free user id and making the directory that claims it is one act.
    claiming: Mutex<()>,
}

impl Local {
    pub fn new(config: LocalConfig) -> Result<Self, LaunchError> {
        let drop_root = rustix::process::geteuid().is_root();
        std::fs::create_dir_all(&config.machines).map_err(file("make", &config.machines))?;
        // Other users' machines pass through this directory; they may not list it.
        let mode = if drop_root { 0o711 } else { 0o700 };
        std::fs::set_permissions(&config.machines, std::fs::Permissions::from_mode(mode))
            .map_err(file("set the permissions of", &config.machines))?;
        Ok(Self { config, drop_root, claiming: Mutex::new(()) })
    }

    fn directory(&self, computer: ComputerId) -> Utf8PathBuf {
        self.config.machines.join(computer.to_string())
    }

    /// Makes the machine's directory, owned by a user id that no other machine has.
    async fn claim(&self, directory: &Utf8Path) -> Result<u32, LaunchError> {
        let _claiming = self.claiming.lock().await;
        if let Ok(meta) = std::fs::metadata(directory) {
            return Ok(meta.uid());
        }
        std::fs::create_dir(directory).map_err(file("make", directory))?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
            .map_err(file("set the permissions of", directory))?;
        if !self.drop_root {
            return Ok(rustix::process::geteuid().as_raw());
        }
        let mut user = FIRST_USER;
        for entry in read_dir(&self.config.machines)? {
            match entry.metadata() {
                Ok(meta) => user = user.max(meta.uid().saturating_add(1)),
                // Another computer is being deleted.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(file("inspect", &self.config.machines)(source)),
            }
        }
        std::os::unix::fs::chown(directory, Some(user), Some(user)).map_err(file("give away", directory))?;
        Ok(user)
    }
}

#[async_trait]
impl Launcher for Local {
    async fn launch(&self, spec: &MachineSpec) -> Result<(), LaunchError> {
        let directory = self.directory(spec.computer);
        let user = self.claim(&directory).await?;
        if let Some(old) = read_spec(&directory)? {
            let same = old.generation == spec.generation;
            if same && (lock_is_held(&directory)? || read_outcome(&directory)?.is_some()) {
                return Ok(());
            }
            end(&directory).await?;
        }
        let outcome = directory.join(OUTCOME_FILE);
        remove_if_there(&outcome)?;
        let text = serde_json::to_vec_pretty(spec)
            .map_err(|source| LaunchError::Spec { path: directory.join(SPEC_FILE), source })?;
        // Environment values are secrets: nobody but the machine's user may read the spec.
        write_durably(&directory, SPEC_FILE, &text, self.drop_root.then_some(user))?;

        let lock = take_lock(&directory, self.drop_root.then_some(user)).await?;
        let listener = listen(&directory)?;
        let log_path = directory.join(LOG_FILE);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(file("open", &log_path))?;
        let errors = log.try_clone().map_err(file("open", &log_path))?;
        let mut command = tokio::process::Command::new(&self.config.program);
        command
            .arg0("roost")
            .arg("machine")
            .arg("--dir")
            .arg(&directory)
            .arg("--templates")
            .arg(&self.config.templates);
        if self.drop_root {
            command.arg("--as-user").arg(user.to_string());
        }
        // A session of its own: a Ctrl-C meant for the server does not reach the machines.
        command.stdin(Stdio::from(listener)).stdout(Stdio::from(log)).stderr(Stdio::from(errors));
        let lock_fd = lock.as_raw_fd();
        command.arg("--lock-fd").arg(lock_fd.to_string());
        // SAFETY: both calls are async-signal-safe and touch nothing but the new process; the descriptor is
        // open there under the same number.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                let lock = std::os::fd::BorrowedFd::borrow_raw(lock_fd);
                rustix::io::fcntl_setfd(lock, rustix::io::FdFlags::empty())?;
                Ok(())
            });
        }
        let mut child = command
            .spawn()
            .map_err(|source| LaunchError::Spawn { program: self.config.program.clone(), source })?;
        // From here on the lock belongs to the process, whose number is in it for whoever must end it.
        let pid = child.id().unwrap_or_default().to_string();
        lock.set_len(0)
            .and_then(|()| lock.write_all_at(pid.as_bytes(), 0))
            .map_err(file("write", &directory.join(LOCK_FILE)))?;
        drop(lock);
        // Reaped when it ends before this server does; otherwise init inherits it.
        let computer = spec.computer;
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => tracing::debug!(%computer, %status, "machine process ended"),
                Err(error) => tracing::warn!(%computer, %error, "failed to wait for the machine process"),
            }
        });
        Ok(())
    }

    fn watch(&self, computer: ComputerId) -> BoxStream<'static, MachineState> {
        let directory = self.directory(computer);
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            if let Err(error) = watch(&directory, &sender).await {
                tracing::error!(%computer, error = &error as &dyn std::error::Error, "failed to watch the machine");
                let state = MachineState {
                    generation: read_spec(&directory).ok().flatten().map_or(0, |spec| spec.generation),
                    report: Report::Failed { reason: error.to_string(), console: Vec::new() },
                    memory_lost: None,
                };
                // Nobody listens any more: then nobody needs to know.
                drop(sender.send(state).await);
            }
        });
        ReceiverStream::new(receiver).boxed()
    }

    async fn stop(&self, computer: ComputerId) -> Result<(), LaunchError> {
        let directory = self.directory(computer);
        if !lock_is_held(&directory)? {
            return Ok(());
        }
        let mut client = MachineClient::new(connect(&directory)?);
        match client.stop(StopRequest {}).await {
            Ok(_) => Ok(()),
            // It ended meanwhile, which is what was asked for.
            Err(_) if !lock_is_held(&directory)? => Ok(()),
            Err(status) => Err(LaunchError::Unreachable { source: Box::new(status) }),
        }
    }

    async fn suspend(&self, _computer: ComputerId) -> Result<(), LaunchError> {
        unimplemented!()
    }

    async fn capture(&self, _computer: ComputerId, _capture: &Capture) -> Result<Captured, LaunchError> {
        unimplemented!()
    }

    async fn abandon(&self, _computer: ComputerId, _capture: &Capture) -> Result<Abandoned, LaunchError> {
        unimplemented!()
    }

    async fn publish(&self, _computer: ComputerId, _target: &Utf8Path) -> Result<(), LaunchError> {
        unimplemented!()
    }

    fn layer(&self, _layer: LayerId) -> Utf8PathBuf {
        unimplemented!()
    }

    fn memory(&self, _snapshot: SnapshotId) -> Utf8PathBuf {
        unimplemented!()
    }

    async fn drop_memory(&self, _computer: ComputerId) -> Result<(), LaunchError> {
        unimplemented!()
    }

    async fn remove_layer(&self, _layer: LayerId) -> Result<(), LaunchError> {
        unimplemented!()
    }

    async fn remove_snapshot(&self, _snapshot: SnapshotId) -> Result<(), LaunchError> {
        unimplemented!()
    }

    async fn merge(&self, _lower: LayerId, _upper: LayerId) -> Result<u64, LaunchError> {
        unimplemented!()
    }

    async fn stored(&self) -> Result<Stored, LaunchError> {
        unimplemented!()
    }

    async fn admit(&self, _need: &Need) -> Result<(), LaunchError> {
        unimplemented!()
    }

    async fn end(&self, computer: ComputerId) -> Result<(), LaunchError> {
        end(&self.directory(computer)).await
    }

    async fn remove(&self, computer: ComputerId) -> Result<(), LaunchError> {
        let directory = self.directory(computer);
        match tokio::fs::remove_dir_all(&directory).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(LaunchError::File { action: "remove", path: directory, source }),
        }
    }

    async fn present(&self) -> Result<Vec<ComputerId>, LaunchError> {
        let names = read_dir(&self.config.machines)?;
        Ok(names.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    async fn console(&self, computer: ComputerId, lines: usize) -> Result<Vec<String>, LaunchError> {
        let directory = self.directory(computer);
        if lock_is_held(&directory)? {
            let mut client = MachineClient::new(connect(&directory)?);
            let lines = u32::try_from(lines).unwrap_or(u32::MAX);
            if let Ok(reply) = client.console(ConsoleRequest { lines }).await {
                return Ok(reply.into_inner().lines);
            }
        }
        console_tail(&directory.join(CONSOLE_FILE), lines)
    }

    fn guest(&self, computer: ComputerId) -> Result<Channel, LaunchError> {
        connect(&self.directory(computer))
    }
}

/// Sends every state up to the first final one.
async fn watch(directory: &Utf8Path, sender: &mpsc::Sender<MachineState>) -> Result<(), LaunchError> {
    loop {
        let Some(spec) = read_spec(directory)? else {
            drop(
                sender
                    .send(MachineState { generation: 0, report: Report::Vanished, memory_lost: None })
                    .await,
            );
            return Ok(());
        };
        let generation = spec.generation;
        if lock_is_held(directory)? || socket_is_there(directory) {
            let mut client = MachineClient::new(connect(directory)?);
            if let Ok(stream) = client.watch(WatchRequest {}).await {
                let mut stream = stream.into_inner();
                while let Ok(Some(observation)) = stream.message().await {
                    let Some(state) = state(observation) else { continue };
                    // Final reports wait for the process to be gone, so that "stopped" means it.
                    if !state.report.is_final() && sender.send(state).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        wait_for_lock(directory).await?;
        let report = match read_outcome(directory)? {
            Some(outcome) if outcome.generation == generation => match outcome.result {
                MachineResult::Stopped => Report::Stopped,
                MachineResult::Failed { reason, console } => Report::Failed { reason, console },
            },
            _ => Report::Vanished,
        };
        // A newer start may have begun while we looked; then this end is not the news.
        if read_spec(directory)?.is_some_and(|now| now.generation != generation) {
            continue;
        }
        drop(sender.send(MachineState { generation, report, memory_lost: None }).await);
        return Ok(());
    }
}

fn state(observation: Observation) -> Option<MachineState> {
    let report = match observation.phase() {
        Phase::Unspecified => return None,
        Phase::Preparing => Report::Preparing,
        Phase::Booting => Report::Booting,
        Phase::Running => Report::Running,
        Phase::Stopping => Report::Stopping,
        Phase::Stopped => Report::Stopped,
        Phase::Failed => Report::Failed { reason: observation.reason, console: observation.console },
    };
    let memory_lost = (!observation.memory_lost.is_empty()).then_some(observation.memory_lost);
    Some(MachineState { generation: observation.generation, report, memory_lost })
}

async fn end(directory: &Utf8Path) -> Result<(), LaunchError> {
    if lock_is_held(directory)? {
        let path = directory.join(LOCK_FILE);
        let text = std::fs::read_to_string(&path).map_err(file("read", &path))?;
        let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid
            && let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            // The lock is still held, so the number still means the process that wrote it.
            && lock_is_held(directory)?
        {
            match rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(source) => {
                    return Err(LaunchError::File {
                        action: "kill the process of",
                        path,
                        source: source.into(),
                    });
                }
            }
        }
    }
    wait_for_lock(directory).await?;
    remove_if_there(&directory.join(SOCKET_FILE))
}

/// Takes the lock of a directory that nobody runs in.
async fn take_lock(directory: &Utf8Path, owner: Option<u32>) -> Result<File, LaunchError> {
    let path = directory.join(LOCK_FILE);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(file("open", &path))?;
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&lock, Some(owner), Some(owner)).map_err(file("give away", &path))?;
    }
    // Nobody runs here, but somebody may be looking whether somebody does, with the lock in hand.
    lock_blocking(lock, path, FlockOperation::LockExclusive).await
}

fn listen(directory: &Utf8Path) -> Result<OwnedFd, LaunchError> {
    remove_if_there(&directory.join(SOCKET_FILE))?;
    let (_handle, short) = short_path(directory)?;
    let listener = std::os::unix::net::UnixListener::bind(short.join(SOCKET_FILE))
        .map_err(file("listen on", &directory.join(SOCKET_FILE)))?;
    Ok(listener.into())
}

fn socket_is_there(directory: &Utf8Path) -> bool {
    directory.join(SOCKET_FILE).exists()
}

/// Paths of unix sockets may not exceed 107 bytes; data directories may. `/proc/self/fd/N` is always short.
fn short_path(directory: &Utf8Path) -> Result<(OwnedFd, Utf8PathBuf), LaunchError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(directory.as_std_path(), flags, Mode::empty()).map_err(|errno| {
        LaunchError::File { action: "open", path: directory.to_owned(), source: errno.into() }
    })?;
    let short = Utf8PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    Ok((handle, short))
}

fn connect(directory: &Utf8Path) -> Result<Channel, LaunchError> {
    let directory = directory.to_owned();
    let endpoint = Endpoint::from_static("http://machine.invalid")
        .initial_connection_window_size(4 * 1024 * 1024)
        .initial_stream_window_size(1024 * 1024);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let directory = directory.clone();
        async move {
            let (_handle, short) = short_path(&directory).map_err(std::io::Error::other)?;
            tokio::net::UnixStream::connect(short.join(SOCKET_FILE)).await.map(TokioIo::new)
        }
    })))
}

fn open_lock(directory: &Utf8Path) -> Result<Option<File>, LaunchError> {
    let path = directory.join(LOCK_FILE);
    match File::open(&path) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LaunchError::File { action: "open", path, source }),
    }
}

fn lock_is_held(directory: &Utf8Path) -> Result<bool, LaunchError> {
    let Some(lock) = open_lock(directory)? else { return Ok(false) };
    match flock(lock.as_fd(), FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => {
            Err(LaunchError::File { action: "lock", path: directory.join(LOCK_FILE), source: errno.into() })
        }
    }
}

/// Returns when the machine process and everything that inherited its lock are gone.
async fn wait_for_lock(directory: &Utf8Path) -> Result<(), LaunchError> {
    let Some(lock) = open_lock(directory)? else { return Ok(()) };
    lock_blocking(lock, directory.join(LOCK_FILE), FlockOperation::LockShared).await.map(drop)
}

async fn lock_blocking(
    lock: File,
    path: Utf8PathBuf,
    operation: FlockOperation,
) -> Result<File, LaunchError> {
    tokio::task::spawn_blocking(move || match rustix::io::retry_on_intr(|| flock(lock.as_fd(), operation)) {
        Ok(()) => Ok(lock),
        Err(errno) => Err(LaunchError::File { action: "lock", path, source: errno.into() }),
    })
    .await
    .map_err(|_| LaunchError::Cancelled)?
}

fn read_spec(directory: &Utf8Path) -> Result<Option<MachineSpec>, LaunchError> {
    read_json(&directory.join(SPEC_FILE))
}

fn read_outcome(directory: &Utf8Path) -> Result<Option<Outcome>, LaunchError> {
    read_json(&directory.join(OUTCOME_FILE))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Utf8Path) -> Result<Option<T>, LaunchError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| LaunchError::Spec { path: path.to_owned(), source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LaunchError::File { action: "read", path: path.to_owned(), source }),
    }
}

/// Writes a file so that a crash leaves the old content or the new, never half.
fn write_durably(
    directory: &Utf8Path,
    name: &str,
    content: &[u8],
    owner: Option<u32>,
) -> Result<(), LaunchError> {
    let path = directory.join(name);
    let temporary = directory.join(format!("{name}.tmp"));
    let mut out = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(file("make", &temporary))?;
    out.write_all(content).map_err(file("write", &temporary))?;
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&out, Some(owner), Some(owner)).map_err(file("give away", &temporary))?;
    }
    out.sync_all().map_err(file("sync", &temporary))?;
    std::fs::rename(&temporary, &path).map_err(file("replace", &path))?;
    let parent = File::open(directory).map_err(file("open", directory))?;
    parent.sync_all().map_err(file("sync", directory))
}

fn console_tail(path: &Utf8Path, lines: usize) -> Result<Vec<String>, LaunchError> {
    use std::io::Seek;
    let mut log = match File::open(path) {
        Ok(log) => log,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LaunchError::File { action: "open", path: path.to_owned(), source }),
    };
    let length = log.metadata().map_err(file("inspect", path))?.len();
    log.seek(std::io::SeekFrom::Start(length.saturating_sub(CONSOLE_TAIL))).map_err(file("read", path))?;
    let mut bytes = Vec::new();
    log.take(CONSOLE_TAIL).read_to_end(&mut bytes).map_err(file("read", path))?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect())
}

fn read_dir(path: &Utf8Path) -> Result<Vec<std::fs::DirEntry>, LaunchError> {
    let entries = std::fs::read_dir(path).map_err(file("list", path))?;
    entries.collect::<Result<_, _>>().map_err(file("list", path))
}

fn remove_if_there(path: &Utf8Path) -> Result<(), LaunchError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(LaunchError::File { action: "remove", path: path.to_owned(), source }),
    }
}

fn file(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> LaunchError {
    let path = path.to_owned();
    move |source| LaunchError::File { action, path, source }
}
