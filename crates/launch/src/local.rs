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
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use hyper_util::rt::TokioIo;
use roost_api::{ComputerId, LayerId, SnapshotId, Timestamp};
use roost_guest_proto::v1::SetEnvironmentRequest;
use roost_guest_proto::v1::system_client::SystemClient;
use roost_machine_proto::v1::machine_client::MachineClient;
use roost_machine_proto::v1::{
    CaptureRequest, ConsoleReply, ConsoleRequest, Observation, Phase, StopRequest, SuspendRequest,
    WatchRequest,
};
use roost_machine_proto::{
    CAPTURED_FILE, CONSOLE_FILE, DISK_FILE, DiskSpec, LOCK_FILE, LOG_FILE, MEMORY_DIRECTORY, MachineResult,
    MachineSpec, OUTCOME_FILE, Outcome, SOCKET_FILE, SPEC_FILE,
};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{Mutex, mpsc, watch as watched};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::room::Room;
use crate::storage::{
    Storage, allocated, copy_sparse, is_same, machine_bytes, relocate, remove_all, take_over,
};
use crate::{
    Abandoned, Capacity, Capture, Captured, ConsoleLine, Environment, Keep, LaunchError, Launcher,
    MachineState, Need, Report, Source, Stored,
};

/// User ids of machines begin here when the server is root: above every range that distributions, systemd
/// and container engines hand out.
const FIRST_USER: u32 = 2_000_000_000;

/// Who merges layers: nobody else.
const MERGER: u32 = FIRST_USER - 1;

/// What a computer will have come to use some seconds after its start, in bytes: one that continues from memory
/// shares most of it; one that boots has its own.
const CONTINUED_MEMORY: u64 = 128 * 1024 * 1024;
const BOOTED_MEMORY: u64 = 640 * 1024 * 1024;

/// Below a machine's directory: captures on their way to the snapshots.
const CAPTURES: &str = "captures";

/// How much of `console.log` is read for its newest lines.
const CONSOLE_TAIL: u64 = 256 * 1024;

#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The data directory: machines, layers and snapshots are below it.
    pub data: Utf8PathBuf,
    /// Where templates are; machines read them.
    pub templates: Utf8PathBuf,
    /// The `roost` program.
    pub program: Utf8PathBuf,
}

/// How long an agent may take for what costs it milliseconds; under emulation on a busy host that may be seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Spawns machine processes on this host.
#[derive(Debug)]
pub struct Local {
    config: LocalConfig,
    /// `<data>/machines`.
    machines: Utf8PathBuf,
    storage: Storage,
    host: Arc<Host>,
    /// Set when the server is root: each machine then runs as a user of its own.
    drop_root: bool,
}

/// What all pools of this host share.
#[derive(Debug, Default)]
struct Host {
    room: Room,
    /// Where machines are: no two of them have one user id, wherever they are.
    pools: RwLock<Vec<Utf8PathBuf>>,
    /// Choosing a free user id and making the directory that claims it is one act.
    claiming: Mutex<()>,
}

impl Local {
    pub fn new(config: LocalConfig) -> Result<Self, LaunchError> {
        Self::on(Arc::default(), config)
    }

    /// Another pool of machines on this host, with a data directory of its own.
    pub fn beside(&self, data: Utf8PathBuf) -> Result<Self, LaunchError> {
        Self::on(self.host.clone(), LocalConfig { data, ..self.config.clone() })
    }

    fn on(host: Arc<Host>, config: LocalConfig) -> Result<Self, LaunchError> {
        let drop_root = rustix::process::geteuid().is_root();
        let machines = config.data.join("machines");
        std::fs::create_dir_all(&machines).map_err(file("make", &machines))?;
        // Other users' machines pass through this directory; they may not list it.
        let mode = if drop_root { 0o711 } else { 0o700 };
        std::fs::set_permissions(&machines, std::fs::Permissions::from_mode(mode))
            .map_err(file("set the permissions of", &machines))?;
        let storage = Storage::open(&config.data, drop_root)?;
        host.pools.write().unwrap_or_else(PoisonError::into_inner).push(machines.clone());
        Ok(Self { config, machines, storage, host, drop_root })
    }

