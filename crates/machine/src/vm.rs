//! The task that owns the computer: it holds the one [`State`], takes events from everyone, and carries out
//! what [`step`] decides. Nobody else starts, stops or kills anything.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::Utf8Path;
use roost_guest_proto::v1::{PowerOffRequest, SetIdentityRequest, WaitDesktopRequest};
use roost_machine_proto::v1::Observation;
use roost_machine_proto::{Captured, DiskSpec, MEMORY_DIRECTORY, MachineResult, MachineSpec};
use rustix::rand::GetRandomFlags;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::console::Console;
use crate::directory::Directory;
use crate::disk;
use crate::lines::Tail;
use crate::link::{self, Guest, LinkEvent, Port};
use crate::memory::{About, Base, SavedMemory};
use crate::network::{self, Network, Uplink};
use crate::qemu::{self, CHANNEL, PORT_ID, Qemu, Start};
use crate::qmp::{self, Qmp, QmpEvent, QmpReader};
use crate::resume;
use crate::save::{self, Purpose, SaveError, Saved, Saving};
use crate::state::{Action, Ending, Event, Origin, QemuExit, Save, State, step};
use crate::task::Task;

/// Console lines that go with a failure.
const FAILURE_LINES: usize = 40;
/// One restart of a PC is reported as up to three resets within some tens of milliseconds.
const SAME_RESET_MS: u64 = 1000;
/// The kernel's pool is 256 bits; more than that is only caution about how it is credited.
const ENTROPY_BYTES: usize = 256;
/// How long the last output of a QEMU that has ended may take to be read.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Somebody's wish to have the computer saved.
#[derive(Debug)]
pub struct SaveRequest {
    pub purpose: Purpose,
    /// The answer; why not, in words for a person.
    pub answer: oneshot::Sender<Result<Captured, String>>,
}

/// A call to the agent in progress.
type Call<'a> = Pin<Box<dyn Future<Output = Event> + Send + 'a>>;

/// Saving or loading in progress.
type Work<'a> = Pin<Box<dyn Future<Output = Worked> + Send + 'a>>;

#[derive(Debug)]
enum Worked {
    Saved(Result<Saved, SaveError>),
    Resumed(Result<(), String>),
}

/// The ends of the owner's channels that others hold.
#[derive(Debug)]
pub struct Publisher {
    pub observation: watch::Sender<Observation>,
    pub gate: watch::Sender<Option<Guest>>,
    pub console: Arc<Mutex<Console>>,
}

struct Vm<'a> {
    spec: &'a MachineSpec,
    directory: &'a Directory,
    state: State,
    publisher: &'a Publisher,
    events: mpsc::Sender<Event>,
    links: mpsc::Sender<LinkEvent>,
    machine: Option<Started>,
    /// What the computer continues from, until that has been tried.
    memory: Option<SavedMemory>,
    /// What the memory of this computer is a difference to.
    base: Base,
    /// The wish that is being decided on, and those that are being fulfilled: one save, asked for any number of
    /// times.
    asked: Option<SaveRequest>,
    saving: Vec<SaveRequest>,
    /// The save in progress, or the loading.
    work: Option<Work<'a>>,
    /// The number of the newest disk: a capture makes the next.
    newest_disk: u32,
    /// The connection that was reported last and has not been reported lost.
    guest: Option<Guest>,
    /// What that agent said about it when it answered first.
    desktop_ready: bool,
    /// At most one call to the agent, or the preparation of the disk.
    call: Option<Call<'a>>,
    deadline: Option<Instant>,
}

/// What lives as long as QEMU does.
struct Started {
    qmp: Qmp,
    pid: u32,
    /// The number of what is the guest's disk now.
    disk: u32,
    kill: Option<oneshot::Sender<()>>,
    _uplink: Uplink,
    _link: Task<()>,
    _supervisor: Task<()>,
}

