//! Commands, as a host sees them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "each test program uses its part of the support")]
mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use roost_guest_proto::v1::{
    CloseStdin, RunExit, RunInput, RunOutput, RunStart, TerminalSize, process_client::ProcessClient,
    run_input::Input, run_output::Output,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use support::{Agent, within};

#[derive(Debug, Default)]
struct Done {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: RunExit,
}

impl Done {
    fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim_end()
    }
}

fn shell(script: &str) -> RunStart {
    RunStart { argv: ["bash", "-c", script].map(str::to_owned).to_vec(), ..RunStart::default() }
}

async fn open(
    channel: &Channel,
    start: RunStart,
) -> Result<(mpsc::Sender<RunInput>, Streaming<RunOutput>), Status> {
    let (sender, inputs) = mpsc::channel(4);
    sender.send(input(Input::Start(start))).await.unwrap();
    let outputs = ProcessClient::new(channel.clone()).run(ReceiverStream::new(inputs)).await?;
    Ok((sender, outputs.into_inner()))
}

fn input(input: Input) -> RunInput {
    RunInput { input: Some(input) }
}

async fn finish(mut outputs: Streaming<RunOutput>) -> Result<Done, Status> {
    let mut done = Done::default();
    let mut ended = false;
    while let Some(output) = outputs.message().await? {
        assert!(!ended, "output after the exit");
        match output.output.unwrap() {
            Output::Started(started) => assert!(started.pid > 0),
            Output::Stdout(data) => done.stdout.extend(data),
            Output::Stderr(data) => done.stderr.extend(data),
            Output::Exit(exit) => {
                done.exit = exit;
                ended = true;
            }
        }
    }
    assert!(ended, "no exit");
    Ok(done)
}

async fn run(channel: &Channel, start: RunStart) -> Result<Done, Status> {
    let (_inputs, outputs) = open(channel, start).await?;
    finish(outputs).await
}

/// Sleepers with a number nobody else uses, so that a test can see whether its own are still there.
fn is_sleeping(seconds: u32) -> bool {
    std::process::Command::new("pgrep")
        .args(["-xf", &format!("sleep {seconds}")])
        .output()
        .unwrap()
        .status
        .success()
}

#[tokio::test]
async fn streams_and_code_come_apart() {
    let agent = Agent::start(&[]);
    let done = run(&agent.connect().await, shell("echo out; echo err >&2; exit 7")).await.unwrap();
    assert_eq!(done.stdout, b"out\n");
    assert_eq!(done.stderr, b"err\n");
    assert_eq!((done.exit.code, done.exit.signal, done.exit.timed_out), (7, 0, false));
}

#[tokio::test]
async fn a_signal_is_told() {
    let agent = Agent::start(&[]);
    let done = run(&agent.connect().await, shell("kill -SEGV $$")).await.unwrap();
    assert_eq!((done.exit.code, done.exit.signal), (128 + 11, 11));
}

#[tokio::test]
async fn a_missing_command_answers_like_a_shell() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let command = |name: &str| RunStart { argv: vec![name.to_owned()], ..RunStart::default() };
    let missing = run(&channel, command("no-such-command")).await.unwrap();
    assert_eq!(missing.exit.code, 127);
    assert_eq!(missing.stderr, b"no-such-command: not found\n");
    for not_a_program in ["/etc/passwd", "/etc"] {
        assert_eq!(run(&channel, command(not_a_program)).await.unwrap().exit.code, 126, "{not_a_program}");
    }
    let long = RunStart { argv: vec!["true".to_owned(), "x".repeat(1 << 20)], ..RunStart::default() };
    assert_eq!(run(&channel, long).await.unwrap().exit.code, 126);
}