    fn directory(&self, computer: ComputerId) -> Utf8PathBuf {
        self.machines.join(computer.to_string())
    }

    /// Makes the machine's directory, owned by a user id that no other machine has.
    async fn claim(&self, directory: &Utf8Path) -> Result<u32, LaunchError> {
        let _claiming = self.host.claiming.lock().await;
        if let Ok(meta) = std::fs::metadata(directory) {
            return Ok(meta.uid());
        }
        let user = if self.drop_root { self.free_user()? } else { rustix::process::geteuid().as_raw() };
        self.make_directory(directory, user)?;
        Ok(user)
    }

    fn free_user(&self) -> Result<u32, LaunchError> {
        let mut user = FIRST_USER;
        for machines in self.host.pools.read().unwrap_or_else(PoisonError::into_inner).iter() {
            for entry in read_dir(machines)? {
                match entry.metadata() {
                    Ok(meta) => user = user.max(meta.uid().saturating_add(1)),
                    // Another computer is being deleted.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(source) => return Err(file("inspect", machines)(source)),
                }
            }
        }
        Ok(user)
    }

    /// Makes a directory for a machine that runs as `user`.
    fn make_directory(&self, directory: &Utf8Path, user: u32) -> Result<(), LaunchError> {
        std::fs::create_dir(directory).map_err(file("make", directory))?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
            .map_err(file("set the permissions of", directory))?;
        if self.drop_root {
            std::os::unix::fs::chown(directory, Some(user), Some(user))
                .map_err(file("give away", directory))?;
        }
        Ok(())
    }
}

