//! Scripts that computers run once. The guest here is a directory of this machine: commands run for real, with that as
//! their home, and what they leave behind stays, as on a disk.

use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;

use axum::http::Method;
use futures_util::{Stream, StreamExt, stream};
use roost_guest_proto::v1::process_server::{Process, ProcessServer};
use roost_guest_proto::v1::run_input::Input;
use roost_guest_proto::v1::run_output::Output;
use roost_guest_proto::v1::{RunExit, RunInput, RunOutput, RunStarted};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::support::Server;

#[derive(Debug, Clone)]
struct Home(Arc<TempDir>);

impl Home {
    async fn of(server: &Server) -> Self {
        let home = Self(Arc::new(tempfile::tempdir().unwrap()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = tonic::transport::Server::builder().add_service(ProcessServer::new(home.clone()));
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let channel: Channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        server.launcher.set_guest(channel);
        home
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    /// A pipe for a script to wait at.
    fn gate(&self, name: &str) {
        let made = std::process::Command::new("mkfifo").arg(self.path().join(name)).status().unwrap();
        assert!(made.success());
    }

    /// Returns when the script is there.
    async fn open(&self, name: &str) {
        tokio::fs::write(self.path().join(name), "go\n").await.unwrap();
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Process for Home {
    type RunStream = Pin<Box<dyn Stream<Item = Result<RunOutput, Status>> + Send>>;

    async fn run(&self, request: Request<Streaming<RunInput>>) -> Answer<Self::RunStream> {
        let mut inputs = request.into_inner();
        let Some(RunInput { input: Some(Input::Start(start)) }) = inputs.message().await? else {
            return Err(Status::invalid_argument("the first message starts"));
        };
        let child = tokio::process::Command::new(&start.argv[0])
            .args(&start.argv[1..])
            .env("HOME", self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // As the real agent does with a command whose caller is gone.
            .kill_on_drop(true)
            .spawn()?;
        // What goes in is sent by whoever has the answer already.
        let started = stream::iter([output(Output::Started(RunStarted { pid: 1 }))]);
        let rest = stream::once(run_to_end(child, inputs)).flat_map(|ended| match ended {
            Ok(outputs) => stream::iter(outputs.map(output).to_vec()),
            Err(status) => stream::iter(vec![Err(status)]),
        });
        Ok(Response::new(started.chain(rest).boxed()))
    }
}

fn output(output: Output) -> Result<RunOutput, Status> {
    Ok(RunOutput { output: Some(output) })
}

async fn run_to_end(mut child: Child, mut inputs: Streaming<RunInput>) -> Result<[Output; 3], Status> {
    let mut stdin = child.stdin.take().unwrap();
    while let Some(RunInput { input: Some(Input::Stdin(bytes)) }) = inputs.message().await? {
        stdin.write_all(&bytes).await?;
    }
    drop(stdin);
    let ended = child.wait_with_output().await?;
    let code = ended.status.code().unwrap_or(-1);
    Ok([
        Output::Stdout(ended.stdout.into()),
        Output::Stderr(ended.stderr.into()),
        Output::Exit(RunExit { code, ..RunExit::default() }),
    ])
}

impl Server {
    async fn with_setup(&self, script: &str) -> String {
        let body = json!({ "name": "box", "template_type": "miosa-desktop", "setup_file": script });
        let (status, computer) = self.post("/computers?wait=true", body).await;
        assert_eq!((status, &computer["status"]), (201, &json!("running")), "{computer}");
        computer["id"].as_str().unwrap().to_owned()
    }

    /// How its script went, once it has ended.
    async fn setup(&self, id: &str) -> Value {
        let mut events = self.listen(&format!("/computers/{id}/events?types=setup.*"), Some("evt_0")).await;
        assert!(events.next().await.is_some());
        let (status, setup) = self.get(&format!("/computers/{id}/setup")).await;
        assert_eq!(status, 200, "{setup}");
        let (_, computer) = self.get(&format!("/computers/{id}")).await;
        assert_eq!((&computer["setup_status"], &computer["status"]), (&setup["status"], &json!("running")));
        setup
    }
}

#[tokio::test]
async fn a_script_runs_once_and_what_it_said_is_kept() {
    let server = Server::new().await;
    let home = Home::of(&server).await;
    // It needs no interpreter named, and what it leaves behind holds nothing up.
    let id =
        server.with_setup("echo once >>~/count\nsleep 600 &\necho $! >~/left\necho hello; pwd >&2\n").await;
    let setup = server.setup(&id).await;
    assert_eq!((&setup["status"], &setup["exit_code"]), (&json!("completed"), &json!(0)));
    let said = format!("hello\n{}\n", home.path().canonicalize().unwrap().display());
    assert_eq!((&setup["output"], &setup["error"]), (&json!(said), &Value::Null));
    assert!(setup["started_at"].is_string() && setup["ended_at"].is_string());
    let left = home.text("left");
    assert!(std::process::Command::new("kill").arg(left.trim()).status().unwrap().success());

    assert_eq!(server.post(&format!("/computers/{id}/restart"), json!({})).await.0, 200);
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    server.post(&format!("/computers/{id}/start"), json!({})).await;
    // What is made of it has the same disk: there it has run, too.
    let (_, clone) = server.post(&format!("/computers/{id}/clone"), json!({})).await;
    let snapshot = server.snapshot(&id).await;
    let (_, restored) = server.post(&format!("/computers/{id}/restore/{snapshot}"), json!({})).await;
    for made in [clone, restored] {
        let of_made = server.setup(made["id"].as_str().unwrap()).await;
        assert_eq!((&of_made["status"], &of_made["output"]), (&json!("completed"), &json!(said)));
    }
    assert_eq!(home.text("count"), "once\n");
    // Neither is on the host's disk in clear.
    if let Some(directory) = server.database.directory() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            for text in ["echo once", "hello"] {
                assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn a_script_that_fails_costs_nothing_but_itself() {
    let server = Server::new().await;
    let home = Home::of(&server).await;
    let id = server.with_setup("#!/usr/bin/env python3\nprint('no'); raise SystemExit(7)\n").await;
    let setup = server.setup(&id).await;
    assert_eq!((&setup["status"], &setup["exit_code"]), (&json!("failed"), &json!(7)));
    assert_eq!(setup["output"], json!("no\n"));
    drop(home);
    // Without one, there is nothing to tell.
    let id = server.computer().await;
    let (status, none) = server.get(&format!("/computers/{id}/setup")).await;
    assert_eq!((status, &none["status"]), (200, &Value::Null));
    for wrong in [json!("x".repeat(64 * 1024 + 1)), json!("a\u{0}b"), json!(7), json!(["ls"])] {
        let body = json!({ "name": "box", "template_type": "miosa-desktop", "setup_file": wrong });
        let (status, answer) = server.post("/computers", body).await;
        assert_eq!((status, &answer["code"]), (400, &json!("INVALID_SETUP_FILE")), "{answer}");
    }
}

#[tokio::test]
async fn the_next_server_goes_on_with_a_script() {
    let server = Server::new().await;
    let home = Home::of(&server).await;
    home.gate("first");
    home.gate("second");
    let id = server.with_setup("echo once >>~/count; cat ~/first; cat ~/second\n").await;
    home.open("first").await;
    let server = server.again().await;
    home.open("second").await;
    let setup = server.setup(&id).await;
    assert_eq!((&setup["status"], &setup["output"]), (&json!("completed"), &json!("go\ngo\n")));
    assert_eq!(home.text("count"), "once\n");
}

#[tokio::test]
async fn a_script_that_is_interrupted_is_not_run_again() {
    let server = Server::new().await;
    let home = Home::of(&server).await;
    home.gate("gate");
    home.gate("end");
    let script = "echo once >>~/count; echo $PPID >~/runner; cat ~/gate; exec cat ~/end\n";
    let id = server.with_setup(script).await;
    home.open("gate").await;
    // As when the computer is turned off: whoever runs it is gone.
    let runner = home.text("runner");
    assert!(std::process::Command::new("kill").args(["-9", runner.trim()]).status().unwrap().success());
    let setup = server.setup(&id).await;
    assert_eq!((&setup["status"], &setup["exit_code"]), (&json!("failed"), &Value::Null));
    assert!(setup["error"].as_str().unwrap().contains("interrupted"), "{setup}");
    home.open("end").await;
    assert_eq!(server.call(Method::POST, &format!("/computers/{id}/restart"), json!({})).await.0, 200);
    assert_eq!(home.text("count"), "once\n");
}