#[tokio::test]
async fn nonsense_is_refused_with_a_reason() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let refused = async |change: fn(&mut RunStart)| {
        let mut start = shell("true");
        change(&mut start);
        let error = run(&channel, start).await.unwrap_err();
        assert!(!error.message().is_empty());
        error.code()
    };
    assert_eq!(refused(|start| start.argv.clear()).await, Code::InvalidArgument);
    assert_eq!(refused(|start| start.argv[0].clear()).await, Code::InvalidArgument);
    assert_eq!(refused(|start| start.argv.push("\0".into())).await, Code::InvalidArgument);
    assert_eq!(refused(|start| drop(start.env.insert("A=B".into(), "".into()))).await, Code::InvalidArgument);
    assert_eq!(refused(|start| start.user = "nobody-at-all".into()).await, Code::NotFound);
    assert_eq!(refused(|start| start.cwd = "/no/such/place".into()).await, Code::NotFound);
    assert_eq!(refused(|start| start.cwd = "/etc/passwd".into()).await, Code::NotFound);
    let (inputs, outputs) = open(&channel, shell("sleep 60")).await.unwrap();
    inputs.send(input(Input::Signal(99))).await.unwrap();
    assert_eq!(finish(outputs).await.unwrap_err().code(), Code::InvalidArgument);
    let mut client = ProcessClient::new(channel);
    let first = client.run(tokio_stream::iter([input(Input::Stdin(Bytes::new()))])).await.unwrap_err();
    assert_eq!(first.code(), Code::InvalidArgument);
    let none = client.run(tokio_stream::iter([])).await.unwrap_err();
    assert_eq!(none.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn the_surroundings_are_those_of_a_login() {
    let agent = Agent::start(&["--display", ":77"]);
    let channel = agent.connect().await;
    let done =
        run(&channel, shell("pwd; echo $HOME; echo $USER $DISPLAY $FOO; ls /proc/self/fd | wc -l; umask"))
            .await;
    let done = done.unwrap();
    let lines: Vec<&str> = done.stdout().lines().collect();
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[2], format!("{} :77", agent.user));
    assert_eq!(lines[3], "4", "the streams and the directory being listed");
    let mut start = shell("pwd; echo $FOO $PATH; cat; ps -o pgid=,sid= $$; echo $$");
    start.cwd = "/usr/lib".to_owned();
    start.env = [("FOO".to_owned(), "bar".to_owned())].into();
    let done = run(&channel, start).await.unwrap();
    let lines: Vec<&str> = done.stdout().lines().collect();
    assert_eq!(lines[0], "/usr/lib");
    assert!(lines[1].starts_with("bar /") && lines[1].contains("/usr/bin"), "{}", lines[1]);
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), [lines[3], lines[3]], "a session of its own");
}

#[tokio::test]
async fn another_user_has_only_its_own_rights() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can run commands as another user");
        return;
    }
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let mut start = shell("id -un; id -Gn; cat /etc/shadow; echo $HOME");
    start.user = "daemon".to_owned();
    start.cwd = "/".to_owned();
    let done = run(&channel, start.clone()).await.unwrap();
    assert_eq!(done.stdout(), "daemon\ndaemon\n/usr/sbin");
    assert!(String::from_utf8_lossy(&done.stderr).contains("Permission denied"));
    start.cwd = "/root".to_owned();
    assert_eq!(run(&channel, start).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn input_reaches_the_command_and_ends() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let (inputs, outputs) =
        open(&channel, RunStart { stdin: true, ..shell("wc -c; echo done") }).await.unwrap();
    tokio::spawn(async move {
        for _ in 0..64 {
            inputs.send(input(Input::Stdin(vec![b'x'; 65_536].into()))).await.unwrap();
        }
        inputs.send(input(Input::CloseStdin(CloseStdin {}))).await.unwrap();
        inputs.closed().await;
    });
    assert_eq!(finish(outputs).await.unwrap().stdout(), format!("{}\ndone", 64 * 65_536));
}

#[tokio::test]
async fn the_end_of_the_inputs_is_the_end_of_stdin() {
    let agent = Agent::start(&[]);
    let start = RunStart { stdin: true, ..shell("cat") };
    let inputs = [input(Input::Start(start)), input(Input::Stdin("\0\u{ff}\n".into()))];
    let outputs = ProcessClient::new(agent.connect().await).run(tokio_stream::iter(inputs)).await.unwrap();
    assert_eq!(finish(outputs.into_inner()).await.unwrap().stdout, "\0\u{ff}\n".as_bytes());
}

#[tokio::test]
async fn a_command_need_not_read_its_input() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let (inputs, outputs) =
        open(&channel, RunStart { stdin: true, ..shell("exec <&-; sleep 0.3; echo fine") }).await.unwrap();
    let feed = tokio::spawn(async move {
        while inputs.send(input(Input::Stdin(vec![0; 65_536].into()))).await.is_ok() {}
    });
    assert_eq!(finish(outputs).await.unwrap().stdout(), "fine");
    feed.await.unwrap();
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let agent = Agent::start(&[]);
    let (inputs, mut outputs) =
        open(&agent.connect().await, shell("trap 'echo caught; exit 5' INT; echo ready; sleep 7131 & wait"))
            .await
            .unwrap();
    loop {
        if let Some(Output::Stdout(text)) = outputs.message().await.unwrap().unwrap().output {
            assert_eq!(text, "ready\n");
            break;
        }
    }
    inputs.send(input(Input::Signal(2))).await.unwrap();
    let done = finish(outputs).await.unwrap();
    assert_eq!((done.stdout(), done.exit.code), ("caught", 5));
    inputs.closed().await;
}