/// Runs the computer of `spec` to its end. `stop` asks for a clean one, `saves` for what they say.
pub async fn run(
    spec: &MachineSpec,
    directory: &Directory,
    publisher: &Publisher,
    mut stop: mpsc::Receiver<()>,
    mut saves: mpsc::Receiver<SaveRequest>,
) -> MachineResult {
    let (events, mut event) = mpsc::channel(32);
    let (links, mut link) = mpsc::channel(4);
    let mut vm = Vm {
        spec,
        directory,
        state: State::Preparing,
        publisher,
        events,
        links,
        machine: None,
        memory: None,
        base: Base::Blank,
        asked: None,
        saving: Vec::new(),
        work: None,
        newest_disk: 0,
        guest: None,
        desktop_ready: false,
        call: None,
        deadline: None,
    };
    vm.call = Some(Box::pin(async {
        match disk::prepare(directory, &spec.disk).await {
            Ok(()) => Event::Prepared(Origin::Kernel),
            Err(error) => Event::PrepareFailed { reason: error.to_string() },
        }
    }));
    match find_memory(spec) {
        Ok(memory) => vm.memory = memory,
        Err(reason) => vm.tell_memory_lost(reason),
    }
    loop {
        if let State::Ended(ending) = &vm.state {
            return vm.result(ending.clone());
        }
        let next = tokio::select! {
            Some(event) = event.recv() => event,
            Some(event) = link.recv() => vm.take_link_event(event),
            Some(()) = stop.recv() => Event::StopAsked,
            Some(request) = saves.recv() => match vm.take_save_request(request) {
                Some(event) => event,
                None => continue,
            },
            outcome = answered(&mut vm.call) => {
                vm.call = None;
                match outcome {
                    Event::Prepared(_) if vm.memory.is_some() => Event::Prepared(Origin::Memory),
                    outcome => outcome,
                }
            }
            worked = answered(&mut vm.work) => {
                vm.work = None;
                vm.take_work(worked)
            }
            () = passed(vm.deadline) => {
                vm.deadline = None;
                Event::DeadlinePassed
            }
        };
        vm.handle(next);
    }
}

