//! Calls an agent by hand, over any unix socket that leads to one: `roost-guest --unix`, or the channel
//! of a virtual machine.
//!
//! ```text
//! cargo run -p roost-guest --example call -- SOCKET health | wait | usage | identity | environment | poweroff
//!     | run COMMAND... | root COMMAND...          (standard input is passed on)
//!     | capture FILE.ppm | type TEXT | key KEYSYM... | click X Y | bench
//! ```

#![expect(clippy::unwrap_used, reason = "a developer's tool: a panic is its error message")]

use std::{
    io::{Read, Write},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use hyper_util::rt::TokioIo;
use roost_guest_proto::v1::{
    Button, CaptureRequest, CloseStdin, CursorRequest, HealthRequest, InputAction, InputRequest, KeyChord,
    Point, PowerOffRequest, RunInput, RunStart, SetEnvironmentRequest, SetIdentityRequest, UsageRequest,
    WaitDesktopRequest, desktop_client::DesktopClient, input_action::Action, process_client::ProcessClient,
    run_input::Input, run_output::Output, system_client::SystemClient,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, command, rest @ ..] = &arguments[..] else {
        eprintln!("usage: call SOCKET COMMAND ... (see the top of the source)");
        std::process::exit(2);
    };
    let path = PathBuf::from(socket);
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://guest")
        .initial_connection_window_size(4 << 20)
        .initial_stream_window_size(1 << 20)
        .connect_with_connector(connector)
        .await
        .unwrap();
    let mut system = SystemClient::new(channel.clone());
    let mut desktop = DesktopClient::new(channel.clone());
    match (command.as_str(), rest) {
        ("health", []) => println!("{:?}", system.health(HealthRequest {}).await.unwrap().into_inner()),
        ("wait", []) => drop(system.wait_desktop(WaitDesktopRequest {}).await.unwrap()),
        ("usage", []) => println!("{:?}", system.usage(UsageRequest {}).await.unwrap().into_inner()),
        ("poweroff", []) => drop(system.power_off(PowerOffRequest {}).await.unwrap()),
        ("identity", []) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let request = SetIdentityRequest {
                hostname: "fox".to_owned(),
                machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
                wall_clock_ns: i64::try_from(now.as_nanos()).unwrap(),
                entropy: b"not really".repeat(7).into(),
            };
            system.set_identity(request).await.unwrap();
        }
        ("environment", pairs) => {
            let pairs = pairs.iter().map(|pair| pair.split_once('=').unwrap());
            let env = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            system.set_environment(SetEnvironmentRequest { version: 1, env }).await.unwrap();
        }
        ("run", argv) => std::process::exit(run(&channel, "", argv).await),
        ("root", argv) => std::process::exit(run(&channel, "root", argv).await),
        ("capture", [file]) => {
            let (width, height, rgb) = capture(&mut desktop).await;
            let mut file = std::fs::File::create(file).unwrap();
            writeln!(file, "P6 {width} {height} 255").unwrap();
            file.write_all(&rgb).unwrap();
        }
        ("type", [text]) => input(&mut desktop, [Action::TypeText(text.clone())]).await,
        ("key", keysyms) => input(&mut desktop, [Action::Key(KeyChord { keysyms: keysyms.to_vec() })]).await,
        ("click", [x, y]) => {
            input(&mut desktop, click(x.parse().unwrap(), y.parse().unwrap())).await;
        }
        ("bench", []) => bench(&channel).await,
        _ => panic!("unknown command or wrong arguments"),
    }
    println!("{:?}", desktop.cursor(CursorRequest {}).await.map(tonic::Response::into_inner).ok());
}

fn click(x: i32, y: i32) -> [Action; 3] {
    let button = Button::Left.into();
    [Action::Move(Point { x, y }), Action::Press(button), Action::Release(button)]
}

async fn input(desktop: &mut DesktopClient<Channel>, actions: impl IntoIterator<Item = Action>) {
    let actions = actions.into_iter().map(|action| InputAction { action: Some(action) }).collect();
    desktop.input(InputRequest { actions }).await.unwrap();
}