#[tokio::test]
async fn the_time_limit_ends_the_whole_group() {
    let agent = Agent::start(&[]);
    let start = RunStart { timeout_ms: 300, ..shell("echo began; (sleep 7132; true) & sleep 7132; true") };
    let began = Instant::now();
    let done = run(&agent.connect().await, start).await.unwrap();
    assert_eq!((done.exit.code, done.exit.timed_out), (124, true));
    assert_eq!(done.stdout, b"began\n");
    assert!((300..5000).contains(&done.exit.duration_ms), "{}", done.exit.duration_ms);
    assert!(began.elapsed() < Duration::from_secs(5));
    within("the grandchildren to be gone", || !is_sleeping(7132)).await;
}

#[tokio::test]
async fn what_runs_in_the_background_is_not_waited_for() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let done = run(&channel, shell("(while :; do echo noise; done) & echo $!; exit 3")).await.unwrap();
    assert_eq!(done.exit.code, 3);
    let noise = done.stdout().lines().find(|line| *line != "noise").unwrap().to_owned();
    let done =
        run(&channel, shell(&format!("kill -0 {noise} && echo there; sleep 7133 & echo $!"))).await.unwrap();
    // The noise ended with the pipe it wrote to; silent children live on.
    let sleeper = done.stdout().lines().last().unwrap().to_owned();
    assert!(is_sleeping(7133));
    run(&channel, shell(&format!("kill {sleeper}"))).await.unwrap();
}

#[tokio::test]
async fn a_dropped_call_ends_its_group() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let script = "trap '' HUP; sleep 7134 & (trap - HUP; exec sleep 7135) & wait; wait";
    let (inputs, mut outputs) = open(&channel, shell(script)).await.unwrap();
    outputs.message().await.unwrap();
    within("the sleepers", || is_sleeping(7134) && is_sleeping(7135)).await;
    let dropped = Instant::now();
    drop((inputs, outputs));
    within("the hang-up", || !is_sleeping(7135)).await;
    assert!(dropped.elapsed() < Duration::from_secs(3));
    assert!(is_sleeping(7134), "it ignores the hang-up");
    within("the kill", || !is_sleeping(7134)).await;
    assert!(dropped.elapsed() > Duration::from_secs(4));
}

/// More than a pipe or a terminal holds, so that somebody has to read it.
#[tokio::test]
async fn a_program_can_say_farewell_when_nobody_listens() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let directory = tempfile::tempdir().unwrap();
    for (name, start) in [("pipe", shell as fn(&str) -> RunStart), ("terminal", on_terminal)] {
        let file = directory.path().join(name);
        let farewell = format!(
            "trap 'seq 60000; echo saved >{}; exit' HUP; echo ready; sleep 7138 & wait",
            file.display()
        );
        let (inputs, mut outputs) = open(&channel, start(&farewell)).await.unwrap();
        while !matches!(outputs.message().await.unwrap().unwrap().output, Some(Output::Stdout(_))) {}
        drop((inputs, outputs));
        within("the last words", || std::fs::read(&file).is_ok_and(|text| text == b"saved\n")).await;
    }
}

#[tokio::test]
async fn a_broken_connection_ends_its_calls() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let (inputs, mut outputs) = open(&channel, shell("exec sleep 7136")).await.unwrap();
    outputs.message().await.unwrap();
    drop((inputs, outputs, channel));
    within("the hang-up", || !is_sleeping(7136)).await;
    assert_eq!(run(&agent.connect().await, shell("echo again")).await.unwrap().stdout(), "again");
}

#[tokio::test]
async fn the_end_of_the_agent_hangs_up_too() {
    let agent = Agent::start(&[]);
    let (_inputs, mut outputs) = open(&agent.connect().await, shell("exec sleep 7137")).await.unwrap();
    outputs.message().await.unwrap();
    within("the sleeper", || is_sleeping(7137)).await;
    drop(agent);
    within("the hang-up", || !is_sleeping(7137)).await;
}

#[tokio::test]
async fn much_output_is_complete_and_unchanged() {
    let agent = Agent::start(&[]);
    let done =
        run(&agent.connect().await, shell("head -c 50000000 /dev/zero | tr '\\0' '\\377'")).await.unwrap();
    assert_eq!(done.stdout.len(), 50_000_000);
    assert!(done.stdout.iter().all(|byte| *byte == 0xff));
}

