//! Starts machine processes and talks to them.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use hyper_util::rt::TokioIo;
use roost_guest_proto::v1::process_client::ProcessClient;
use roost_guest_proto::v1::{RunInput, RunStart, run_input, run_output};
use roost_machine_proto::v1::machine_client::MachineClient;
use roost_machine_proto::v1::{
    CaptureReply, CaptureRequest, Observation, Phase, StopRequest, SuspendRequest, WatchRequest,
};
use roost_machine_proto::{
    Accelerator, BootSpec, DISK_FILE, DiskSpec, LOCK_FILE, MachineSpec, NetworkSpec, OUTCOME_FILE, Outcome,
    SOCKET_FILE, SPEC_FILE,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

const DIRECTORY: &str = "ROOST_TEST_MACHINE_DIRECTORY";

/// The body of the machine process.
pub fn machine_process() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter("roost_machine=debug")
        .with_writer(std::io::stderr)
        .init();
    if let Err(error) = roost_machine::run(Utf8Path::new(&directory), None) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

pub struct Template {
    directory: Utf8PathBuf,
}

impl Template {
    pub fn kernel(&self) -> Utf8PathBuf {
        self.directory.join("kernel")
    }

    pub fn initrd(&self) -> Utf8PathBuf {
        self.directory.join("initrd")
    }

    pub fn find() -> Self {
        let templates = std::env::var("ROOST_TEMPLATES").unwrap_or_else(|_| {
            let home = std::env::var("HOME").expect("HOME is set");
            format!("{home}/.local/share/roost/templates")
        });
        let current = Utf8PathBuf::from(templates).join("miosa-desktop/current");
        let directory = current.canonicalize_utf8().unwrap_or_else(|error| {
            panic!("no template at {current} ({error}): build it with `roost image build`")
        });
        Self { directory }
    }
}

pub struct Machine {
    pub spec: MachineSpec,
    directory: tempfile::TempDir,
    process: Option<Child>,
}

impl Machine {
    pub fn new(template: &Template) -> Self {
        let spec = MachineSpec {
            computer: roost_api::ComputerId::new(),
            generation: 1,
            hostname: "machine-test".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            vcpus: 2,
            memory: roost_api::MemoryMib(2048),
            disk: DiskSpec::New { base: template.directory.join("base.qcow2"), size_gib: 10, memory: None },
            boot: BootSpec { kernel: template.kernel(), initrd: template.initrd() },
            accelerator: Accelerator::Tcg,
            network: NetworkSpec::default(),
        };
        Self { spec, directory: new_directory(), process: None }
    }

    pub fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.directory.path()).unwrap().join(name)
    }

    pub fn start(&mut self) {
        std::fs::write(self.path(SPEC_FILE), serde_json::to_vec_pretty(&self.spec).unwrap()).unwrap();
        self.process =
            Some(self.command(std::fs::File::create(self.path("machine.log")).unwrap()).spawn().unwrap());
    }

    fn command(&self, log: impl Into<Stdio>) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["machine_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    /// What a second process on the same directory says when it gives up.
    pub fn second_process(&self) -> String {
        let output = self.command(Stdio::piped()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    async fn channel(&self) -> Channel {
        let process = self.pid();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            // Through /proc, because the path is too long for an address.
            let path = format!("/proc/{process}/cwd/{SOCKET_FILE}");
            let connector = tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            match Endpoint::from_static("http://machine").connect_with_connector(connector).await {
                Ok(channel) => return channel,
                Err(error) if Instant::now() > deadline => panic!("{error:?}\n{}", self.log()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub async fn guest(&self) -> ProcessClient<Channel> {
        ProcessClient::new(self.channel().await)
    }

    /// Waits for the end of a computer that was suspended.
    pub async fn ended(&mut self) {
        self.wait_for_exit();
        assert_eq!(self.outcome().result, roost_machine_proto::MachineResult::Stopped, "{}", self.log());
    }

    /// Starts it again, from whatever it has.
    pub async fn start_again(&mut self) -> Observation {
        self.spec.disk = DiskSpec::Existing;
        self.spec.generation += 1;
        self.start();
        self.watch_until(Phase::Running, Duration::from_secs(90)).await
    }

    pub fn check_disk(&self) {
        let mut check = Command::new("qemu-img");
        let status = check.args(["check", "-q", DISK_FILE]).current_dir(self.directory.path()).status();
        assert!(status.unwrap().success());
    }

    pub async fn watch_until(&self, phase: Phase, within: Duration) -> Observation {
        let watching = async {
            let mut client = MachineClient::new(self.channel().await);
            let mut changes = client.watch(WatchRequest {}).await.unwrap().into_inner();
            loop {
                match changes.message().await {
                    Ok(Some(observation)) if observation.phase() == phase => {
                        assert_eq!(observation.generation, self.spec.generation);
                        return observation;
                    }
                    Ok(Some(observation)) => println!("{}", observation.phase().as_str_name()),
                    end => panic!("no {phase:?}: {end:?}\n{}", self.log()),
                }
            }
        };
        match tokio::time::timeout(within, watching).await {
            Ok(observation) => observation,
            Err(_) => {
                let console = std::fs::read(self.path(roost_machine_proto::CONSOLE_FILE)).unwrap_or_default();
                let console = String::from_utf8_lossy(&console).into_owned();
                panic!("no {phase:?} within {within:?}\n{}\n{console}", self.log())
            }
        }
    }

    pub async fn suspend(&self, image: bool) -> Result<u64, tonic::Status> {
        let mut client = MachineClient::new(self.channel().await);
        Ok(client.suspend(SuspendRequest { image }).await?.into_inner().memory_bytes)
    }

    /// Captures into `captures/<name>/memory` and links the layer `<name>.qcow2` first, as a launcher does.
    pub async fn capture(&self, name: &str) -> Result<CaptureReply, tonic::Status> {
        let layer = self.path(&format!("{name}.qcow2"));
        if !layer.exists() {
            std::fs::hard_link(self.path(DISK_FILE), &layer).unwrap();
        }
        let mut client = MachineClient::new(self.channel().await);
        let request = CaptureRequest {
            memory: format!("captures/{name}/memory"),
            layer: layer.into_string(),
            passing: false,
        };
        Ok(client.capture(request).await?.into_inner())
    }

    /// A machine of the same kind that begins on `base` and continues from `memory`.
    pub fn forked(&self, base: Utf8PathBuf, memory: Option<Utf8PathBuf>) -> Self {
        let mut spec = self.spec.clone();
        spec.computer = roost_api::ComputerId::new();
        spec.machine_id = spec.computer.as_uuid().simple().to_string();
        spec.disk = DiskSpec::New { base, size_gib: 10, memory };
        Self { spec, directory: new_directory(), process: None }
    }

    pub async fn stop(&self) {
        MachineClient::new(self.channel().await).stop(StopRequest {}).await.unwrap();
    }

    pub fn pid(&self) -> i32 {
        let process = self.process.as_ref().expect("started");
        i32::try_from(process.id()).unwrap()
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("started");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn terminate(&self) {
        rustix::process::kill_process(pid(self.pid()), rustix::process::Signal::TERM).unwrap();
    }

    pub fn wait_for_exit(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            if let Some(status) = self.process.as_mut().expect("started").try_wait().unwrap() {
                self.process = None;
                assert!(status.success(), "{status}\n{}", self.log());
                return;
            }
            assert!(Instant::now() < deadline, "the machine process does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn try_outcome(&self) -> Option<Outcome> {
        let text = std::fs::read(self.path(OUTCOME_FILE)).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    pub fn outcome(&self) -> Outcome {
        let outcome = self.try_outcome().unwrap_or_else(|| panic!("no outcome\n{}", self.log()));
        assert_eq!(outcome.generation, self.spec.generation);
        outcome
    }

    /// The QEMU of this machine, found as the child of its process.
    pub fn qemu(&self) -> i32 {
        let lock: i32 = std::fs::read_to_string(self.path(LOCK_FILE)).unwrap().trim().parse().unwrap();
        assert_eq!(lock, self.pid());
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(qemu) =
                children(lock).into_iter().find(|child| comm(*child).starts_with("qemu-system"))
            {
                return qemu;
            }
            assert!(Instant::now() < deadline, "no QEMU\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn print_memory(&self, when: &str) {
        let mut processes = children(self.pid());
        processes.push(self.pid());
        for process in processes {
            println!("{when}: {} PSS {} KiB", comm(process), pss_kib(process));
        }
    }

    pub fn log(&self) -> String {
        let mut log = String::new();
        if let Ok(mut file) = std::fs::File::open(self.path("machine.log")) {
            file.read_to_string(&mut log).unwrap();
        }
        log
    }
}

/// Deep on purpose: the address of a unix socket holds 108 bytes. Not in /tmp: that is often memory.
fn new_directory() -> tempfile::TempDir {
    let deep = Path::new("/var/tmp/roost-machine-test").join("d".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    tempfile::tempdir_in(deep).unwrap()
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs a shell command in the guest. A guest that goes away on the way counts as code -1.
pub async fn exec(guest: &mut ProcessClient<Channel>, command: &str) -> Finished {
    let start = RunStart {
        argv: ["bash", "-c", command].map(str::to_owned).to_vec(),
        timeout_ms: 240_000,
        ..RunStart::default()
    };
    let input = tokio_stream::once(RunInput { input: Some(run_input::Input::Start(start)) });
    let mut output = guest.run(input).await.unwrap().into_inner();
    let mut finished = Finished { code: -1, stdout: Vec::new(), stderr: Vec::new() };
    while let Ok(Some(message)) = output.message().await {
        match message.output {
            Some(run_output::Output::Stdout(bytes)) => finished.stdout.extend(&bytes),
            Some(run_output::Output::Stderr(bytes)) => finished.stderr.extend(&bytes),
            Some(run_output::Output::Exit(exit)) => finished.code = exit.code,
            Some(run_output::Output::Started(_)) | None => {}
        }
    }
    finished
}

pub async fn exec_ok(guest: &mut ProcessClient<Channel>, command: &str) -> String {
    let finished = exec(guest, command).await;
    let stderr = String::from_utf8_lossy(&finished.stderr);
    assert_eq!(finished.code, 0, "{command}: {stderr}");
    String::from_utf8(finished.stdout).unwrap()
}

pub fn kill(process: i32) {
    rustix::process::kill_process(pid(process), rustix::process::Signal::KILL).unwrap();
}

pub fn wait_gone(process: i32, within: Duration) {
    let deadline = Instant::now() + within;
    // A zombie is gone too: whoever inherits it may take a while to notice.
    while Path::new(&format!("/proc/{process}/exe")).read_link().is_ok() {
        assert!(Instant::now() < deadline, "process {process} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The IPv4 addresses of this host, except the loopback.
pub fn host_addresses() -> Vec<String> {
    let output = Command::new("ip").args(["-4", "-o", "addr"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let addresses = text.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
    addresses.filter(|address| !address.starts_with("127.")).map(str::to_owned).collect()
}

fn pid(process: i32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(process).unwrap()
}

fn children(process: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

fn comm(process: i32) -> String {
    std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim().to_owned()
}

fn pss_kib(process: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find(|line| line.starts_with("Pss:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}