impl Local {
    /// `roost machine` for a directory, to be completed; it runs as `user` where this process is root.
    fn command(&self, directory: &Utf8Path, user: Option<u32>) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.config.program);
        command.arg0("roost").arg("machine").arg("--dir").arg(directory);
        // A machine has no business with the server's secrets; its environment can be read by its own user.
        for secret in ["ROOST_DATABASE", "PGPASSWORD", "ROOST_SEAL_KEY", "ROOST_API_KEY"] {
            command.env_remove(secret);
        }
        for read in [&self.config.templates, &self.storage.layers, &self.storage.snapshots] {
            command.arg("--read").arg(read);
        }
        if let Some(user) = user {
            command.arg("--as-user").arg(user.to_string());
        }
        command
    }

    /// Has the memory saved and the machine end. Nothing to do where there is none.
    async fn save_memory(&self, directory: &Utf8Path, image: bool) -> Result<(), LaunchError> {
        if !lock_is_held(directory)? {
            return Ok(());
        }
        let mut client = MachineClient::new(connect(directory)?);
        match client.suspend(SuspendRequest { image }).await {
            Ok(_) => Ok(()),
            // It ended meanwhile, or is just ending.
            Err(_) if !lock_is_held(directory)? => Ok(()),
            Err(status) if status.code() == Code::FailedPrecondition => {
                let stopping = matches!(phase(directory).await?, Phase::Stopping | Phase::Stopped);
                if stopping {
                    Ok(())
                } else {
                    Err(LaunchError::Refused { reason: status.message().to_owned() })
                }
            }
            Err(status) => Err(LaunchError::Unreachable { source: Box::new(status) }),
        }
    }

    /// The machine's part of a capture, by the machine process that runs or by one for this purpose.
    async fn capture_into(
        &self,
        directory: &Utf8Path,
        memory: &Utf8Path,
        layer: &Utf8Path,
        keep: Keep,
    ) -> Result<Captured, LaunchError> {
        let disk = directory.join(DISK_FILE);
        if !layer.exists() {
            std::fs::hard_link(&disk, layer).map_err(file("link", layer))?;
            sync(&self.storage.layers)?;
        }
        let running = lock_is_held(directory)?;
        if !is_same(&disk, layer)? && !running {
            return Err(LaunchError::Refused {
                reason: "the computer ended while it was captured".to_owned(),
            });
        }
        if running {
            let mut client = MachineClient::new(connect(directory)?);
            let passing = keep == Keep::Passing;
            let request = CaptureRequest { memory: memory.to_string(), layer: layer.to_string(), passing };
            match client.capture(request).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::FailedPrecondition => {
                    return Err(LaunchError::Refused { reason: status.message().to_owned() });
                }
                Err(_) if !lock_is_held(directory)? => {
                    let reason = "the computer ended while it was captured".to_owned();
                    return Err(LaunchError::Refused { reason });
                }
                Err(status) => return Err(LaunchError::Unreachable { source: Box::new(status) }),
            }
        } else {
            let user = self.drop_root.then(|| std::fs::metadata(directory).map(|meta| meta.uid()));
            let user = user.transpose().map_err(file("inspect", directory))?;
            let lock = take_lock(directory, user).await?;
            let mut command = self.command(directory, user);
            hand_over_lock(&mut command, &lock);
            command.arg("capture").arg("--memory").arg(memory).arg("--layer").arg(layer);
            finish(command, &self.config.program).await?;
        }
        let report = directory.join(memory).with_file_name(CAPTURED_FILE);
        read_json(&report)?.ok_or_else(|| file("find", &report)(std::io::ErrorKind::NotFound.into()))
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
        // It names the computer and the networks it may reach: for nobody but the machine's user.
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
        let mut command = self.command(&directory, self.drop_root.then_some(user));
        command.stdin(Stdio::from(listener)).stdout(Stdio::from(log)).stderr(Stdio::from(errors));
        hand_over_lock(&mut command, &lock);
        let mut child = command
            .spawn()
            .map_err(|source| LaunchError::Spawn { program: self.config.program.clone(), source })?;
        let memory = match &spec.disk {
            DiskSpec::New { memory: Some(_), .. } => CONTINUED_MEMORY,
            DiskSpec::New { memory: None, .. } | DiskSpec::Existing => BOOTED_MEMORY,
        };
        self.host.room.started(spec.computer, memory);
        give_lock(lock, &child, &directory)?;
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

    async fn suspend(&self, computer: ComputerId) -> Result<(), LaunchError> {
        self.save_memory(&self.directory(computer), false).await
    }

    async fn capture(
        &self,
        computer: ComputerId,
        capture: &Capture,
        keep: Keep,
    ) -> Result<Captured, LaunchError> {
        let directory = self.directory(computer);
        let kept = self.storage.snapshot(capture.snapshot);
        if let Some(done) = read_json(&kept.join(CAPTURED_FILE))? {
            return Ok(done);
        }
        let layer = self.storage.layer(capture.layer);
        let name = Utf8Path::new(CAPTURES).join(capture.snapshot.to_string());
        let captured = match read_json(&directory.join(&name).join(CAPTURED_FILE))? {
            Some(captured) => captured,
            None => self.capture_into(&directory, &name.join("memory"), &layer, keep).await?,
        };
        take_over(&layer, self.drop_root)?;
        take_over(&directory.join(&name), self.drop_root)?;
        sync(&self.storage.layers)?;
        std::fs::rename(directory.join(&name), &kept).map_err(file("keep", &kept))?;
        if keep == Keep::Lasting {
            sync(&self.storage.snapshots)?;
        }
        Ok(captured)
    }

    async fn abandon(&self, computer: ComputerId, capture: &Capture) -> Result<Abandoned, LaunchError> {
        let directory = self.directory(computer);
        remove_all(&self.storage.snapshot(capture.snapshot))?;
        remove_all(&directory.join(CAPTURES).join(capture.snapshot.to_string()))?;
        let layer = self.storage.layer(capture.layer);
        let disk = directory.join(DISK_FILE);
        if layer.exists() && disk.exists() && !is_same(&disk, &layer)? {
            take_over(&layer, self.drop_root)?;
            return Ok(Abandoned::LayerInUse { disk_bytes: allocated(&layer)? });
        }
        remove_if_there(&layer)?;
        sync(&self.storage.layers)?;
        Ok(Abandoned::Untouched)
    }

    async fn publish(&self, computer: ComputerId, target: &Utf8Path) -> Result<(), LaunchError> {
        let directory = self.directory(computer);
        self.save_memory(&directory, true).await?;
        wait_for_lock(&directory).await?;
        let parent = target.parent().unwrap_or(target);
        // Whoever looks for templates passes hidden names over.
        let unfinished = parent.join(format!(".unfinished-{computer}"));
        remove_all(&unfinished)?;
        let drop_root = self.drop_root;
        let (target, parent) = (target.to_owned(), parent.to_owned());
        blocking(move || {
            let memory = unfinished.join(MEMORY_DIRECTORY);
            std::fs::create_dir_all(&memory).map_err(file("make", &memory))?;
            let saved = directory.join(MEMORY_DIRECTORY);
            for entry in read_dir(&saved)? {
                if let Some(name) = entry.file_name().to_str() {
                    relocate(&saved.join(name), &memory.join(name))?;
                }
            }
            relocate(&directory.join(DISK_FILE), &unfinished.join(DISK_FILE))?;
            take_over(&unfinished, drop_root)?;
            sync(&memory)?;
            sync(&unfinished)?;
            match std::fs::rename(&unfinished, &target) {
                Ok(()) => {}
                // Somebody else was faster, and theirs is as good.
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                    remove_all(&unfinished)?;
                }
                Err(source) => return Err(file("name", &target)(source)),
            }
            sync(&parent)
        })
        .await
    }

    fn layer(&self, layer: LayerId) -> Utf8PathBuf {
        self.storage.layer(layer)
    }

    fn memory(&self, snapshot: SnapshotId) -> Utf8PathBuf {
        self.storage.snapshot(snapshot).join("memory")
    }

    async fn drop_memory(&self, computer: ComputerId) -> Result<(), LaunchError> {
        let directory = self.directory(computer);
        remove_all(&directory.join(MEMORY_DIRECTORY))?;
        if directory.exists() { sync(&directory) } else { Ok(()) }
    }

    async fn remove_layer(&self, layer: LayerId) -> Result<(), LaunchError> {
        remove_if_there(&self.storage.layer(layer))?;
        sync(&self.storage.layers)
    }

    async fn remove_snapshot(&self, snapshot: SnapshotId) -> Result<(), LaunchError> {
        let path = self.storage.snapshot(snapshot);
        blocking(move || remove_all(&path)).await
    }

    async fn merge(&self, lower: LayerId, upper: LayerId) -> Result<u64, LaunchError> {
        let path = self.storage.layer(upper);
        tracing::info!(%lower, %upper, "merging layers");
        let directory = self.storage.merging()?;
        let copy = directory.join("layer.qcow2");
        {
            let (path, copy) = (path.clone(), copy.clone());
            blocking(move || copy_sparse(&path, &copy)).await?;
        }
        // What is in a layer comes from a guest, by way of its QEMU: root does not read it.
        let user = self.drop_root.then_some(MERGER);
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&copy, owner_only).map_err(file("set the permissions of", &copy))?;
        for path in [&directory, &copy] {
            if let Some(user) = user {
                std::os::unix::fs::chown(path, Some(user), Some(user)).map_err(file("give away", path))?;
            }
        }
        let mut command = self.command(&directory, user);
        command.arg("merge").arg("--copy").arg(&copy);
        finish(command, &self.config.program).await?;
        File::open(&copy).and_then(|file| file.sync_all()).map_err(file("sync", &copy))?;
        take_over(&copy, self.drop_root)?;
        std::fs::rename(&copy, &path).map_err(file("replace", &path))?;
        sync(&self.storage.layers)?;
        remove_all(&directory)?;
        allocated(&path)
    }

    async fn stored(&self) -> Result<Stored, LaunchError> {
        self.storage.stored()
    }

    async fn admit(&self, need: &Need) -> Result<(), LaunchError> {
        self.host.room.admit(need, &self.config.data)
    }

    async fn capacity(&self) -> Result<Capacity, LaunchError> {
        self.host.room.capacity(&self.config.data)
    }

    async fn source(&self, computer: ComputerId) -> Result<Source, LaunchError> {
        let directory = self.directory(computer);
        let bytes = machine_bytes(&directory)?;
        Ok(Source { directory, layers: self.storage.layers.clone(), bytes })
    }

    async fn bring(
        &self,
        computer: ComputerId,
        source: &Source,
        progress: &watched::Sender<u8>,
    ) -> Result<(), LaunchError> {
        let directory = self.directory(computer);
        // Of an attempt that was interrupted: whoever is still at it ends first.
        end(&directory).await?;
        remove_all(&directory)?;
        if lock_is_held(&source.directory)? {
            let reason = "the computer's machine has not ended yet; try again".to_owned();
            return Err(LaunchError::Refused { reason });
        }
        // It stays the same user's, who alone may read the source.
        let meta = std::fs::metadata(&source.directory).map_err(file("inspect", &source.directory))?;
        let user = self.drop_root.then_some(meta.uid());
        self.make_directory(&directory, meta.uid())?;
        let lock = take_lock(&directory, user).await?;
        let mut command = self.command(&directory, user);
        hand_over_lock(&mut command, &lock);
        for read in [&source.directory, &source.layers] {
            command.arg("--read").arg(read);
        }
        command.arg("fetch").arg("--from").arg(&source.directory).arg("--layers").arg(&source.layers);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|source| LaunchError::Spawn { program: self.config.program.clone(), source })?;
        give_lock(lock, &child, &directory)?;
        tell_progress(&mut child, progress).await.map_err(file("read the progress of", &directory))?;
        let output = child.wait_with_output().await.map_err(file("wait for the copying of", &directory))?;
        succeeded(&output)?;
        sync(&self.machines)
    }

    async fn end(&self, computer: ComputerId) -> Result<(), LaunchError> {
        end(&self.directory(computer)).await?;
        self.host.room.ended(computer);
        Ok(())
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
        let names = read_dir(&self.machines)?;
        Ok(names.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    async fn console(&self, computer: ComputerId, lines: usize) -> Result<Vec<ConsoleLine>, LaunchError> {
        let directory = self.directory(computer);
        if lock_is_held(&directory)? {
            let mut client = MachineClient::new(connect(&directory)?);
            let lines = u32::try_from(lines).unwrap_or(u32::MAX);
            if let Ok(reply) = client.console(ConsoleRequest { lines }).await {
                return Ok(console_lines(reply.into_inner()).collect());
            }
        }
        console_tail(&directory.join(CONSOLE_FILE), lines)
    }

    async fn follow_console(
        &self,
        computer: ComputerId,
        lines: usize,
    ) -> Result<BoxStream<'static, ConsoleLine>, LaunchError> {
        let directory = self.directory(computer);
        if lock_is_held(&directory)? {
            let mut client = MachineClient::new(connect(&directory)?);
            let request = ConsoleRequest { lines: u32::try_from(lines).unwrap_or(u32::MAX) };
            // An older process cannot be followed; what it has written so far can be read.
            if let Ok(replies) = client.follow_console(request).await {
                // However the stream ends, the process has.
                let replies = replies.into_inner().take_while(|reply| std::future::ready(reply.is_ok()));
                let replies = replies.filter_map(|reply| std::future::ready(reply.ok()));
                return Ok(replies.flat_map(|reply| stream::iter(console_lines(reply))).boxed());
            }
        }
        Ok(stream::iter(console_tail(&directory.join(CONSOLE_FILE), lines)?).boxed())
    }

    async fn set_environment(
        &self,
        computer: ComputerId,
        environment: &Environment,
    ) -> Result<(), LaunchError> {
        let Environment { version, variables } = environment.clone();
        let request = SetEnvironmentRequest { version, env: variables.into_iter().collect() };
        let mut guest = SystemClient::new(self.guest(computer)?);
        let sent = tokio::time::timeout(ANSWER_LIMIT, guest.set_environment(request)).await;
        let sent = sent.unwrap_or_else(|_| {
            Err(tonic::Status::deadline_exceeded("the agent did not take the environment in time"))
        });
        sent.map(drop).map_err(|status| LaunchError::Unreachable { source: Box::new(status) })
    }

    fn guest(&self, computer: ComputerId) -> Result<Channel, LaunchError> {
        connect(&self.directory(computer))
    }
}