#[tokio::test]
async fn an_unread_call_holds_its_command_back() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let (_inputs, outputs) = open(&channel, shell("head -c 50000000 /dev/zero; echo x >&2")).await.unwrap();
    // Somebody else's calls go on meanwhile.
    for _ in 0..20 {
        assert_eq!(run(&channel, shell("echo quick")).await.unwrap().stdout(), "quick");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(peak < 40_000, "the agent holds {peak} kB");
    assert_eq!(finish(outputs).await.unwrap().stdout.len(), 50_000_000);
}

#[tokio::test]
async fn a_hundred_at_once() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let began = Instant::now();
    let all =
        (0..100).map(|number| {
            let channel = channel.clone();
            async move {
                run(&channel, shell(&format!("sleep 1; echo {number}"))).await.unwrap().stdout().to_owned()
            }
        });
    let answers: Vec<String> = futures_util::stream::iter(all).buffered(100).collect().await;
    assert_eq!(answers, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

fn on_terminal(script: &str) -> RunStart {
    RunStart { terminal: Some(TerminalSize { rows: 30, columns: 100 }), ..shell(script) }
}

#[tokio::test]
async fn a_terminal_has_its_size_its_name_and_its_end() {
    let agent = Agent::start(&[]);
    let script = "tty | grep -q ^/dev/pts/ && stty size; echo err >&2; : >/dev/tty; echo $TERM; exit 3";
    let done = run(&agent.connect().await, on_terminal(script)).await.unwrap();
    assert_eq!(done.stdout(), "30 100\r\nerr\r\nxterm-256color");
    assert_eq!((done.stderr.len(), done.exit.code), (0, 3));
}

#[tokio::test]
async fn a_terminal_can_be_resized_and_typed_into() {
    let agent = Agent::start(&[]);
    let script = "trap 'stty size; exit' WINCH; stty -echo; echo ready; while :; do read -r line; echo \"got $line\"; done";
    let (inputs, mut outputs) = open(&agent.connect().await, on_terminal(script)).await.unwrap();
    let mut shown = String::new();
    let mut until = async |what: &str| {
        while !shown.contains(what) {
            if let Some(Output::Stdout(data)) = outputs.message().await.unwrap().unwrap().output {
                shown += std::str::from_utf8(&data).unwrap();
            }
        }
    };
    until("ready").await;
    inputs.send(input(Input::Stdin("one\n".into()))).await.unwrap();
    until("got one").await;
    inputs.send(input(Input::Resize(TerminalSize { rows: 41, columns: 7 }))).await.unwrap();
    inputs.send(input(Input::Stdin("two\n".into()))).await.unwrap();
    until("41 7").await;
}

#[tokio::test]
async fn control_c_and_the_end_of_input_mean_what_they_do_on_a_terminal() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    let (inputs, outputs) = open(&channel, on_terminal("exec cat")).await.unwrap();
    inputs.send(input(Input::CloseStdin(CloseStdin {}))).await.unwrap();
    assert_eq!(finish(outputs).await.unwrap().exit.code, 0);
    let (inputs, outputs) =
        open(&channel, on_terminal("trap 'exit 9' INT; echo on; sleep 4177")).await.unwrap();
    within("the sleeper", || is_sleeping(4177)).await;
    inputs.send(input(Input::Stdin("\u{3}".into()))).await.unwrap();
    assert_eq!(finish(outputs).await.unwrap().exit.code, 9);
}

#[tokio::test]
async fn a_child_that_keeps_the_terminal_does_not_keep_the_call() {
    let agent = Agent::start(&[]);
    let script = "trap '' HUP; (trap '' HUP; exec sleep 4178) & echo last";
    let done = run(&agent.connect().await, on_terminal(script)).await.unwrap();
    assert_eq!(done.stdout(), "last");
    assert!(is_sleeping(4178));
    std::process::Command::new("pkill").args(["-xf", "sleep 4178"]).status().unwrap();
}

#[tokio::test]
async fn no_terminal_has_an_impossible_size() {
    let agent = Agent::start(&[]);
    let channel = agent.connect().await;
    for (rows, columns) in [(0, 80), (24, 0), (1001, 80), (24, 1 << 20)] {
        let start = RunStart { terminal: Some(TerminalSize { rows, columns }), ..shell("true") };
        assert_eq!(run(&channel, start).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let (inputs, outputs) = open(&channel, shell("sleep 60")).await.unwrap();
    inputs.send(input(Input::Resize(TerminalSize { rows: 24, columns: 80 }))).await.unwrap();
    assert_eq!(finish(outputs).await.unwrap_err().code(), Code::InvalidArgument, "pipes have no size");
}
