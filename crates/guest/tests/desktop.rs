//! The desktop, on a real X server of this host.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "each test program uses its part of the support")]
mod support;

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use roost_guest_proto::v1::{
    Button, CaptureRequest, ChangeWindowRequest, CursorRequest, HealthRequest, InputAction, InputRequest,
    KeyChord, Point, ReadClipboardRequest, Region, ScreenEvent, ScreenRequest, Scroll, SetScreenSizeRequest,
    TypeSlowly, UserIdle, WaitDesktopRequest, WatchDesktopRequest, WatchScreenReply, WatchScreenRequest,
    WindowChange, WindowEvent, WindowState, WindowsRequest, WriteClipboardRequest,
    change_window_request::Change, desktop_client::DesktopClient, desktop_event::Event as Told,
    events_client::EventsClient, input_action::Action, system_client::SystemClient,
};
use tempfile::TempDir;
use tonic::{Code, Status, Streaming, transport::Channel};
use x11rb::{
    connection::Connection,
    protocol::{
        Event,
        xkb::{self, ConnectionExt as _},
        xproto::{AtomEnum, ConnectionExt as _, CreateWindowAux, EventMask, ModMask, PropMode, WindowClass},
    },
    rust_connection::RustConnection,
    wrapper::ConnectionExt as _,
};

use support::{Agent, within};

const COOKIE: [u8; 16] = *b"0123456789abcdef";

/// An X server that only this test knows the cookie of.
#[derive(Debug)]
struct Server {
    process: Child,
    directory: TempDir,
    display: String,
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = directory.path().join("authority");
        let mut entry = vec![0xff, 0xff]; // any host
        for field in [b"".as_slice(), b"", b"MIT-MAGIC-COOKIE-1", &COOKIE] {
            entry.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
            entry.extend(field);
        }
        std::fs::write(&authority, entry).unwrap();
        let mut process = Command::new("Xvnc")
            .args(["-displayfd", "1", "-geometry", "640x400", "-depth", "24", "-rfbport", "-1"])
            .args(["-SecurityTypes", "None", "-auth"])
            .arg(&authority)
            .arg("-rfbunixpath")
            .arg(directory.path().join("rfb.sock"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut number = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut number).unwrap();
        Self { process, directory, display: format!(":{}", number.trim()) }
    }

    fn authority(&self) -> PathBuf {
        self.directory.path().join("authority")
    }

    fn screen_file(&self) -> PathBuf {
        self.directory.path().join("screen")
    }

    fn agent(&self) -> Agent {
        let (authority, screen) = (self.authority(), self.screen_file());
        let paths = [authority.to_str().unwrap(), screen.to_str().unwrap()];
        Agent::start(&["--display", &self.display, "--xauthority", paths[0], "--screen-file", paths[1]])
    }

    fn connect(&self) -> (RustConnection, u32) {
        let path = format!("/tmp/.X11-unix/X{}", &self.display[1..]);
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        let stream = x11rb::rust_connection::DefaultStream::from_unix_stream(stream).unwrap().0;
        let connection = RustConnection::connect_to_stream_with_auth_info(
            stream,
            0,
            b"MIT-MAGIC-COOKIE-1".to_vec(),
            COOKIE.to_vec(),
        )
        .unwrap();
        let root = connection.setup().roots[0].root;
        (connection, root)
    }

