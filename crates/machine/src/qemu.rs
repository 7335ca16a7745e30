//! QEMU: its command line, its start in a namespace of its own, and its end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use camino::Utf8PathBuf;
use roost_api::MemoryMib;
use roost_guest_proto::PORT_NAME;
use roost_machine_proto::{Accelerator, MachineSpec};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::directory::{Directory, remove_if_there};
use crate::disk;
use crate::lines::Tail;
use crate::memory::MAIN_BLOCK;
use crate::network::{EnterError, Namespace, Rule};
use crate::state::QemuExit;
use crate::task::Task;

pub const PROGRAM: &str = "qemu-system-x86_64";
/// The host's end of the virtio-serial port. A path and not an inherited socket, because connecting anew
/// is how the guest is told that a conversation is over.
pub const CHANNEL: &str = "channel.sock";
/// The id of that port in QMP events.
pub const PORT_ID: &str = "agent";

/// What the memory of a computer that boots is a mapping of.
pub const BLANK: &str = "memory.blank";

/// * `panic=-1`: a kernel that panics restarts at once; the restart is seen and counted.
/// * `tsc=reliable`: no calibration against timers that emulation makes late.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet root=/dev/vda rw rootfstype=ext4 net.ifnames=0 tsc=reliable panic=-1";

#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    #[error("cannot start {PROGRAM}: {0}; install QEMU 9 or newer (on Debian 12 from bookworm-backports)")]
    NotInstalled(io::Error),
    #[error("cannot start QEMU: {0}")]
    Enter(#[from] EnterError),
    #[error("cannot make QEMU's sockets: {0}")]
    Sockets(#[from] io::Error),
}

/// A started QEMU and our ends of its sockets.
#[derive(Debug)]
pub struct Qemu {
    pub child: Child,
    pub qmp: UnixStream,
    pub console: UnixStream,
    pub stderr: Task<Tail>,
}

/// Starts QEMU. It dies with the calling **thread**, by the kernel's hand, so that no crash of this process
/// can leave one behind; call it on a thread that lives as long as the process.
pub fn start(
    spec: &MachineSpec,
    start: &Start,
    directory: &Directory,
    rules: &[Rule],
) -> Result<Qemu, QemuError> {
    remove_if_there(CHANNEL)?;
    if !matches!(start, Start::Continue { base: Some(_) }) {
        make_blank(spec)?;
    }
    let (qmp, qemu_qmp) = StdUnixStream::pair()?;
    let (console, qemu_console) = StdUnixStream::pair()?;
    let lock = directory.lock_file();
    let inherit = [qemu_qmp.as_fd(), qemu_console.as_fd(), lock.as_fd()];
    let (namespace, failed_step) = Namespace::new(rules, &inherit)?;
    let namespace = Arc::new(namespace);

    let mut command = Command::new(PROGRAM);
    command
        .args(arguments(spec, start, qemu_qmp.as_raw_fd(), qemu_console.as_raw_fd()))
        // A heap per thread is memory that an idle computer keeps for nothing.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A signal to our whole process group (a terminal's Ctrl-C) asks for a clean stop; QEMU would obey it
        // at once and pull the plug.
        .process_group(0)
        .kill_on_drop(true);
    let in_child = Arc::clone(&namespace);
    let before_exec = move || {
        // QEMU asks for huge pages for translated code; an idle computer would fill a small part of each.
        rustix::thread::disable_transparent_huge_pages(true)?;
        in_child.enter()
    };
    // SAFETY: the closure makes system calls only and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            return Err(match failed_step.explain(&namespace, error) {
                EnterError::Exec(source) => QemuError::NotInstalled(source),
                step => QemuError::Enter(step),
            });
        }
    };
    let stderr = child.stderr.take().expect("stderr is piped");
    let stderr = Task::spawn(Tail::read(stderr, |line| tracing::warn!("QEMU: {line}")));
    Ok(Qemu { child, qmp: nonblocking(qmp)?, console: nonblocking(console)?, stderr })
}

fn nonblocking(socket: StdUnixStream) -> io::Result<UnixStream> {
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// A file of nothing but holes, of the size of the guest's memory.
fn make_blank(spec: &MachineSpec) -> io::Result<()> {
    let file = std::fs::File::options().create(true).truncate(true).write(true).open(BLANK)?;
    file.set_len(u64::from(spec.memory.0) * 1024 * 1024)
}

/// How QEMU's end is told.
pub fn explain_exit(status: ExitStatus, stderr: &Tail) -> QemuExit {
    use std::os::unix::process::ExitStatusExt;

    if status.success() {
        return QemuExit::Clean;
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("QEMU ended with status {code}"),
        (None, Some(signal)) => format!("QEMU was killed by signal {signal}"),
        (None, None) => format!("QEMU ended ({status})"),
    };
    let words = stderr.joined();
    let reason = if words.is_empty() { how } else { format!("{how}: {words}") };
    QemuExit::Crashed { reason }
}

/// How QEMU begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The kernel boots.
    Boot,
    /// It stands still and waits for a saved memory. `base` is the file its pages are read from; without one
    /// they are zeros.
    Continue { base: Option<Utf8PathBuf> },
}