/// Gives the lock to the process to come, which is also taken out of our session: a Ctrl-C meant for the server
/// does not reach it.
fn hand_over_lock(command: &mut tokio::process::Command, lock: &File) {
    let lock = lock.as_raw_fd();
    command.arg("--lock-fd").arg(lock.to_string());
    // SAFETY: both calls are async-signal-safe and touch nothing but the new process; the caller has the
    // descriptor open until the process is there, where it has the same number.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            let lock = std::os::fd::BorrowedFd::borrow_raw(lock);
            rustix::io::fcntl_setfd(lock, rustix::io::FdFlags::empty())?;
            Ok(())
        });
    }
}

/// From here on the lock belongs to the process, whose number is in it for whoever must end it.
fn give_lock(lock: File, child: &tokio::process::Child, directory: &Utf8Path) -> Result<(), LaunchError> {
    let pid = child.id().unwrap_or_default().to_string();
    lock.set_len(0)
        .and_then(|()| lock.write_all_at(pid.as_bytes(), 0))
        .map_err(file("write", &directory.join(LOCK_FILE)))
}

/// Hands on the percentages that work writes, one a line, until it writes no more.
async fn tell_progress(
    child: &mut tokio::process::Child,
    progress: &watched::Sender<u8>,
) -> std::io::Result<()> {
    let Some(stdout) = child.stdout.take() else { return Ok(()) };
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        if let Ok(percent) = line.trim().parse() {
            progress.send_replace(percent);
        }
    }
    Ok(())
}