impl Vm<'_> {
    fn handle(&mut self, event: Event) {
        tracing::debug!(?event, state = ?self.state, "event");
        let before = self.state.phase();
        let state = std::mem::replace(&mut self.state, State::Preparing);
        let (state, actions) = step(state, event);
        self.state = state;
        if self.state.phase() != before {
            tracing::info!("{} -> {}", before.as_str_name(), self.state.phase().as_str_name());
        }
        for action in actions {
            self.act(action);
        }
        self.publish();
    }

    /// A wish that is being fulfilled already is only noted.
    fn take_save_request(&mut self, request: SaveRequest) -> Option<Event> {
        if self.saving.first().is_some_and(|save| save.purpose == request.purpose) {
            self.saving.push(request);
            return None;
        }
        let save = match request.purpose {
            Purpose::Suspend(_) => Save::Suspend,
            Purpose::Capture { .. } => Save::Capture,
        };
        self.asked = Some(request);
        Some(Event::SaveAsked(save))
    }

    fn tell_memory_lost(&self, reason: String) {
        tracing::warn!("the saved memory is not continued from: {reason}");
        self.publisher.observation.send_modify(|observation| observation.memory_lost = reason);
    }

    /// The end is published by the caller of [`run`], after it is written down.
    fn publish(&self) {
        if matches!(self.state, State::Ended(_)) {
            return;
        }
        let phase = self.state.phase();
        self.publisher.observation.send_if_modified(|observation| {
            let changed = observation.phase() != phase;
            observation.set_phase(phase);
            changed
        });
    }

    fn result(&self, ending: Ending) -> MachineResult {
        match ending {
            Ending::Stopped => MachineResult::Stopped,
            Ending::Failed { reason } => {
                let mut console = self.publisher.console.lock().unwrap_or_else(PoisonError::into_inner);
                let console = console.newest_lines(FAILURE_LINES).unwrap_or_else(|error| {
                    tracing::warn!("cannot read the console's log: {error}");
                    Vec::new()
                });
                let console = console.into_iter().map(|line| line.text).collect();
                MachineResult::Failed { reason, console }
            }
        }
    }

    fn take_link_event(&mut self, event: LinkEvent) -> Event {
        match event {
            LinkEvent::Up { guest, boot_id, desktop_ready } => {
                self.guest = Some(guest);
                self.desktop_ready = desktop_ready;
                Event::AgentUp { boot_id }
            }
            LinkEvent::Lost => {
                self.guest = None;
                Event::AgentLost
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::StartQemu(origin) => {
                if let Err(reason) = self.start(origin) {
                    // The channel has room: nobody else sends before QEMU runs.
                    if self.events.try_send(Event::StartFailed { reason }).is_err() {
                        unreachable!("the owner holds the receiver, and the channel is empty");
                    }
                }
            }
            Action::TellMemoryLost(reason) => self.tell_memory_lost(reason),
            Action::Save => self.save(),
            Action::RefuseSave(why) => {
                if let Some(request) = self.asked.take() {
                    answer(request, Err(why.to_owned()));
                }
            }
            Action::SetDeadline(from_now) => self.deadline = Some(Instant::now() + from_now),
            Action::ClearDeadline => self.deadline = None,
            Action::SetIdentity => self.call_guest(|guest| set_identity(guest, identity(self.spec))),
            // A guest that continues has its desktop, and each call costs an emulated agent that has just begun
            // more than all that come after it.
            Action::WaitDesktop if self.desktop_ready => {
                self.call = Some(Box::pin(std::future::ready(Event::DesktopReady)));
            }
            Action::WaitDesktop => self.call_guest(wait_desktop),
            Action::PowerOff => self.call_guest(power_off),
            Action::OpenGuest => drop(self.publisher.gate.send_replace(self.guest.clone())),
            Action::CloseGuest => drop(self.publisher.gate.send_replace(None)),
            Action::DropLink => {
                self.call = None;
                if let Some(guest) = self.guest.take() {
                    guest.hang_up();
                }
            }
            Action::Reset => self.command("system_reset"),
            Action::PowerButton => self.command("system_powerdown"),
            Action::Quit => self.command("quit"),
            Action::Kill => {
                if let Some(kill) = self.machine.as_mut().and_then(|machine| machine.kill.take())
                    && kill.send(()).is_err()
                {
                    tracing::debug!("QEMU has ended by itself already");
                }
            }
        }
    }

    fn call_guest<F>(&mut self, call: impl FnOnce(Guest) -> F)
    where
        F: Future<Output = Event> + Send + 'static,
    {
        self.call = match self.guest.clone() {
            Some(guest) => Some(Box::pin(call(guest))),
            None => Some(Box::pin(std::future::ready(Event::AgentLost))),
        };
    }

    /// Sends a QMP command. What it does is seen in events; a QEMU that does not obey meets its deadline.
    fn command(&self, name: &'static str) {
        let Some(machine) = &self.machine else { return };
        let qmp = machine.qmp.clone();
        tracing::info!("telling QEMU: {name}");
        tokio::spawn(async move {
            match qmp.execute(name, json!({})).await {
                // That is how `quit` ends.
                Ok(_) | Err(qmp::QmpError::Closed) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        });
    }

    fn save(&mut self) {
        let (Some(request), Some(machine)) = (self.asked.take(), &self.machine) else { return };
        // The number is spent whether the capture succeeds or not: QEMU may still have the disk open.
        self.newest_disk += 1;
        let next_disk = self.newest_disk;
        let (qmp, hardware, base) = (machine.qmp.clone(), hardware(self.spec), self.base.clone());
        let (qemu, guest, disk) = (machine.pid, self.guest.clone(), machine.disk);
        let (purpose, directory) = (request.purpose.clone(), self.directory);
        self.saving = vec![request];
        self.work = Some(Box::pin(async move {
            let work = async {
                let about = About { hardware, qemu: qmp.version().await?, base };
                let saving = Saving { qmp, qemu, guest, about, disk, next_disk };
                match purpose {
                    Purpose::Suspend(form) => save::suspend(&saving, form).await,
                    Purpose::Capture { memory, layer, passing } => {
                        save::capture(&saving, directory, &memory, &layer, passing).await
                    }
                }
            };
            Worked::Saved(work.await)
        }));
    }

    fn take_work(&mut self, worked: Worked) -> Event {
        match worked {
            Worked::Resumed(Ok(())) => Event::Resumed,
            Worked::Resumed(Err(reason)) => Event::ResumeFailed { reason },
            Worked::Saved(result) => {
                let disk = match &result {
                    Ok(saved) => Some(saved.disk),
                    Err(SaveError::AfterSwitch(_)) => Some(self.newest_disk),
                    Err(_) => None,
                };
                if let (Some(disk), Some(machine)) = (disk, &mut self.machine) {
                    machine.disk = disk;
                }
                let event = if result.is_ok() { Event::Saved } else { Event::SaveFailed };
                let result = result.map(|saved| saved.captured).map_err(|error| error.to_string());
                if let Err(reason) = &result {
                    tracing::warn!("the save failed: {reason}");
                }
                for request in self.saving.drain(..) {
                    answer(request, result.clone());
                }
                event
            }
        }
    }

    fn start(&mut self, origin: Origin) -> Result<(), String> {
        let allow = self.spec.network.allow.iter().map(|text| text.parse::<Network>());
        let allow =
            allow.collect::<Result<Vec<_>, _>>().map_err(|error| format!("network.allow: {error}"))?;
        let host = network::host_networks()
            .map_err(|error| format!("cannot read the addresses of this host: {error}"))?;
        let rules = network::policy(&host, &allow);
        let memory = self.memory.take().filter(|_| origin == Origin::Memory);
        let start = match &memory {
            Some(memory) => Start::Continue { base: memory.base() },
            None => Start::Boot,
        };
        self.base = match &memory {
            Some(memory) => memory.next_base().map_err(|error| error.to_string())?,
            None => {
                // The disk changes from here on; memory that was saved with it is of no use any more.
                resume::consume().map_err(|error| error.to_string())?;
                Base::Blank
            }
        };
        // Nothing of an earlier QEMU: it has ended.
        self.machine = None;
        let qemu =
            qemu::start(self.spec, &start, self.directory, &rules).map_err(|error| error.to_string())?;
        let pid = qemu.child.id().expect("a child that has not been waited for has a pid");
        tracing::info!("QEMU runs as process {pid}");
        let uplink =
            Uplink::start(pid).map_err(|error| format!("the guest cannot have a network: {error}"))?;

        let Qemu { child, qmp, console, stderr } = qemu;
        let (qmp, reader) = qmp::split(qmp);
        let port = Arc::new(watch::Sender::new(Port::Closed));
        let port_changes = port.subscribe();
        let loaded = watch::Sender::new(None);
        let loading = loaded.subscribe();
        let (kill, killed) = oneshot::channel();
        let output = Output {
            console: Some(console),
            log: self.publisher.console.clone(),
            port: port.clone(),
            openings: 0,
            loaded,
            last_reset_ms: 0,
        };
        let supervisor = supervise(child, killed, reader, output, stderr, self.events.clone());
        let negotiating = qmp.clone();
        match memory {
            Some(memory) => {
                self.work = Some(Box::pin(async move {
                    let resuming = async {
                        negotiating.negotiate().await?;
                        resume::resume(&negotiating, pid, memory, loading, &port).await
                    };
                    Worked::Resumed(resuming.await.map_err(|error| error.to_string()))
                }));
            }
            None => {
                tokio::spawn(async move {
                    if let Err(error) = negotiating.negotiate().await {
                        tracing::warn!("QMP does not start: {error}");
                    }
                });
            }
        }
        self.machine = Some(Started {
            qmp,
            pid,
            disk: 0,
            kill: Some(kill),
            _uplink: uplink,
            _link: Task::spawn(link::keep(CHANNEL.to_owned(), port_changes, self.links.clone())),
            _supervisor: Task::spawn(supervisor),
        });
        Ok(())
    }
}

/// Waits for QEMU's end and reports it after everything QEMU had to say before.
async fn supervise(
    mut child: Child,
    killed: oneshot::Receiver<()>,
    reader: QmpReader,
    output: Output,
    mut stderr: Task<Tail>,
    events: mpsc::Sender<Event>,
) {
    let (qmp_events, qmp_event) = mpsc::channel(16);
    let mut reading = Task::spawn(reader.run(qmp_events));
    let mut output = Task::spawn(output.run(qmp_event, events.clone()));
    let status = tokio::select! {
        status = child.wait() => status,
        Ok(()) = killed => match child.start_kill() {
            Ok(()) => child.wait().await,
            Err(error) => Err(error),
        },
    };
    let drained = tokio::time::timeout(DRAIN_DEADLINE, async {
        if let Err(error) = reading.join().await {
            tracing::warn!("{error}");
        }
        output.join().await;
        stderr.join().await
    });
    let exit = match (status, drained.await) {
        (Ok(status), Ok(words)) => qemu::explain_exit(status, &words),
        (Ok(status), Err(_)) => qemu::explain_exit(status, &Tail::default()),
        (Err(error), _) => QemuExit::Crashed { reason: format!("cannot wait for QEMU: {error}") },
    };
    tracing::info!(?exit, "QEMU has ended");
    if events.send(Event::QemuExited(exit)).await.is_err() {
        tracing::debug!("nobody waits for QEMU's end any more");
    }
}

/// What QEMU says: the guest's console and QMP's events. One task reads both, so that a restart is reported
/// with what the kernel wrote before it.
struct Output {
    /// `None` after its end.
    console: Option<UnixStream>,
    log: Arc<Mutex<Console>>,
    port: Arc<watch::Sender<Port>>,
    /// How often the guest has opened the port.
    openings: u64,
    loaded: watch::Sender<Option<bool>>,
    last_reset_ms: u64,
}

impl Output {
    async fn run(mut self, mut qmp: mpsc::Receiver<QmpEvent>, events: mpsc::Sender<Event>) {
        let mut buffer = vec![0_u8; 8192];
        loop {
            tokio::select! {
                event = qmp.recv() => match event {
                    Some(event) => {
                        self.read_console(&mut buffer);
                        if let Some(event) = self.translate(event)
                            && events.send(event).await.is_err()
                        {
                            return;
                        }
                    }
                    None if self.console.is_none() => return,
                    None => {
                        // QEMU is gone; what it wrote is all in the socket.
                        self.read_console(&mut buffer);
                        return;
                    }
                },
                () = readable(self.console.as_ref()) => self.read_console(&mut buffer),
            }
        }
    }

    fn translate(&mut self, event: QmpEvent) -> Option<Event> {
        match event {
            QmpEvent::Shutdown { by_guest } => by_guest.then_some(Event::GuestShutdown),
            QmpEvent::Reset { by_guest, at_ms } => {
                let new = at_ms.saturating_sub(self.last_reset_ms) > SAME_RESET_MS;
                self.last_reset_ms = at_ms;
                (by_guest && new).then(|| Event::GuestReset { panic: self.log().take_panic() })
            }
            QmpEvent::PortChanged { id, open } => {
                if id == PORT_ID {
                    self.openings += u64::from(open);
                    let openings = self.openings;
                    self.port.send_if_modified(|port| {
                        let now = match (open, *port) {
                            (false, _) => Port::Closed,
                            // A guest that continues has had it open, and QEMU says so a moment after we have
                            // connected.
                            (true, Port::Open(number)) => Port::Open(number),
                            (true, Port::Closed) => Port::Open(openings),
                        };
                        std::mem::replace(port, now) != now
                    });
                }
                None
            }
            QmpEvent::Loaded { completely } => {
                self.loaded.send_replace(Some(completely));
                None
            }
        }
    }

    /// Takes what is there without waiting.
    fn read_console(&mut self, buffer: &mut [u8]) {
        while let Some(console) = &self.console {
            match console.try_read(buffer) {
                Ok(0) => self.console = None,
                Ok(length) => {
                    if let Err(error) = self.log().write(&buffer[..length]) {
                        // A full disk must not stop the computer.
                        tracing::warn!("cannot keep the guest's console: {error}");
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!("cannot read the guest's console: {error}");
                    self.console = None;
                }
            }
        }
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Console> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory to continue from, or why there is none although there should be.
fn find_memory(spec: &MachineSpec) -> Result<Option<SavedMemory>, String> {
    let (directory, wanted) = match &spec.disk {
        DiskSpec::New { memory: None, .. } => return Ok(None),
        DiskSpec::New { memory: Some(memory), .. } => (memory.as_path(), true),
        DiskSpec::Existing => (Utf8Path::new(MEMORY_DIRECTORY), false),
    };
    match SavedMemory::find(directory, &hardware(spec)) {
        Ok(None) if wanted => Err(format!("there is none in {directory}")),
        Ok(memory) => Ok(memory),
        Err(error) => Err(error.to_string()),
    }
}

fn hardware(spec: &MachineSpec) -> String {
    qemu::hardware(spec.accelerator, spec.vcpus, spec.memory)
}

fn answer(request: SaveRequest, result: Result<Captured, String>) {
    if request.answer.send(result).is_err() {
        tracing::info!("whoever asked for the save is not there any more");
    }
}

async fn answered<T>(call: &mut Option<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> T {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn readable(console: Option<&UnixStream>) {
    match console {
        // An error shows again, and is told, in the read that follows.
        Some(console) => drop(console.readable().await),
        None => std::future::pending().await,
    }
}

fn identity(spec: &MachineSpec) -> SetIdentityRequest {
    let mut entropy = vec![0_u8; ENTROPY_BYTES];
    let mut filled = 0;
    while filled < entropy.len() {
        match rustix::rand::getrandom(&mut entropy[filled..], GetRandomFlags::empty()) {
            Ok(length) => filled += length,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!("this host has no random numbers for the guest: {error}");
                entropy.truncate(filled);
            }
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    SetIdentityRequest {
        hostname: spec.hostname.clone(),
        machine_id: spec.machine_id.clone(),
        wall_clock_ns: i64::try_from(now.as_nanos()).unwrap_or(0),
        entropy: entropy.into(),
    }
}

async fn set_identity(guest: Guest, identity: SetIdentityRequest) -> Event {
    match guest.system().set_identity(identity).await {
        Ok(_) => Event::IdentitySet,
        Err(status) if is_lost(&status) => Event::AgentLost,
        Err(status) => Event::IdentityFailed { reason: words(&status) },
    }
}

async fn wait_desktop(guest: Guest) -> Event {
    match guest.system().wait_desktop(WaitDesktopRequest {}).await {
        Ok(_) => Event::DesktopReady,
        Err(status) if is_lost(&status) => Event::AgentLost,
        Err(status) => Event::DesktopFailed { reason: words(&status) },
    }
}

async fn power_off(guest: Guest) -> Event {
    match guest.system().power_off(PowerOffRequest {}).await {
        // Nothing to do but wait for QEMU's end.
        Ok(_) => std::future::pending().await,
        Err(status) => {
            tracing::warn!("the agent did not take the request to power off: {}", words(&status));
            Event::PowerOffFailed
        }
    }
}

/// The conversation broke, as opposed to an answer that is an error.
fn is_lost(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
}

fn words(status: &Status) -> String {
    format!("{} ({:?})", status.message(), status.code())
}