/// What of the machine the guest can see, and what saved memory therefore depends on. Changing any of it makes
/// every saved memory unusable: its computers boot.
pub fn hardware(accelerator: Accelerator, vcpus: u32, memory: MemoryMib) -> String {
    hardware_options(accelerator, vcpus, memory).map(|(name, value)| format!("{name} {value}")).join(" ")
}

fn hardware_options(accelerator: Accelerator, vcpus: u32, memory: MemoryMib) -> [(&'static str, String); 10] {
    let (accelerator, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        // Without the fast string instructions, which the kernel would copy with and TCG runs byte by byte:
        // a pipe copy is four times faster.
        Accelerator::Tcg => ("tcg,thread=multi", "max,erms=off,fsrm=off,fsrs=off,fzrm=off"),
    };
    let text = str::to_owned;
    [
        // q35 for vmgenid, which makes the kernels of clones reseed. Controllers nobody uses cost boot time.
        // The HPET would wake QEMU 250 times a second in an idle computer.
        (
            "-machine",
            text("q35,memory-backend=ram,suppress-vmdesc=on,hpet=off,usb=off,smbus=off,sata=off,vmport=off"),
        ),
        ("-accel", text(accelerator)),
        ("-cpu", text(cpu)),
        ("-smp", vcpus.to_string()),
        ("-m", format!("{}M", memory.0)),
        ("-device", format!("virtio-blk-pci,drive={}", disk_node(0))),
        ("-device", text("virtio-serial-pci,max_ports=2")),
        ("-device", format!("virtserialport,id={PORT_ID},chardev=channel,name={PORT_NAME}")),
        ("-device", text("virtio-rng-pci")),
        ("-device", text("virtio-net-pci,netdev=net,romfile=")),
    ]
}

/// QEMU's name for the block device that is a disk; a capture gives it a successor.
pub fn disk_node(number: u32) -> String {
    format!("disk-{number}")
}

/// What a blockdev is, as the disk with this number. What the guest has flushed survives a crash of the host:
/// its flushes reach the host's disk (no-flush=off), while other writes may wait in the page cache.
pub fn disk_options(number: u32) -> serde_json::Value {
    serde_json::json!({
        "driver": "qcow2",
        "node-name": disk_node(number),
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "cache": { "direct": false, "no-flush": false },
        "file": {
            "driver": "file",
            "filename": disk::name(number),
            "aio": "threads",
            "discard": "unmap",
            "cache": { "direct": false, "no-flush": false },
        },
    })
}

/// The command line; `qmp` and `console` are descriptors that QEMU inherits. Paths of the machine's own
/// files are relative to its directory.
fn arguments(spec: &MachineSpec, start: &Start, qmp: RawFd, console: RawFd) -> Vec<String> {
    let memory = spec.memory.0;
    let mut arguments = Vec::new();
    let mut option = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);

    option("-name", &format!("guest={},debug-threads=on", spec.computer));
    // The guest's memory is a private mapping of a file that others map too. A computer's memory is a promise;
    // most of it is never touched (reserve=off).
    let base = match start {
        Start::Continue { base: Some(base) } => base.as_str(),
        Start::Boot | Start::Continue { base: None } => BLANK,
    };
    option(
        "-object",
        &format!(
            "memory-backend-file,id={MAIN_BLOCK},size={memory}M,mem-path={base},share=off,readonly=on,rom=off,\
             reserve=off"
        ),
    );
    option("-display", "none");
    option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    // What saves the devices writes no such section, and what loads them would want one.
    option("-global", "migration.send-configuration=off");

    option("-kernel", spec.boot.kernel.as_str());
    option("-initrd", spec.boot.initrd.as_str());
    option("-append", KERNEL_ARGUMENTS);

    option("-blockdev", &disk_options(0).to_string());
    option("-chardev", &format!("socket,id=qmp,fd={qmp}"));
    option("-mon", "chardev=qmp,mode=control");
    option("-chardev", &format!("socket,id=console,fd={console}"));
    option("-serial", "chardev:console");
    option("-chardev", &format!("socket,id=channel,path={CHANNEL},server=on,wait=off"));
    option("-netdev", "user,id=net,ipv6=off");
    for (name, value) in hardware_options(spec.accelerator, spec.vcpus, spec.memory) {
        option(name, &value);
    }
    // A new one at every start: how the guest's kernel learns that it may be one of several.
    option("-device", "vmgenid,guid=auto");
    if let Start::Continue { .. } = start {
        option("-incoming", "defer");
        arguments.push("-S".to_owned());
    }
    arguments.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    arguments
}