/// Runs short work to its end; its last line says why it failed.
async fn finish(mut command: tokio::process::Command, program: &Utf8Path) -> Result<(), LaunchError> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await;
    let output = output.map_err(|source| LaunchError::Spawn { program: program.to_owned(), source })?;
    succeeded(&output)
}

fn succeeded(output: &std::process::Output) -> Result<(), LaunchError> {
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(LaunchError::Refused { reason: last.trim_start_matches("error: ").to_owned() })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LaunchError> + Send + 'static,
) -> Result<T, LaunchError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| LaunchError::Cancelled)?
}

/// What the machine says it is doing.
async fn phase(directory: &Utf8Path) -> Result<Phase, LaunchError> {
    let unreachable = |status| LaunchError::Unreachable { source: Box::new(status) };
    let mut client = MachineClient::new(connect(directory)?);
    let mut states = client.watch(WatchRequest {}).await.map_err(unreachable)?.into_inner();
    let now = states.message().await.map_err(unreachable)?;
    Ok(now.map_or(Phase::Unspecified, |observation| observation.phase()))
}

/// Makes names in a directory last.
pub(crate) fn sync(directory: &Utf8Path) -> Result<(), LaunchError> {
    File::open(directory).and_then(|open| open.sync_all()).map_err(file("sync", directory))
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

/// What a call that nobody reads may hold, and how many such there may be: others must not wait for them.
const STREAM_WINDOW: u32 = 512 * 1024;
const MOST_CALLS: u32 = 1000;

fn connect(directory: &Utf8Path) -> Result<Channel, LaunchError> {
    let directory = directory.to_owned();
    let endpoint = Endpoint::from_static("http://machine.invalid")
        .initial_connection_window_size(MOST_CALLS * STREAM_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        // A machine process that stands still must not hold calls for ever.
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(40));
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
    sync(directory)
}

fn console_lines(reply: ConsoleReply) -> impl Iterator<Item = ConsoleLine> {
    // Older processes tell no times.
    let times = reply.times_us.into_iter().chain(std::iter::repeat(0));
    let time = |micros| if micros == 0 { None } else { Timestamp::from_micros(micros) };
    reply.lines.into_iter().zip(times).map(move |(text, micros)| ConsoleLine { at: time(micros), text })
}

fn console_tail(path: &Utf8Path, lines: usize) -> Result<Vec<ConsoleLine>, LaunchError> {
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
    Ok(ConsoleLine::newest(&bytes, lines))
}

pub(crate) fn read_dir(path: &Utf8Path) -> Result<Vec<std::fs::DirEntry>, LaunchError> {
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

pub(crate) fn file(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> LaunchError {
    let path = path.to_owned();
    move |source| LaunchError::File { action, path, source }
}
