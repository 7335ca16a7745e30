//! Terminal sessions, as a host sees them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "each test program uses its part of the support")]
mod support;

use roost_guest_proto::v1::{
    AttachInput, AttachOutput, AttachStart, CloseSessionRequest, ListSessionsRequest, OpenSessionRequest,
    ResizeSessionRequest, RunExit, SessionInfo, TerminalSize, attach_input::Input, attach_output::Output,
    terminal_client::TerminalClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use support::Agent;

type Client = TerminalClient<Channel>;

const SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

fn program(script: &str) -> OpenSessionRequest {
    let argv = ["bash", "-c", script].map(str::to_owned).to_vec();
    OpenSessionRequest { argv, size: Some(SIZE), ..OpenSessionRequest::default() }
}

async fn open(client: &Client, request: OpenSessionRequest) -> SessionInfo {
    client.clone().open_session(request).await.unwrap().into_inner()
}

async fn count(client: &Client) -> usize {
    client.clone().list_sessions(ListSessionsRequest {}).await.unwrap().into_inner().sessions.len()
}

/// A terminal that is shown what a session sends.
struct Viewer {
    inputs: mpsc::Sender<AttachInput>,
    outputs: Streaming<AttachOutput>,
    screen: vt100::Parser,
}

impl Viewer {
    async fn attach(client: &Client, id: &str) -> Self {
        let (inputs, input) = mpsc::channel(4);
        let attach = AttachStart { id: id.to_owned(), size: None };
        inputs.send(AttachInput { input: Some(Input::Attach(attach)) }).await.unwrap();
        let mut outputs = client.clone().attach(ReceiverStream::new(input)).await.unwrap().into_inner();
        let first = outputs.message().await.unwrap().unwrap().output.unwrap();
        let Output::Attached(info) = first else { panic!("{first:?}") };
        assert_eq!(info.id, id);
        let (rows, columns) = info.size.map(|size| (size.rows, size.columns)).unwrap();
        let cells = |count: u32| u16::try_from(count).unwrap().try_into().unwrap();
        Self { inputs, outputs, screen: vt100::Parser::new(cells(rows), cells(columns), 5000) }
    }

    async fn send(&self, input: Input) {
        self.inputs.send(AttachInput { input: Some(input) }).await.unwrap();
    }

    async fn press(&self, keys: &str) {
        self.send(Input::Data(keys.to_owned().into())).await;
    }

    async fn next(&mut self) -> Output {
        let output = self.outputs.message().await.unwrap().unwrap().output.unwrap();
        if let Output::Data(data) = &output {
            self.screen.process(data);
        }
        output
    }

    fn text(&self) -> String {
        self.screen.screen().contents()
    }

    async fn until(&mut self, what: &str) {
        while !self.text().contains(what) {
            self.next().await;
        }
    }

    async fn exit(&mut self) -> RunExit {
        loop {
            if let Output::Exit(exit) = self.next().await {
                assert!(self.outputs.message().await.unwrap().is_none(), "something after the exit");
                return exit;
            }
        }
    }
}

#[tokio::test]
async fn a_session_outlives_its_viewers_and_looks_the_same_to_the_next() {
    let agent = Agent::start(&[]);
    let client = TerminalClient::new(agent.connect().await);
    let script =
        "stty -echo; for i in $(seq 60); do echo line $i; done; read -r x; echo \"read $x\"; sleep 600";
    let session = open(&client, program(script)).await;
    let mut first = Viewer::attach(&client, &session.id).await;
    first.until("line 60").await;
    first.press("hello\n").await;
    first.until("read hello").await;
    let seen = first.text();
    drop(first);
    // Another connection, as after a restart of whoever had the last.
    let client = TerminalClient::new(agent.connect().await);
    let mut second = Viewer::attach(&client, &session.id).await;
    second.until("read hello").await;
    assert_eq!(second.text(), seen);
    second.screen.screen_mut().set_scrollback(1000);
    assert!(second.text().starts_with("line 1\n"), "{}", second.text());
    assert_eq!(count(&client).await, 1);
}

#[tokio::test]
async fn all_viewers_see_and_type_the_same() {
    let agent = Agent::start(&[]);
    let client = TerminalClient::new(agent.connect().await);
    let script = "stty -echo; while read -r x; do echo \"<$x>\"; stty size; done";
    let session = open(&client, program(script)).await;
    let mut one = Viewer::attach(&client, &session.id).await;
    let mut other = Viewer::attach(&client, &session.id).await;
    one.press("from one\n").await;
    other.until("<from one>\n24 80").await;
    other.send(Input::Resize(TerminalSize { rows: 11, columns: 33 })).await;
    let resized = loop {
        if let Output::Resized(size) = one.next().await {
            break size;
        }
    };
    assert_eq!((resized.rows, resized.columns), (11, 33));
    other.press("from other\n").await;
    one.until("<from other>\n11 33").await;
    assert_eq!(
        client.clone().list_sessions(ListSessionsRequest {}).await.unwrap().into_inner().sessions[0].viewers,
        2
    );
}

#[tokio::test]
async fn a_viewer_that_does_not_read_does_not_stop_the_others() {
    let agent = Agent::start(&[]);
    let client = TerminalClient::new(agent.connect().await);
    let session = open(&client, program("stty -echo; read -r x; seq 400000; echo finished; read -r x")).await;
    let mut idle = Viewer::attach(&client, &session.id).await;
    let mut reader = Viewer::attach(&client, &session.id).await;
    reader.press("go\n").await;
    reader.until("finished").await;
    // It has missed most of it, and is shown how it stands.
    idle.until("finished").await;
    assert_eq!(idle.text(), reader.text());
}

#[tokio::test]
async fn a_session_ends_with_its_program_and_tells_everybody() {
    let agent = Agent::start(&[]);
    let client = TerminalClient::new(agent.connect().await);
    let session = open(&client, program("stty -echo; read -r x; echo bye; exit 7")).await;
    let mut viewer = Viewer::attach(&client, &session.id).await;
    let mut other = Viewer::attach(&client, &session.id).await;
    viewer.press("\n").await;
    assert_eq!(viewer.exit().await.code, 7);
    assert_eq!(other.exit().await.code, 7);
    assert!(viewer.text().contains("bye"));
    assert_eq!(count(&client).await, 0);
    let gone = client.clone().close_session(CloseSessionRequest { id: session.id }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test]
async fn a_closed_session_is_hung_up() {
    let agent = Agent::start(&[]);
    let client = TerminalClient::new(agent.connect().await);
    let session = open(&client, program("trap 'exit 5' HUP; echo on; while :; do sleep 0.05; done")).await;
    let mut viewer = Viewer::attach(&client, &session.id).await;
    viewer.until("on").await;
    client.clone().close_session(CloseSessionRequest { id: session.id.clone() }).await.unwrap();
    assert_eq!(count(&client).await, 0);
    assert_eq!(viewer.exit().await.code, 5);
}

#[tokio::test]
async fn the_login_shell_is_what_one_gets() {
    let agent = Agent::start(&[]);
    let client = TerminalClient::new(agent.connect().await);
    let env = [("A".to_owned(), "from the call".to_owned())].into();
    let request = OpenSessionRequest { cwd: "/tmp".to_owned(), env, ..OpenSessionRequest::default() };
    let session = open(&client, request).await;
    let mut viewer = Viewer::attach(&client, &session.id).await;
    viewer.press("echo \"[$A] $PWD $TERM $((40+2))\"\n").await;
    viewer.until("[from the call] /tmp xterm-256color 42").await;
}

#[tokio::test]
async fn nonsense_is_refused_with_a_reason() {
    let agent = Agent::start(&[]);
    let mut client = TerminalClient::new(agent.connect().await);
    let bad = |change: fn(&mut OpenSessionRequest)| {
        let mut request = program("true");
        change(&mut request);
        request
    };
    let code = async |request| client.clone().open_session(request).await.unwrap_err().code();
    assert_eq!(
        code(bad(|r| r.size = Some(TerminalSize { rows: 0, columns: 1 }))).await,
        Code::InvalidArgument
    );
    assert_eq!(code(bad(|r| r.user = "nobody-at-all".into())).await, Code::NotFound);
    assert_eq!(code(bad(|r| r.argv = vec!["no-such-shell".into()])).await, Code::NotFound);
    let resize = ResizeSessionRequest { id: "none".to_owned(), size: Some(SIZE) };
    assert_eq!(client.resize_session(resize).await.unwrap_err().code(), Code::NotFound);
    let attach =
        AttachInput { input: Some(Input::Attach(AttachStart { id: "none".to_owned(), size: None })) };
    assert_eq!(client.attach(tokio_stream::iter([attach])).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn there_is_an_end_to_how_many_there_may_be() {
    let agent = Agent::start(&[]);
    let client = TerminalClient::new(agent.connect().await);
    for _ in 0..32 {
        open(&client, program("exec sleep 4179")).await;
    }
    let refused = client.clone().open_session(program("exec sleep 4179")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let sessions = client.clone().list_sessions(ListSessionsRequest {}).await.unwrap().into_inner().sessions;
    client.clone().close_session(CloseSessionRequest { id: sessions[0].id.clone() }).await.unwrap();
    open(&client, program("exec sleep 4179")).await;
}