async fn capture(desktop: &mut DesktopClient<Channel>) -> (u32, u32, Vec<u8>) {
    let mut pieces =
        desktop.capture(CaptureRequest { region: None, cursor: false }).await.unwrap().into_inner();
    let first = pieces.message().await.unwrap().unwrap();
    let mut rgb = first.rgb.to_vec();
    while let Some(piece) = pieces.message().await.unwrap() {
        rgb.extend(piece.rgb);
    }
    (first.width, first.height, rgb)
}

async fn run(channel: &Channel, user: &str, argv: &[String]) -> i32 {
    let start = RunStart { argv: argv.to_vec(), user: user.to_owned(), stdin: true, ..RunStart::default() };
    let (sender, inputs) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        let send = |input| sender.blocking_send(RunInput { input: Some(input) }).is_ok();
        let mut buffer = vec![0; 256 * 1024];
        let mut stdin = std::io::stdin().lock();
        if !send(Input::Start(start)) {
            return;
        }
        loop {
            let count = stdin.read(&mut buffer).unwrap();
            let input = match count {
                0 => Input::CloseStdin(CloseStdin {}),
                count => Input::Stdin(buffer[..count].to_vec().into()),
            };
            if !send(input) || count == 0 {
                break;
            }
        }
        // The end of the inputs is no news after the end of stdin: leave them open.
        std::mem::forget(sender);
    });
    let inputs = tokio_stream::wrappers::ReceiverStream::new(inputs);
    let mut outputs = ProcessClient::new(channel.clone()).run(inputs).await.unwrap().into_inner();
    while let Some(output) = outputs.message().await.unwrap() {
        match output.output.unwrap() {
            Output::Started(_) => {}
            Output::Stdout(data) => std::io::stdout().write_all(&data).unwrap(),
            Output::Stderr(data) => std::io::stderr().write_all(&data).unwrap(),
            Output::Exit(exit) => return exit.code,
        }
    }
    panic!("no exit");
}

async fn bench(channel: &Channel) {
    let mut system = SystemClient::new(channel.clone());
    let mut desktop = DesktopClient::new(channel.clone());
    let mut times = Vec::new();
    let report = |name: &str, times: &mut Vec<Duration>| {
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 100];
        println!("{name:20} p50 {:?} p95 {:?} ({} times)", at(50), at(95), times.len());
        times.clear();
    };
    for _ in 0..200 {
        let began = Instant::now();
        system.health(HealthRequest {}).await.unwrap();
        times.push(began.elapsed());
    }
    report("health", &mut times);
    for _ in 0..100 {
        let began = Instant::now();
        desktop.cursor(CursorRequest {}).await.unwrap();
        times.push(began.elapsed());
    }
    report("cursor", &mut times);
    for _ in 0..30 {
        let began = Instant::now();
        assert_eq!(run_quietly(channel, &["true"]).await.len(), 0);
        times.push(began.elapsed());
    }
    report("run true", &mut times);
    for _ in 0..30 {
        let began = Instant::now();
        capture(&mut desktop).await;
        times.push(began.elapsed());
    }
    report("capture", &mut times);
    for _ in 0..50 {
        let began = Instant::now();
        input(&mut desktop, click(600, 500)).await;
        times.push(began.elapsed());
    }
    report("click", &mut times);
    let began = Instant::now();
    let read = run_quietly(channel, &["head", "-c", "67108864", "/dev/zero"]).await.len();
    println!("64 MiB of output: {:?} ({read} bytes)", began.elapsed());
    for argv in [&["scrot", "-o", "/tmp/x.png"][..], &["xdotool", "click", "1"]] {
        if run_quietly(channel, &["which", argv[0]]).await.is_empty() {
            continue;
        }
        for _ in 0..5 {
            let began = Instant::now();
            run_quietly(channel, argv).await;
            times.push(began.elapsed());
        }
        report(argv[0], &mut times);
    }
}

async fn run_quietly(channel: &Channel, argv: &[&str]) -> Vec<u8> {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let start = RunInput { input: Some(Input::Start(RunStart { argv, ..RunStart::default() })) };
    let mut outputs =
        ProcessClient::new(channel.clone()).run(tokio_stream::iter([start])).await.unwrap().into_inner();
    let mut stdout = Vec::new();
    while let Some(output) = outputs.message().await.unwrap() {
        if let Some(Output::Stdout(data)) = output.output {
            stdout.extend(data);
        }
    }
    stdout
}
