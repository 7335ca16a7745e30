//! Apps: selecting, installing, and what becomes of it, with agents that do as they are told.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use axum::http::Method;
use futures_util::{Stream, StreamExt};
use roost_guest_proto::v1::apps_server::{Apps, AppsServer};
use roost_guest_proto::v1::install_reply::State;
use roost_guest_proto::v1::{
    App, InstallReply, InstallRequest, InstallStep, Installed, Installing, LaunchReply, LaunchRequest,
    ListAppsReply, ListAppsRequest,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::support::Server;

type Replies = mpsc::UnboundedSender<Result<InstallReply, Status>>;

/// Tells the test of each call to install, which answers it.
#[derive(Debug)]
struct Agent {
    calls: mpsc::UnboundedSender<(Vec<String>, Replies)>,
    launched: Mutex<Vec<String>>,
}

struct Calls(mpsc::UnboundedReceiver<(Vec<String>, Replies)>);

impl Calls {
    async fn next(&mut self) -> (Vec<String>, Replies) {
        self.0.recv().await.unwrap()
    }
}

impl Agent {
    async fn serve() -> (Arc<Self>, Calls, Channel) {
        let (calls, received) = mpsc::unbounded_channel();
        let agent = Arc::new(Self { calls, launched: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = tonic::transport::Server::builder().add_service(AppsServer::from_arc(agent.clone()));
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        (agent, Calls(received), channel)
    }
}

#[tonic::async_trait]
impl Apps for Agent {
    type InstallStream = Pin<Box<dyn Stream<Item = Result<InstallReply, Status>> + Send>>;

    async fn list(&self, _: Request<ListAppsRequest>) -> Result<Response<ListAppsReply>, Status> {
        let app = App {
            id: "geany".to_owned(),
            name: "Geany".to_owned(),
            exec: "geany".to_owned(),
            icon: "geany".to_owned(),
            categories: vec!["Development".to_owned()],
        };
        Ok(Response::new(ListAppsReply { apps: vec![app] }))
    }

    async fn install(
        &self,
        request: Request<InstallRequest>,
    ) -> Result<Response<Self::InstallStream>, Status> {
        let (replies, stream) = mpsc::unbounded_channel();
        let call = (request.into_inner().packages, replies);
        self.calls.send(call).map_err(|_| Status::cancelled("the test is over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(stream).boxed()))
    }

    async fn launch(&self, request: Request<LaunchRequest>) -> Result<Response<LaunchReply>, Status> {
        let app = request.into_inner().app;
        if app == "none" {
            return Err(Status::not_found("there is no app `none` on this computer"));
        }
        self.launched.lock().unwrap().push(app);
        Ok(Response::new(LaunchReply {}))
    }
}

fn say(replies: &Replies, state: State) {
    replies.send(Ok(InstallReply { state: Some(state) })).unwrap();
}

fn at(percent: u32) -> State {
    State::Installing(Installing { step: InstallStep::Downloading.into(), percent })
}

async fn create(server: &Server, apps: Value) -> String {
    let body = json!({ "name": "box", "template_type": "miosa-desktop", "selected_apps": apps });
    let (status, computer) = server.post("/computers?wait=true", body).await;
    assert_eq!((status, &computer["status"]), (201, &json!("running")), "{computer}");
    assert_eq!(computer["selected_apps"], apps);
    computer["id"].as_str().unwrap().to_owned()
}

async fn installations(server: &Server, id: &str) -> Vec<(String, String, u64, Value)> {
    let (status, list) = server.get(&format!("/computers/{id}/apps")).await;
    assert_eq!(status, 200, "{list}");
    let rows = list["installations"].as_array().unwrap().iter();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.map(|row| {
        (text(row, "app"), text(row, "status"), row["progress"].as_u64().unwrap(), row["error"].clone())
    })
    .collect()
}

fn row(app: &str, status: &str, progress: u64, error: Value) -> (String, String, u64, Value) {
    (app.to_owned(), status.to_owned(), progress, error)
}

#[tokio::test]
async fn selected_apps_are_installed_one_after_the_other_and_a_failure_is_told() {
    let server = Server::new().await;
    let (_agent, mut calls, channel) = Agent::serve().await;
    server.launcher.set_guest(channel);
    let id = create(&server, json!(["geany", "vlc"])).await;
    let mut events = server.listen(&format!("/computers/{id}/events?types=app.*"), Some("evt_0")).await;
    let (packages, replies) = calls.next().await;
    assert_eq!(packages, ["geany"]);
    for percent in [0, 1, 2, 10, 11] {
        say(&replies, at(percent));
    }
    say(&replies, State::Failed("the mirror does not answer".to_owned()));
    let heard = events.until("app.failed").await;
    // Every percent would be a flood.
    let progress: Vec<&Value> = heard.iter().map(|event| &event.data["progress"]).collect();
    assert_eq!(progress, [&json!(0), &json!(10), &Value::Null]);
    assert_eq!(heard[2].data["message"], "the mirror does not answer");
    assert_eq!(heard[2].data["app"], "geany");

    let (packages, replies) = calls.next().await;
    assert_eq!(packages, ["vlc"]);
    say(&replies, State::Installed(Installed {}));
    assert_eq!(events.until("app.installed").await.len(), 1);
    let expected = [
        row("geany", "failed", 10, json!("the mirror does not answer")),
        row("vlc", "installed", 100, Value::Null),
    ];
    assert_eq!(installations(&server, &id).await, expected);
    let (_, computer) = server.get(&format!("/computers/{id}")).await;
    assert_eq!(computer["status"], "running");

    // Selecting it again tries again; what is there is only looked at.
    let (status, answer) =
        server.post(&format!("/computers/{id}/apps"), json!({ "apps": ["geany", "htop", "geany"] })).await;
    assert_eq!((status, &answer["computer_id"]), (202, &json!(id)));
    for packages in [["geany"], ["htop"]] {
        let (called, replies) = calls.next().await;
        assert_eq!(called, packages);
        say(&replies, State::Installed(Installed {}));
        events.until("app.installed").await;
    }
    let (_, computer) = server.get(&format!("/computers/{id}")).await;
    assert_eq!(computer["selected_apps"], json!(["geany", "vlc", "htop"]));
    assert!(installations(&server, &id).await.iter().all(|row| row.1 == "installed"));
}

#[tokio::test]
async fn an_installation_goes_on_after_the_server_the_agent_and_the_computer_were_away() {
    let server = Server::new().await;
    let (_agent, mut calls, channel) = Agent::serve().await;
    server.launcher.set_guest(channel);
    let id = create(&server, json!(["geany"])).await;
    let (_, replies) = calls.next().await;
    say(&replies, at(40));
    let mut events = server.listen(&format!("/computers/{id}/events?types=app.*"), Some("evt_0")).await;
    events.until("app.installing").await;

    // The server crashes, and its successor asks again.
    let server = server.again().await;
    let (packages, replies) = calls.next().await;
    assert_eq!(packages, ["geany"]);

    // The connection to the agent breaks.
    replies.send(Err(Status::unavailable("made to break"))).unwrap();
    drop(replies);
    let (_, replies) = calls.next().await;
    say(&replies, at(60));

    // The computer is stopped, and goes on where it was.
    assert_eq!(server.post(&format!("/computers/{id}/stop"), Value::Null).await.0, 200);
    let (status, _) = server.get(&format!("/computers/{id}/apps")).await;
    assert_eq!(status, 409);
    drop(replies);
    assert_eq!(server.post(&format!("/computers/{id}/start"), Value::Null).await.0, 200);
    let (_, replies) = calls.next().await;
    say(&replies, at(60));
    say(&replies, State::Installed(Installed {}));
    let mut events = server.listen(&format!("/computers/{id}/events?types=app.*"), Some("evt_0")).await;
    let heard = events.until("app.installed").await;
    let progress: Vec<u64> = heard.iter().filter_map(|event| event.data["progress"].as_u64()).collect();
    assert_eq!(progress, [40, 60], "nothing is told twice");
    assert_eq!(installations(&server, &id).await, [row("geany", "installed", 100, Value::Null)]);
}

#[tokio::test]
async fn apps_that_are_selected_for_a_stopped_computer_wait_for_its_start() {
    let server = Server::new().await;
    let (_agent, mut calls, channel) = Agent::serve().await;
    server.launcher.set_guest(channel);
    let id = create(&server, json!([])).await;
    assert_eq!(server.post(&format!("/computers/{id}/stop"), Value::Null).await.0, 200);
    let (status, answer) = server.post(&format!("/computers/{id}/apps"), json!({ "apps": ["gimp"] })).await;
    assert_eq!((status, &answer["installations"][0]["status"]), (202, &json!("waiting")));
    assert_eq!(server.post(&format!("/computers/{id}/start"), Value::Null).await.0, 200);
    assert_eq!(calls.next().await.0, ["gimp"]);
}

#[tokio::test]
async fn an_older_agent_is_a_failure_with_its_reason_and_a_clone_has_the_same_apps() {
    let server = Server::new().await;
    let (_agent, mut calls, channel) = Agent::serve().await;
    let (_guest, older) = crate::guest::FakeGuest::serve().await;
    server.launcher.set_guest(older);
    let id = create(&server, json!(["geany"])).await;
    let mut events = server.listen(&format!("/computers/{id}/events?types=app.*"), Some("evt_0")).await;
    let heard = events.until("app.failed").await;
    assert!(heard[0].data["message"].as_str().unwrap().contains("older template"), "{heard:?}");

    server.launcher.set_guest(channel);
    let (status, clone) = server.post(&format!("/computers/{id}/clone"), json!({})).await;
    assert_eq!((status, &clone["selected_apps"]), (201, &json!(["geany"])));
    // Whether it has them is for its guest to say.
    assert_eq!(calls.next().await.0, ["geany"]);
}

#[tokio::test]
async fn what_is_in_no_catalogue_is_refused_before_anything_is_made() {
    let server = Server::new().await;
    let body =
        json!({ "name": "box", "template_type": "miosa-desktop", "selected_apps": ["geany", "nothing"] });
    let (status, error) = server.post("/computers", body).await;
    assert_eq!((status, &error["code"]), (422, &json!("VALIDATION_FAILED")));
    let message = error.to_string();
    assert!(message.contains("selected_apps") && message.contains("nothing") && message.contains("chromium"));
    assert_eq!(server.get("/computers").await.1["total"], 0);
    let id = server.computer().await;
    let path = format!("/computers/{id}/apps");
    assert_eq!(server.post(&path, json!({ "apps": ["nothing"] })).await.0, 422);
    assert_eq!(server.post(&path, json!({ "apps": "geany" })).await.0, 422);
    for body in [json!({}), json!({ "apps": [] })] {
        assert_eq!(server.post(&path, body).await.0, 400);
    }
    let (status, catalog) = server.get("/apps/catalog").await;
    assert_eq!((status, &catalog["total"]), (200, &json!(catalog["apps"].as_array().unwrap().len())));
    assert!(catalog["apps"].as_array().unwrap().iter().any(|app| app["id"] == "libreoffice"));
    assert_eq!(server.raw(Method::GET, "/apps/catalog", None, "").await.0, 401);
}

#[tokio::test]
async fn programs_are_started_by_what_clients_call_them() {
    let server = Server::new().await;
    let (agent, _calls, channel) = Agent::serve().await;
    server.launcher.set_guest(channel);
    let id = create(&server, json!([])).await;
    let (_, list) = server.get(&format!("/computers/{id}/apps")).await;
    let app = json!({ "id": "geany", "name": "Geany", "exec": "geany", "icon": "geany",
        "categories": ["Development"] });
    assert_eq!((&list["apps"], &list["total"], &list["computer_id"]), (&json!([app]), &json!(1), &json!(id)));
    let path = format!("/computers/{id}/desktop/launch");
    for body in [json!({ "app_name": "geany" }), json!({ "app": "Firefox" })] {
        let (status, answer) = server.post(&path, body).await;
        assert_eq!((status, &answer["success"]), (200, &json!(true)));
    }
    assert_eq!(*agent.launched.lock().unwrap(), ["geany", "Firefox"]);
    assert_eq!(server.post(&path, json!({})).await.0, 400);
    let (status, error) = server.post(&path, json!({ "app": "none" })).await;
    assert_eq!((status, &error["code"]), (404, &json!("NOT_FOUND")));
}
