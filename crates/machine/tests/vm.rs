//! The machine process with a real QEMU. The computers come from a template
//! (`ROOST_TEMPLATES` or `~/.local/share/roost/templates`), named `miosa-desktop`.
//!
//! Each test runs the machine process as a process of its own, by starting this test program again for the
//! one "test" [`machine_process`].

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::time::Duration;

use harness::{Machine, Template, exec, exec_ok};
use roost_machine_proto::v1::Phase;
use roost_machine_proto::{DISK_FILE, MachineResult, MachineSpec, SOCKET_FILE};

/// Not a test: the body of the machine process that the others start.
#[test]
#[ignore = "the machine process of the other tests"]
fn machine_process() {
    harness::machine_process();
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_kernel_without_its_disk_is_a_boot_loop_with_the_kernels_own_words() {
    let template = Template::find();
    let mut machine = Machine::new(&template);
    // An empty initrd: the kernel finds no program to start.
    let empty = machine.path("empty.initrd");
    std::fs::write(&empty, b"").unwrap();
    machine.spec.boot.initrd = empty;
    machine.start();
    let last = machine.watch_until(Phase::Failed, Duration::from_secs(120)).await;
    assert!(last.reason.starts_with("the guest's kernel stopped: "), "{}", last.reason);
    assert!(last.console.iter().any(|line| line.contains("Kernel panic")), "{:?}", last.console);
    machine.wait_for_exit();
    match machine.outcome().result {
        MachineResult::Failed { reason, console } => {
            assert_eq!(reason, last.reason);
            assert_eq!(console, last.console);
        }
        MachineResult::Stopped => panic!("stopped"),
    }
    assert!(!machine.path(SOCKET_FILE).exists());
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_missing_disk_is_never_replaced() {
    let template = Template::find();
    let mut machine = Machine::new(&template);
    machine.spec.disk = roost_machine_proto::DiskSpec::Existing;
    machine.start();
    machine.wait_for_exit();
    match machine.outcome().result {
        MachineResult::Failed { reason, .. } => assert!(reason.contains("is missing"), "{reason}"),
        MachineResult::Stopped => panic!("stopped"),
    }
    assert!(!machine.path(DISK_FILE).exists());
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn qemu_dies_with_its_machine_process_and_the_machine_process_tells_of_its_qemu() {
    let template = Template::find();
    let mut machine = Machine::new(&template);
    machine.start();
    machine.watch_until(Phase::Booting, Duration::from_secs(20)).await;
    let qemu = machine.qemu();

    // Only one process for one directory.
    let refused = machine.second_process();
    assert!(refused.contains("already runs this computer"), "{refused}");

    machine.kill();
    harness::wait_gone(qemu, Duration::from_secs(5));
    assert!(machine.try_outcome().is_none(), "a killed process leaves no outcome");

    // The next one takes over at once, from the same files.
    machine.spec.generation += 1;
    machine.start();
    machine.watch_until(Phase::Booting, Duration::from_secs(20)).await;
    harness::kill(machine.qemu());
    let last = machine.watch_until(Phase::Failed, Duration::from_secs(10)).await;
    assert!(last.reason.contains("killed by signal 9"), "{}", last.reason);
    machine.wait_for_exit();
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_stop_while_booting_ends_in_order() {
    let template = Template::find();
    let mut machine = Machine::new(&template);
    machine.start();
    machine.watch_until(Phase::Booting, Duration::from_secs(20)).await;
    machine.terminate();
    machine.stop().await;
    machine.stop().await;
    machine.watch_until(Phase::Stopped, Duration::from_secs(120)).await;
    machine.wait_for_exit();
    assert_eq!(machine.outcome().result, MachineResult::Stopped);
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_computer_runs_stops_and_runs_again_with_its_files() {
    let template = Template::find();
    let mut machine = Machine::new(&template);
    let started = std::time::Instant::now();
    machine.start();
    machine.watch_until(Phase::Running, Duration::from_secs(300)).await;
    println!("spec to running: {:?}", started.elapsed());
    machine.print_memory("running");

    let mut guest = machine.guest().await;
    assert_eq!(exec_ok(&mut guest, "hostname").await, format!("{}\n", machine.spec.hostname));
    assert_eq!(exec_ok(&mut guest, "cat /etc/machine-id").await, format!("{}\n", machine.spec.machine_id));
    exec_ok(&mut guest, "echo kept > ~/file && sync").await;
    for round in 0..5 {
        let began = std::time::Instant::now();
        exec_ok(&mut guest, "true").await;
        println!("exec {round}: {:?}", began.elapsed());
    }
    let began = std::time::Instant::now();
    let zeros = exec(&mut guest, "head -c 67108864 /dev/zero").await;
    println!("64 MiB from the guest: {:?}", began.elapsed());
    assert_eq!(zeros.stdout.len(), 67_108_864);

    // A restart from inside gives it its identity again.
    exec(&mut guest, "sudo systemctl reboot").await;
    machine.watch_until(Phase::Booting, Duration::from_secs(60)).await;
    machine.watch_until(Phase::Running, Duration::from_secs(300)).await;
    let mut guest = machine.guest().await;
    assert_eq!(exec_ok(&mut guest, "hostname").await, format!("{}\n", machine.spec.hostname));

    let began = std::time::Instant::now();
    machine.stop().await;
    machine.watch_until(Phase::Stopped, Duration::from_secs(90)).await;
    println!("stop: {:?}", began.elapsed());
    machine.wait_for_exit();
    assert_eq!(machine.outcome().result, MachineResult::Stopped);

    machine.spec.disk = roost_machine_proto::DiskSpec::Existing;
    machine.spec.generation += 1;
    machine.start();
    machine.watch_until(Phase::Running, Duration::from_secs(300)).await;
    let mut guest = machine.guest().await;
    assert_eq!(exec_ok(&mut guest, "cat ~/file").await, "kept\n");

    // A power-off from inside is a stop.
    exec(&mut guest, "sudo systemctl poweroff").await;
    machine.watch_until(Phase::Stopped, Duration::from_secs(90)).await;
    machine.wait_for_exit();
    assert_eq!(machine.outcome().result, MachineResult::Stopped);
}

/// What is on the disk, from the template's and from the computer's own.
const SUMS: &str = "head -c 1000000 /dev/zero | tr '\\0' x > ~/own; sync; sha256sum ~/own /usr/lib/x86_64-linux-gnu/libc.so.6 /bin/* \
                    2>/dev/null | sha256sum";
/// A counter that runs on, an unflushed file, and what tells one computer from another.
const COUNTER: &str = r#"cat > /dev/shm/counter.py <<'END'
import os, time
count = 0
while True:
    count += 1
    with open("/dev/shm/next", "w") as file:
        file.write(f"{count}\n")
    os.replace("/dev/shm/next", "/dev/shm/n")
    time.sleep(0.05)
END
setsid nohup python3 /dev/shm/counter.py >/dev/null 2>&1 </dev/null &
until [ -s /dev/shm/n ]; do sleep 0.1; done"#;
const COUNT: &str = "cat /dev/shm/n";
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";
const RANDOM: &str =
    "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | base64; cat /etc/machine-id";

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_template_is_forked_suspended_continued_captured_and_cloned() {
    let template = Template::find();
    let mut first = Machine::new(&template);
    first.start();
    first.watch_until(Phase::Running, Duration::from_secs(300)).await;
    let bytes = first.suspend(true).await.unwrap();
    first.ended().await;
    println!("memory of the template: {} MiB", bytes >> 20);
    let memory = first.path("memory");
    let MachineSpec { accelerator, vcpus, memory: size, .. } = first.spec;
    roost_machine::verify_memory(&memory, &roost_machine::hardware(accelerator, vcpus, size)).unwrap();

    // Two forks: at once there, and not the same.
    let mut forks = Vec::new();
    for _ in 0..2 {
        let mut fork = first.forked(first.path(DISK_FILE), Some(memory.clone()));
        let began = std::time::Instant::now();
        fork.start();
        let seen = fork.watch_until(Phase::Running, Duration::from_secs(60)).await;
        println!("forked: {:?}", began.elapsed());
        assert_eq!(seen.memory_lost, "", "{}", fork.log());
        let mut guest = fork.guest().await;
        exec_ok(&mut guest, "true").await;
        println!("first exec: {:?}", began.elapsed());
        forks.push(fork);
    }
    let mut seen = std::collections::HashSet::new();
    for fork in &forks {
        let mut guest = fork.guest().await;
        for line in exec_ok(&mut guest, RANDOM).await.lines() {
            assert!(seen.insert(line.to_owned()), "{line} is there twice");
        }
        let clock: f64 = exec_ok(&mut guest, "date +%s.%N").await.trim().parse().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        println!("clock: {:.3} s behind when the answer is here", now.as_secs_f64() - clock);
    }

    // Suspended and continued again and again: nothing is different.
    let mut fork = forks.pop().unwrap();
    let mut guest = fork.guest().await;
    exec_ok(&mut guest, COUNTER).await;
    exec_ok(&mut guest, "echo unflushed > ~/file").await;
    let boot = exec_ok(&mut guest, BOOT).await;
    let mut count = 0;
    for round in 0..5 {
        let began = std::time::Instant::now();
        let bytes = fork.suspend(false).await.unwrap();
        let saved = began.elapsed();
        fork.ended().await;
        println!("suspend {round}: {saved:?}, ended {:?}, {} KiB", began.elapsed(), bytes >> 10);
        fork.check_disk();
        let began = std::time::Instant::now();
        let seen = fork.start_again().await;
        println!("continued: {:?}", began.elapsed());
        assert_eq!(seen.memory_lost, "");
        let mut guest = fork.guest().await;
        assert_eq!(exec_ok(&mut guest, BOOT).await, boot);
        println!("first exec: {:?}", began.elapsed());
        let now: u64 = exec_ok(&mut guest, COUNT).await.trim().parse().unwrap();
        assert!(now > count, "{now} after {count}");
        count = now;
        assert_eq!(exec_ok(&mut guest, "cat ~/file").await, "unflushed\n");
        assert!(!fork.path("memory").exists(), "used memory stays");
    }

    let mut guest = fork.guest().await;
    let sums = exec_ok(&mut guest, SUMS).await;

    // Captured while it runs; clones go on from there, also a clone of a clone.
    let reply = fork.capture("one").await.unwrap();
    println!("capture: paused {} us, {} KiB", reply.pause_us, reply.memory_bytes >> 10);
    assert_eq!(fork.capture("one").await.unwrap(), reply, "asked again");
    let mut guest = fork.guest().await;
    exec_ok(&mut guest, "echo later > ~/file; sync").await;
    // Nothing from the guest's own cache: the layer is read through the new disk.
    let drop_caches = "sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches'";
    assert_eq!(exec_ok(&mut guest, &format!("{drop_caches}; {SUMS}")).await, sums);
    fork.capture("another").await.unwrap();
    assert_eq!(
        exec_ok(&mut guest, &format!("{drop_caches}; {SUMS}; cat ~/file")).await,
        format!("{sums}later\n")
    );
    let captured = |machine: &Machine, name: &str| {
        (machine.path(&format!("{name}.qcow2")), Some(machine.path(&format!("captures/{name}/memory"))))
    };
    let (base, memory) = captured(&fork, "one");
    let mut clone = fork.forked(base, memory);
    clone.start();
    let seen = clone.watch_until(Phase::Running, Duration::from_secs(60)).await;
    assert_eq!(seen.memory_lost, "");
    let mut guest = clone.guest().await;
    assert_eq!(exec_ok(&mut guest, BOOT).await, boot);
    assert_eq!(exec_ok(&mut guest, "cat ~/file").await, "unflushed\n", "the source's later write");
    let one: u64 = exec_ok(&mut guest, COUNT).await.trim().parse().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let two: u64 = exec_ok(&mut guest, COUNT).await.trim().parse().unwrap();
    assert!(one >= count && two > one, "{count} {one} {two}");
    clone.capture("two").await.unwrap();
    let (base, memory) = captured(&clone, "two");
    let mut grandchild = clone.forked(base, memory);
    grandchild.start();
    grandchild.watch_until(Phase::Running, Duration::from_secs(60)).await;
    assert_eq!(exec_ok(&mut grandchild.guest().await, "cat ~/file").await, "unflushed\n");
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_computer_whose_memory_is_damaged_boots_with_every_file_and_says_why() {
    let template = Template::find();
    let mut machine = Machine::new(&template);
    machine.start();
    machine.watch_until(Phase::Running, Duration::from_secs(300)).await;
    let mut guest = machine.guest().await;
    let boot = exec_ok(&mut guest, BOOT).await;
    // Not synced: that is the suspend's business.
    exec_ok(&mut guest, "echo unflushed > ~/file").await;
    machine.suspend(false).await.unwrap();
    machine.ended().await;
    let pages = machine.path("memory/pages");
    let mut content = std::fs::read(&pages).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&pages, content).unwrap();
    let seen = machine.start_again().await;
    assert!(seen.memory_lost.contains("damaged"), "{:?}", seen.memory_lost);
    let mut guest = machine.guest().await;
    assert_ne!(exec_ok(&mut guest, BOOT).await, boot);
    assert_eq!(exec_ok(&mut guest, "cat ~/file").await, "unflushed\n");
    machine.stop().await;
    machine.ended().await;
    machine.check_disk();
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn the_guest_reaches_the_internet_and_nothing_of_the_host() {
    let template = Template::find();
    let mut machine = Machine::new(&template);
    machine.start();
    machine.watch_until(Phase::Running, Duration::from_secs(300)).await;
    let mut guest = machine.guest().await;

    // A service on every address of the host.
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut addresses: Vec<String> =
        ["10.0.2.2", "127.0.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.100"].map(str::to_owned).to_vec();
    addresses.extend(harness::host_addresses());
    for address in addresses {
        let connect = format!("timeout 10 bash -c 'exec 3<>/dev/tcp/{address}/{port}'");
        let outcome = exec(&mut guest, &connect).await;
        assert_ne!(outcome.code, 0, "the guest reached {address}:{port}");
        println!(
            "{address}: {}",
            String::from_utf8_lossy(&outcome.stderr).lines().next().unwrap_or_default()
        );
    }
    let reached = tokio::time::timeout(Duration::from_millis(10), listener.accept()).await;
    assert!(reached.is_err(), "somebody reached the host");

    // Its names resolve and its package mirror answers.
    let mirror = exec_ok(&mut guest, "grep -rhoE 'https?://[^/ ]+' /etc/apt | sort -u | head -1").await;
    let name = mirror.trim().rsplit('/').next().unwrap();
    println!("{}", exec_ok(&mut guest, &format!("getent hosts {name}")).await);
    exec_ok(&mut guest, "sudo apt-get update 2>&1 | tail -3 >&2").await;
    machine.stop().await;
    machine.wait_for_exit();
}

#[test]
#[ignore = "boots a VM"]
fn the_probe_gives_one_verdict_and_remembers_it() {
    let template = Template::find();
    let directory = tempfile::tempdir().unwrap();
    let cache = camino::Utf8Path::from_path(directory.path()).unwrap().join("accel.json");
    let began = std::time::Instant::now();
    let first = roost_machine::accel::probe(&template.kernel(), &template.initrd(), &cache).unwrap();
    println!("{:?} in {:?}: {}", first.accelerator, began.elapsed(), first.why);
    let began = std::time::Instant::now();
    let second = roost_machine::accel::probe(&template.kernel(), &template.initrd(), &cache).unwrap();
    assert_eq!(first, second);
    assert!(began.elapsed() < Duration::from_secs(1), "the second answer comes from the cache");
}