    /// A terminal whose program writes down every byte it is given.
    async fn terminal(&self) -> Terminal {
        let process = Command::new("xterm")
            .args(["-u8", "-e", "sh", "-c", "stty raw -echo; : > typed; exec cat >> typed"])
            .current_dir(self.directory.path())
            .env("DISPLAY", &self.display)
            .env("XAUTHORITY", self.authority())
            .env("LC_ALL", "C.UTF-8")
            .spawn()
            .unwrap();
        let terminal = Terminal { process, typed: self.directory.path().join("typed") };
        within("the terminal", || terminal.typed.exists()).await;
        // Without a window manager the keyboard follows the pointer.
        let (connection, root) = self.connect();
        connection.warp_pointer(x11rb::NONE, root, 0, 0, 0, 0, 50, 50).unwrap();
        connection.sync().unwrap();
        terminal
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[derive(Debug)]
struct Terminal {
    process: Child,
    typed: PathBuf,
}

impl Terminal {
    /// What was typed since the last time, which must be `expected`.
    async fn expect(&self, expected: &str) {
        let mut typed = String::new();
        for _ in 0..500 {
            typed = String::from_utf8_lossy(&std::fs::read(&self.typed).unwrap()).into_owned();
            if typed.len() >= expected.len() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(typed, expected);
        std::fs::write(&self.typed, "").unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// When the agent has found the X server.
async fn connect(agent: &Agent) -> Channel {
    let channel = agent.connect().await;
    let mut desktop = DesktopClient::new(channel.clone());
    let found = async { while desktop.screen(ScreenRequest {}).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(5), found).await.unwrap();
    channel
}

async fn input(channel: &Channel, actions: impl IntoIterator<Item = Action>) -> Result<(), Status> {
    let actions = actions.into_iter().map(|action| InputAction { action: Some(action) }).collect();
    DesktopClient::new(channel.clone()).input(InputRequest { actions }).await.map(|_| ())
}

fn text(text: &str) -> Action {
    Action::TypeText(text.to_owned())
}

fn chord(keysyms: &[&str]) -> Action {
    Action::Key(KeyChord { keysyms: keysyms.iter().map(|name| (*name).to_owned()).collect() })
}

async fn capture(channel: &Channel, region: Option<Region>) -> Result<(u32, u32, Vec<u8>), Status> {
    let mut pieces = DesktopClient::new(channel.clone())
        .capture(CaptureRequest { region, cursor: false })
        .await?
        .into_inner();
    let first = pieces.message().await?.unwrap();
    let mut rgb = first.rgb.to_vec();
    while let Some(piece) = pieces.message().await? {
        assert!(piece.rgb.len() <= 256 * 1024);
        rgb.extend(piece.rgb);
    }
    assert_eq!(rgb.len(), (first.width * first.height * 3) as usize);
    Ok((first.width, first.height, rgb))
}

fn paint(connection: &RustConnection, root: u32, color: u32) {
    let window = connection.generate_id().unwrap();
    let look = CreateWindowAux::new().background_pixel(color).override_redirect(1);
    connection
        .create_window(0, window, root, 100, 60, 50, 20, 0, WindowClass::INPUT_OUTPUT, 0, &look)
        .unwrap();
    connection.map_window(window).unwrap();
    connection.sync().unwrap();
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn the_picture_is_what_is_on_the_screen() {
    let server = Server::start();
    let (connection, root) = server.connect();
    let agent = server.agent();
    let channel = connect(&agent).await;
    paint(&connection, root, 0x12_34_56);
    let screen = DesktopClient::new(channel.clone()).screen(ScreenRequest {}).await.unwrap().into_inner();
    assert_eq!((screen.width, screen.height, screen.depth), (640, 400, 24));
    let (width, height, rgb) = capture(&channel, None).await.unwrap();
    assert_eq!((width, height), (640, 400));
    for y in 0..400 {
        for x in 0..640 {
            let at = (y * 640 + x) * 3;
            let inside = (100..150).contains(&x) && (60..80).contains(&y);
            assert_eq!(rgb[at..at + 3] == [0x12, 0x34, 0x56], inside, "{x},{y}");
        }
    }
    let region = |x, y, width, height| Some(Region { x, y, width, height });
    let (width, height, rgb) = capture(&channel, region(149, 79, 3, 1000)).await.unwrap();
    assert_eq!((width, height), (3, 321));
    assert_eq!(rgb[..3], [0x12, 0x34, 0x56]);
    assert_ne!(rgb[3..6], [0x12, 0x34, 0x56]);
    let outside = capture(&channel, region(640, 0, 1, 1)).await.unwrap_err();
    assert_eq!(outside.code(), Code::InvalidArgument);
    let began = Instant::now();
    let all = (0..20).map(|_| capture(&channel, None));
    futures_util::future::try_join_all(all).await.unwrap();
    eprintln!("20 captures of 640x400: {:?}", began.elapsed());
}

async fn watch(
    channel: &Channel,
    until: ScreenEvent,
    times: (u32, u32),
    region: Option<Region>,
) -> Streaming<WatchScreenReply> {
    let (quiet_ms, timeout_ms) = times;
    let request = WatchScreenRequest { until: until.into(), quiet_ms, timeout_ms, region };
    let mut replies = DesktopClient::new(channel.clone()).watch_screen(request).await.unwrap().into_inner();
    assert!(!replies.message().await.unwrap().unwrap().reached, "it has begun");
    replies
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn a_change_of_the_screen_is_waited_for() {
    let server = Server::start();
    let (connection, root) = server.connect();
    let agent = server.agent();
    let channel = connect(&agent).await;
    let reached = async |mut replies: Streaming<WatchScreenReply>| {
        let reached = replies.message().await.unwrap().unwrap().reached;
        assert!(replies.message().await.unwrap().is_none(), "it is the last word");
        reached
    };
    let place = |x, y| Some(Region { x, y, width: 30, height: 10 });
    let minute = (0, 60_000);
    let anywhere = watch(&channel, ScreenEvent::Changed, minute, None).await;
    let there = watch(&channel, ScreenEvent::Changed, minute, place(110, 70)).await;
    let elsewhere = watch(&channel, ScreenEvent::Changed, (0, 700), place(300, 70)).await;
    paint(&connection, root, 0x12_34_56);
    assert!(reached(anywhere).await);
    assert!(reached(there).await);
    assert!(!reached(elsewhere).await, "it is not there that something was drawn");

    // Whoever draws on and on is never settled; when it ends, the screen is.
    let restless = watch(&channel, ScreenEvent::Settled, (400, 900), None).await;
    let settled = watch(&channel, ScreenEvent::Settled, (400, 60_000), None).await;
    let ended = std::thread::spawn(move || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(1500) {
            paint(&connection, root, 0x65_43_21);
            std::thread::sleep(Duration::from_millis(20));
        }
        Instant::now()
    });
    assert!(!reached(restless).await);
    assert!(reached(settled).await);
    assert!(ended.join().unwrap().elapsed() >= Duration::from_millis(350), "it was said before it was so");

    // Who goes away leaves nothing behind.
    let open = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let before = open();
    let mut dropped = Vec::new();
    for _ in 0..20 {
        dropped.push(watch(&channel, ScreenEvent::Changed, minute, place(0, 0)).await);
    }
    assert!(open() >= before + 20, "each has a connection of its own");
    drop(dropped);
    within("the connections to be closed", || open() <= before).await;
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn the_pointer_moves_presses_and_scrolls() {
    let server = Server::start();
    let (connection, root) = server.connect();
    let agent = server.agent();
    let channel = connect(&agent).await;
    let window = connection.generate_id().unwrap();
    let mask = EventMask::BUTTON_PRESS | EventMask::BUTTON_RELEASE;
    let look = CreateWindowAux::new().event_mask(mask).override_redirect(1);
    connection
        .create_window(0, window, root, 0, 0, 640, 400, 0, WindowClass::INPUT_OUTPUT, 0, &look)
        .unwrap();
    connection.map_window(window).unwrap();
    connection.sync().unwrap();
    let actions = [
        Action::Move(Point { x: 30, y: 40 }),
        Action::Press(Button::Left.into()),
        Action::PauseMs(5),
        Action::Move(Point { x: 50, y: 60 }),
        Action::Release(Button::Left.into()),
        Action::Scroll(Scroll { dx: 1, dy: -2 }),
        Action::Press(Button::Right.into()),
        Action::Release(Button::Right.into()),
    ];
    input(&channel, actions).await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = connection.poll_for_event().unwrap() {
        match event {
            Event::ButtonPress(event) => seen.push((event.detail, true, event.event_x, event.event_y)),
            Event::ButtonRelease(event) => seen.push((event.detail, false, event.event_x, event.event_y)),
            _ => {}
        }
    }
    let click = |button| [(button, true, 50, 60), (button, false, 50, 60)];
    let drag = [(1, true, 30, 40), (1, false, 50, 60)];
    assert_eq!(seen, [drag, click(7), click(4), click(4), click(3)].concat());

    input(&channel, [Action::Move(Point { x: -5, y: 100_000 })]).await.unwrap();
    let cursor = DesktopClient::new(channel.clone()).cursor(CursorRequest {}).await.unwrap().into_inner();
    assert_eq!((cursor.x, cursor.y), (0, 399));

    // Dropped half-way: what is held is let go.
    let held = || connection.query_pointer(root).unwrap().reply().unwrap().mask;
    let long = input(&channel, [Action::Press(Button::Left.into()), Action::PauseMs(60_000)]);
    tokio::time::timeout(Duration::from_millis(300), long).await.unwrap_err();
    within("the release", || u16::from(held()) == 0).await;
    // And the next in line is not kept waiting; what it holds on purpose stays held.
    input(&channel, [Action::Press(Button::Left.into())]).await.unwrap();
    assert_eq!(held(), x11rb::protocol::xproto::KeyButMask::BUTTON1);
    input(&channel, [Action::Release(Button::Left.into())]).await.unwrap();
}

#[tokio::test]
#[ignore = "needs an X server and a terminal: tigervnc-standalone-server, xterm"]
async fn text_is_typed_exactly() {
    let server = Server::start();
    let terminal = server.terminal().await;
    let agent = server.agent();
    let channel = connect(&agent).await;
    let ascii: String = (' '..='~').collect();
    input(&channel, [text(&ascii)]).await.unwrap();
    terminal.expect(&ascii).await;
    input(&channel, [text("one\ntwo\r\n\tthree")]).await.unwrap();
    terminal.expect("one\rtwo\r\tthree").await;
    let other = "äöüß ÄÖÜ éèÉÈ ñçÇ €£¥ «» Жзк ΑΒγ 日本語 中文 한국 😀🚀 ‘’“”–… \u{a0}ẞ";
    input(&channel, [text(other)]).await.unwrap();
    terminal.expect(other).await;
    // More different characters than there are spare keys, several times over.
    let many: String = ('\u{4e00}'..'\u{4e60}').collect();
    input(&channel, [text(&many), text(other), text("plain")]).await.unwrap();
    terminal.expect(&format!("{many}{other}plain")).await;
    let long = "The quick brown Fox jumps over the lazy Dog; 0123456789!\"§$%&/()=? ".repeat(100);
    let began = Instant::now();
    input(&channel, [text(&long)]).await.unwrap();
    eprintln!("{} characters typed in {:?}", long.len(), began.elapsed());
    terminal.expect(&long).await;
    let slowly = TypeSlowly { text: "Slow é".to_owned(), delay_ms: 20 };
    input(&channel, [Action::TypeSlowly(slowly)]).await.unwrap();
    terminal.expect("Slow é").await;
    // Two at once do not mix.
    let (a, b) = ("a".repeat(500), "b".repeat(500));
    let (first, second) = tokio::join!(input(&channel, [text(&a)]), input(&channel, [text(&b)]));
    first.and(second).unwrap();
    within("both", || std::fs::metadata(&terminal.typed).unwrap().len() == 1000).await;
    let typed = std::fs::read_to_string(&terminal.typed).unwrap();
    assert!(typed == format!("{a}{b}") || typed == format!("{b}{a}"), "{typed}");
}

#[tokio::test]
#[ignore = "needs an X server and a terminal: tigervnc-standalone-server, xterm"]
async fn locks_do_not_change_what_is_typed() {
    let server = Server::start();
    let terminal = server.terminal().await;
    let agent = server.agent();
    let channel = connect(&agent).await;
    let (connection, _) = server.connect();
    connection.xkb_use_extension(1, 0).unwrap().reply().unwrap();
    let caps_is_locked = || {
        let state = connection.xkb_get_state(xkb::ID::USE_CORE_KBD.into()).unwrap().reply().unwrap();
        state.locked_mods.contains(ModMask::LOCK)
    };
    input(&channel, [chord(&["Caps_Lock"])]).await.unwrap();
    assert!(caps_is_locked());
    input(&channel, [text("Abc 1! éÉ я"), chord(&["a"]), chord(&["B"])]).await.unwrap();
    terminal.expect("Abc 1! éÉ яaB").await;
    assert!(caps_is_locked(), "as it was before");
    input(&channel, [chord(&["Caps_Lock"]), text("xY")]).await.unwrap();
    terminal.expect("xY").await;
    assert!(!caps_is_locked());
}

#[tokio::test]
#[ignore = "needs an X server and a terminal: tigervnc-standalone-server, xterm"]
async fn chords_are_pressed_as_named() {
    let server = Server::start();
    let terminal = server.terminal().await;
    let agent = server.agent();
    let channel = connect(&agent).await;
    let chords = [
        chord(&["Control_L", "a"]),
        chord(&["a"]),
        chord(&["A"]),
        chord(&["Shift_L", "a"]),
        chord(&["/"]),
        chord(&["question"]),
        chord(&["é"]),
        chord(&["Return"]),
        chord(&["Escape"]),
        chord(&["Up"]),
        chord(&["BackSpace"]),
        chord(&["Delete"]),
        chord(&["KP_Enter"]),
    ];
    input(&channel, chords).await.unwrap();
    terminal.expect("\u{1}aAA/?é\r\u{1b}\u{1b}[A\u{7f}\u{1b}[3~\r").await;
    let wrong = input(&channel, [text("never"), chord(&["Control_L", "NoSuchKey"])]).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().contains("NoSuchKey"));
    input(&channel, [text("after")]).await.unwrap();
    terminal.expect("after").await;
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn the_agent_finds_the_desktop_whenever_it_comes() {
    let first = Server::start();
    let agent = first.agent();
    let channel = connect(&agent).await;
    let mut system = SystemClient::new(channel.clone());
    capture(&channel, None).await.unwrap();
    let wait = tokio::spawn({
        let mut system = system.clone();
        async move { system.wait_desktop(WaitDesktopRequest {}).await.map(|_| ()) }
    });
    let (connection, root) = first.connect();
    let atom = |name: &str| connection.intern_atom(false, name.as_bytes()).unwrap().reply().unwrap().atom;
    let mut clients = Vec::new();
    for kind in ["_NET_WM_WINDOW_TYPE_DESKTOP", "_NET_WM_WINDOW_TYPE_DOCK"] {
        assert!(!wait.is_finished());
        assert!(!system.health(HealthRequest {}).await.unwrap().into_inner().desktop_ready);
        let window = connection.generate_id().unwrap();
        connection
            .create_window(
                0,
                window,
                root,
                0,
                0,
                9,
                9,
                0,
                WindowClass::INPUT_OUTPUT,
                0,
                &CreateWindowAux::new(),
            )
            .unwrap();
        let property = |window, name: &str, kind: AtomEnum, values: &[u32]| {
            connection.change_property32(PropMode::REPLACE, window, atom(name), kind, values).unwrap();
        };
        property(window, "_NET_WM_WINDOW_TYPE", AtomEnum::ATOM, &[atom(kind)]);
        clients.push(window);
        // Listed before it is mapped, as window managers may do.
        property(root, "_NET_CLIENT_LIST", AtomEnum::WINDOW, &clients);
        connection.sync().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        connection.map_window(window).unwrap();
        connection.sync().unwrap();
    }
    tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap().unwrap().unwrap();
    assert!(system.health(HealthRequest {}).await.unwrap().into_inner().desktop_ready);
    drop(first);
    let gone = capture(&channel, None).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable);
    let noticed = async {
        while system.health(HealthRequest {}).await.unwrap().into_inner().desktop_ready {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), noticed).await.unwrap();
}

async fn clipboard(channel: &Channel) -> Result<String, Status> {
    let answer = DesktopClient::new(channel.clone()).read_clipboard(ReadClipboardRequest {}).await?;
    Ok(answer.into_inner().text)
}

async fn set_clipboard(channel: &Channel, text: &str) -> Result<(), Status> {
    let request = WriteClipboardRequest { text: text.to_owned() };
    DesktopClient::new(channel.clone()).write_clipboard(request).await.map(|_| ())
}

/// A program that owns the clipboard and answers in pieces, as toolkits do with what is long.
fn own_in_pieces(server: &Server, pieces: Vec<Vec<u8>>) -> std::thread::JoinHandle<()> {
    let (connection, root) = server.connect();
    let window = connection.generate_id().unwrap();
    let look = CreateWindowAux::new();
    connection.create_window(0, window, root, 0, 0, 1, 1, 0, WindowClass::INPUT_ONLY, 0, &look).unwrap();
    let atom = |name: &str| connection.intern_atom(false, name.as_bytes()).unwrap().reply().unwrap().atom;
    let (clipboard, incremental, utf8) = (atom("CLIPBOARD"), atom("INCR"), atom("UTF8_STRING"));
    connection.set_selection_owner(window, clipboard, x11rb::CURRENT_TIME).unwrap();
    connection.sync().unwrap();
    std::thread::spawn(move || {
        let mut pieces = pieces.into_iter();
        let mut asked = None;
        loop {
            match connection.wait_for_event().unwrap() {
                Event::SelectionRequest(request) => {
                    let listen = x11rb::protocol::xproto::ChangeWindowAttributesAux::new()
                        .event_mask(EventMask::PROPERTY_CHANGE);
                    connection.change_window_attributes(request.requestor, &listen).unwrap();
                    connection
                        .change_property32(
                            PropMode::REPLACE,
                            request.requestor,
                            request.property,
                            incremental,
                            &[1],
                        )
                        .unwrap();
                    let notice = x11rb::protocol::xproto::SelectionNotifyEvent {
                        response_type: x11rb::protocol::xproto::SELECTION_NOTIFY_EVENT,
                        sequence: 0,
                        time: request.time,
                        requestor: request.requestor,
                        selection: request.selection,
                        target: request.target,
                        property: request.property,
                    };
                    connection.send_event(false, request.requestor, EventMask::NO_EVENT, notice).unwrap();
                    connection.flush().unwrap();
                    asked = Some((request.requestor, request.property));
                }
                Event::PropertyNotify(change)
                    if change.state == x11rb::protocol::xproto::Property::DELETE
                        && asked == Some((change.window, change.atom)) =>
                {
                    let piece = pieces.next().unwrap_or_default();
                    connection
                        .change_property8(PropMode::REPLACE, change.window, change.atom, utf8, &piece)
                        .unwrap();
                    connection.flush().unwrap();
                }
                Event::SelectionClear(_) => return,
                _ => {}
            }
        }
    })
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn the_clipboard_is_shared_with_programs() {
    let server = Server::start();
    let agent = server.agent();
    let channel = connect(&agent).await;
    assert_eq!(clipboard(&channel).await.unwrap(), "");
    for text in ["", "plain", "Žluťoučký kůň 日本語 😀\n\t", &"x".repeat(1024 * 1024)] {
        set_clipboard(&channel, text).await.unwrap();
        assert_eq!(clipboard(&channel).await.unwrap(), text);
    }
    let too_long = set_clipboard(&channel, &"x".repeat(1024 * 1024 + 1)).await.unwrap_err();
    assert_eq!(too_long.code(), Code::InvalidArgument);

    let pieces = vec![b"one ".to_vec(), vec![b'y'; 100_000], " zwölf".into()];
    let expected = String::from_utf8(pieces.concat()).unwrap();
    let program = own_in_pieces(&server, pieces);
    assert_eq!(clipboard(&channel).await.unwrap(), expected);
    set_clipboard(&channel, "taken back").await.unwrap();
    program.join().unwrap();
    assert_eq!(clipboard(&channel).await.unwrap(), "taken back");

    // Many at once: each gets a whole text, and one of them is the last.
    let texts: Vec<String> = (0..10).map(|number| number.to_string().repeat(1000)).collect();
    let writes = texts.iter().map(|text| set_clipboard(&channel, text));
    for result in futures_util::future::join_all(writes).await {
        if let Err(status) = result {
            assert_eq!(status.code(), Code::Aborted, "{status}");
        }
    }
    assert!(texts.contains(&clipboard(&channel).await.unwrap()));
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn keys_stay_down_until_they_are_let_go() {
    let server = Server::start();
    let agent = server.agent();
    let channel = connect(&agent).await;
    let (connection, _) = server.connect();
    let down = || {
        let keys = connection.query_keymap().unwrap().reply().unwrap().keys;
        keys.iter().map(|byte| byte.count_ones()).sum::<u32>()
    };
    let keys = |names: &[&str]| KeyChord { keysyms: names.iter().map(|name| (*name).to_owned()).collect() };
    assert_eq!(down(), 0);
    input(&channel, [Action::HoldKeys(keys(&["Control_L", "a"]))]).await.unwrap();
    assert_eq!(down(), 2);
    input(&channel, [Action::Key(keys(&["b"]))]).await.unwrap();
    assert_eq!(down(), 2);
    input(&channel, [Action::ReleaseKeys(keys(&["a"]))]).await.unwrap();
    assert_eq!(down(), 1);
    input(&channel, [Action::ReleaseKeys(keys(&["Control_L", "a"]))]).await.unwrap();
    assert_eq!(down(), 0);
    // A capital letter is two keys.
    input(&channel, [Action::HoldKeys(keys(&["A"]))]).await.unwrap();
    assert_eq!(down(), 2);
    input(&channel, [Action::ReleaseKeys(keys(&["A"]))]).await.unwrap();
    assert_eq!(down(), 0);
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn without_a_window_manager_there_are_no_windows() {
    let server = Server::start();
    let agent = server.agent();
    let channel = connect(&agent).await;
    let mut client = DesktopClient::new(channel);
    assert_eq!(client.windows(WindowsRequest {}).await.unwrap().into_inner().windows, []);
    let close = ChangeWindowRequest { id: 1, change: Some(Change::State(WindowState::Closed.into())) };
    assert_eq!(client.change_window(close).await.unwrap_err().code(), Code::NotFound);
    let screen = client.screen(ScreenRequest {}).await.unwrap().into_inner();
    assert_eq!((screen.display, screen.window_manager), (server.display.clone(), String::new()));
}

/// What a window manager would say there is, and which of it has the keyboard.
fn say_there_are(connection: &RustConnection, root: u32, windows: &[u32], active: u32) {
    let atom = |name: &str| connection.intern_atom(false, name.as_bytes()).unwrap().reply().unwrap().atom;
    for (name, values) in [("_NET_CLIENT_LIST", windows), ("_NET_ACTIVE_WINDOW", &[active])] {
        connection.change_property32(PropMode::REPLACE, root, atom(name), AtomEnum::WINDOW, values).unwrap();
    }
    connection.sync().unwrap();
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn what_happens_on_the_desktop_is_told() {
    let server = Server::start();
    let agent = server.agent();
    let channel = connect(&agent).await;
    let (connection, root) = server.connect();
    let window = |title: &str, pid: u32| {
        let window = connection.generate_id().unwrap();
        let (class, look) = (WindowClass::INPUT_OUTPUT, CreateWindowAux::new());
        connection.create_window(0, window, root, 0, 0, 50, 50, 0, class, 0, &look).unwrap();
        let (name, kind) = (AtomEnum::WM_NAME, AtomEnum::STRING);
        connection.change_property8(PropMode::REPLACE, window, name, kind, title.as_bytes()).unwrap();
        let atom = connection.intern_atom(false, b"_NET_WM_PID").unwrap().reply().unwrap().atom;
        connection.change_property32(PropMode::REPLACE, window, atom, AtomEnum::CARDINAL, &[pid]).unwrap();
        window
    };
    let (first, second) = (window("first", 7), window("second", 8));
    say_there_are(&connection, root, &[first], first);
    input(&channel, [Action::Move(Point { x: 1, y: 1 })]).await.unwrap();

    let request = WatchDesktopRequest { windows: true, clipboard: true, idle_ms: 1500 };
    let mut client = EventsClient::new(channel.clone());
    let mut events = client.watch_desktop(request).await.unwrap().into_inner();
    let mut next = async || {
        let event = tokio::time::timeout(Duration::from_secs(20), events.message()).await;
        event.expect("nothing is told").unwrap().expect("the stream ended").event
    };
    assert_eq!(next().await, None, "it has begun");
    let told = |change: WindowChange, id: u32, pid: u32, title: &str| {
        let title = title.to_owned();
        Some(Told::Window(WindowEvent { change: change.into(), id, pid, title }))
    };
    say_there_are(&connection, root, &[first, second], second);
    assert_eq!(next().await, told(WindowChange::Opened, second, 8, "second"));
    assert_eq!(next().await, told(WindowChange::Focused, second, 8, "second"));
    say_there_are(&connection, root, &[first, second], first);
    assert_eq!(next().await, told(WindowChange::Focused, first, 7, "first"));
    say_there_are(&connection, root, &[first], first);
    assert_eq!(next().await, told(WindowChange::Closed, second, 8, "second"));
    set_clipboard(&channel, "žluť").await.unwrap();
    assert_eq!(next().await, Some(Told::ClipboardBytes(6)));
    // Nobody is there any more, and then somebody is, again and again.
    for _ in 0..2 {
        let Some(Told::Idle(UserIdle { idle: true, ms })) = next().await else { panic!("not idle") };
        assert!((1500..15_000).contains(&ms), "{ms}");
        input(&channel, [Action::Move(Point { x: 9, y: 9 }), Action::Move(Point { x: 8, y: 8 })])
            .await
            .unwrap();
        let Some(Told::Idle(UserIdle { idle: false, ms })) = next().await else { panic!("still idle") };
        assert!(ms >= 1500, "{ms}");
    }

    // Whoever comes when nobody has been there for long hears of it at once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let request = WatchDesktopRequest { windows: false, clipboard: false, idle_ms: 100 };
    let mut late = client.watch_desktop(request).await.unwrap().into_inner();
    assert_eq!(late.message().await.unwrap().unwrap().event, None);
    let event = late.message().await.unwrap().unwrap().event;
    assert!(matches!(event, Some(Told::Idle(UserIdle { idle: true, ms: 100.. }))), "{event:?}");

    // Some hundred would take all connections of the X server, and nobody would see a desktop any more.
    let open = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let before = open();
    let mut many = Vec::new();
    let refused = loop {
        match client.watch_desktop(request).await {
            Ok(stream) => many.push(stream),
            Err(status) => break status,
        }
        assert!(many.len() < 100, "nobody is refused");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    drop(many);
    within("the connections to be closed", || open() <= before).await;
}

#[tokio::test]
#[ignore = "needs an X server: tigervnc-standalone-server"]
async fn the_screen_has_the_size_that_was_asked_for() {
    let server = Server::start();
    let agent = server.agent();
    let channel = connect(&agent).await;
    let resize = async |width, height| {
        let request = SetScreenSizeRequest { width, height };
        DesktopClient::new(channel.clone()).set_screen_size(request).await
    };
    let kept = || std::fs::read_to_string(server.screen_file()).unwrap();
    // Larger, smaller, neither, of no usual shape, the same again.
    for (width, height) in [(1920, 1080), (800, 600), (600, 800), (1111, 777), (1111, 777), (640, 400)] {
        resize(width, height).await.unwrap();
        let (seen_width, seen_height, rgb) = capture(&channel, None).await.unwrap();
        assert_eq!((seen_width, seen_height), (width, height));
        assert_eq!(rgb.len(), (width * height * 3) as usize);
        assert_eq!(kept(), format!("ROOST_SCREEN={width}x{height}\n"));
    }
    for (width, height) in [(0, 400), (640, 0), (100_000, 400), (u32::MAX, u32::MAX)] {
        let refused = resize(width, height).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    assert_eq!(kept(), "ROOST_SCREEN=640x400\n");
    let all = (0..8).map(|number| resize(700 + number * 50, 500));
    futures_util::future::try_join_all(all).await.unwrap();
    let (width, height, _) = capture(&channel, None).await.unwrap();
    assert_eq!(kept(), format!("ROOST_SCREEN={width}x{height}\n"), "what is kept is what is shown");
}
