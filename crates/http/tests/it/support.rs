//! A whole server on simulated machines, and calls to it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use camino::Utf8PathBuf;
use http_body_util::BodyExt;
use roost_api::Size;
use roost_control::{
    Config, Control, CreditConfig, EventRetention, FileConfig, NoHook, PublicUrls, Regions, Resolver,
    SealKey, Sharing, StreamKey, TemplateError, TemplateFiles, Templates, WarmFiles,
};
use roost_http::{App, Outgoing, Reach};
use roost_launch::simulated::Simulated;
use roost_machine_proto::{Accelerator, NetworkSpec};
use roost_store::Store;
use roost_store::testing::TestDatabase;
use serde_json::{Value, json};
use tower::ServiceExt;

#[derive(Debug)]
pub struct OneTemplate;

impl Templates for OneTemplate {
    fn current(&self, _name: &str) -> Result<Option<TemplateFiles>, TemplateError> {
        Ok(Some(TemplateFiles {
            digest: "d1".to_owned(),
            base: "/base".into(),
            kernel: "/kernel".into(),
            initrd: "/initrd".into(),
        }))
    }

    fn build(&self, name: &str, _digest: &str) -> Result<Option<TemplateFiles>, TemplateError> {
        self.current(name)
    }

    fn warm(&self, _name: &str, _digest: &str, _size: Size) -> Result<Option<WarmFiles>, TemplateError> {
        Ok(Some(WarmFiles { disk: "/warm/disk".into(), memory: "/warm/memory".into() }))
    }

    fn warm_target(&self, _name: &str, _digest: &str, _size: Size) -> Result<Utf8PathBuf, TemplateError> {
        Ok("/warm".into())
    }
}

/// Where names lead: as a test says, and `localhost` here.
#[derive(Debug, Default)]
pub struct Names(Mutex<BTreeMap<String, IpAddr>>);

impl Names {
    /// A domain with every name below it.
    pub fn lead(&self, domain: &str, address: [u8; 4]) {
        self.0.lock().unwrap().insert(domain.to_owned(), address.into());
    }
}

#[async_trait::async_trait]
impl Resolver for Names {
    async fn addresses(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        if name == "localhost" {
            return Ok(vec![[127, 0, 0, 1].into()]);
        }
        let below = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        let known = self.0.lock().unwrap();
        let found = known.iter().find(|(domain, _)| below(domain)).map(|(_, address)| *address);
        found.map(|address| vec![address]).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

pub struct Server {
    pub router: axum::Router,
    pub control: Control,
    pub store: Store,
    /// The key of the first tenant's administrator.
    pub key: String,
    pub launcher: Arc<Simulated>,
    /// Of the region `us-east-ny`.
    pub far: Arc<Simulated>,
    pub database: TestDatabase,
    pub names: Arc<Names>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Server {
    pub async fn new() -> Self {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let key = roost_control::first_key(&store).await.unwrap().unwrap().text;
        Self::start(database, store, key, [Arc::default(), Arc::default()], seal_key()).await
    }

    /// The same behind another surface.
    pub fn with_app(mut self, change: impl FnOnce(&mut App)) -> Self {
        let mut app = app(&self.control);
        change(&mut app);
        self.router = roost_http::router(app).unwrap();
        self
    }

    /// Another server on the same database and machines, as after a crash of this one.
    pub async fn again(self) -> Self {
        // What still runs of this one must not do the work of the next.
        self.store.close().await;
        self.database.forget_servers().await;
        let store = self.database.store().await;
        Self::start(self.database, store, self.key, [self.launcher, self.far], seal_key()).await
    }

    /// The same where the file of the key was lost.
    pub async fn with_another_seal_key(self) -> Self {
        self.with_seal_key(SealKey::from_bytes([3; 32])).await
    }

    pub async fn with_seal_key(self, seal_key: SealKey) -> Self {
        self.store.close().await;
        self.database.forget_servers().await;
        let store = self.database.store().await;
        Self::start(self.database, store, self.key, [self.launcher, self.far], seal_key).await
    }

    async fn start(
        database: TestDatabase,
        store: Store,
        key: String,
        [launcher, far]: [Arc<Simulated>; 2],
        seal_key: SealKey,
    ) -> Self {
        let names = Arc::<Names>::default();
        let config = Config {
            urls: PublicUrls {
                origin: "http://127.0.0.1:1".to_owned(),
                scheme: "http".to_owned(),
                domain: "localhost:1".to_owned(),
            },
            accelerator: Accelerator::Tcg,
            network: NetworkSpec::default(),
            stream_key: StreamKey::from_bytes([1; 32]),
            seal_key,
            disk_directories: Vec::new(),
            events: EventRetention::default(),
            outbound: Arc::new(Outgoing::new(Reach::Anywhere).unwrap()),
            resolver: names.clone(),
            credits: CreditConfig::default(),
            sharing: Sharing::default(),
            files: FileConfig::default(),
        };
        let templates = Arc::new(OneTemplate);
        let regions = Regions::from(launcher.clone()).with("us-east-ny".parse().unwrap(), far.clone());
        let control = Control::start(store.clone(), regions, templates, config, Arc::new(NoHook));
        let control = control.await.unwrap();
        let router = roost_http::router(app(&control)).unwrap();
        Self { router, control, store, key, launcher, far, database, names }
    }

    /// Opens an event stream with the server's key.
    pub async fn listen(&self, path: &str, last_event_id: Option<&str>) -> Listening {
        self.listen_from(&self.key, path, last_event_id).await
    }

    pub async fn listen_as(&self, key: &str, path: &str) -> Listening {
        self.listen_from(key, path, None).await
    }

    async fn listen_from(&self, key: &str, path: &str, last_event_id: Option<&str>) -> Listening {
        let mut request = Request::get(format!("/api/v1{path}"));
        request = request.header("authorization", format!("Bearer {key}"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut stream = Listening::of(response.into_body());
        assert_eq!(stream.paragraph().await.as_deref(), Some(": connected"));
        stream
    }

    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: &str,
    ) -> (u16, String, String) {
        let reply = self.send(method, path, key, &[], body).await;
        let kind = reply.header("content-type").unwrap_or_default().to_owned();
        (reply.status, kind, reply.body)
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(format!("/api/v1{path}"));
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(bytes.to_vec()).unwrap();
        Reply { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let (status, _, text) = self.raw(method, path, Some(&self.key), &body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call(Method::POST, path, body).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.call(Method::DELETE, path, Value::Null).await
    }

    pub async fn computer(&self) -> String {
        let body = json!({ "name": "box", "template_type": "miosa-desktop" });
        let (status, computer) = self.post("/computers?wait=true", body).await;
        assert_eq!((status, &computer["status"]), (201, &json!("running")));
        computer["id"].as_str().unwrap().to_owned()
    }

    pub async fn snapshot(&self, id: &str) -> String {
        let (status, created) =
            self.post(&format!("/computers/{id}/snapshots"), json!({ "comment": "one" })).await;
        assert_eq!((status, &created["data"]["status"]), (201, &json!("creating")));
        let sid = created["data"]["id"].as_str().unwrap().to_owned();
        let path = format!("/computers/{id}/snapshots/{sid}/events");
        let (status, _, events) = self.raw(Method::GET, &path, Some(&self.key), "").await;
        assert_eq!(status, 200, "{events}");
        assert!(events.contains("\"status\":\"ready\""), "{events}");
        sid
    }
}

/// An open event stream.
pub struct Listening {
    body: Body,
    text: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    pub id: String,
    pub kind: String,
    pub data: Value,
}

impl Listening {
    pub fn of(body: Body) -> Self {
        Self { body, text: String::new() }
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            let paragraph = self.paragraph().await?;
            let field = |name: &str| {
                paragraph.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned)
            };
            if let Some(data) = field("data") {
                let data: Value = serde_json::from_str(&data).unwrap();
                let (id, kind) = (field("id").unwrap(), field("event").unwrap());
                assert_eq!(data["type"], json!(kind));
                return Some(Heard { id, kind, data });
            }
        }
    }

    /// The next data of a stream whose frames have neither id nor type; `None` at its end.
    pub async fn next_data(&mut self) -> Option<Value> {
        loop {
            let paragraph = self.paragraph().await?;
            if let Some(data) = paragraph.lines().find_map(|line| line.strip_prefix("data: ")) {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }

    /// Events up to and including the first one of `kind`.
    pub async fn until(&mut self, kind: &str) -> Vec<Heard> {
        let mut heard = Vec::new();
        loop {
            heard.push(self.next().await.unwrap());
            if heard.last().unwrap().kind == kind {
                return heard;
            }
        }
    }

    async fn paragraph(&mut self) -> Option<String> {
        loop {
            if let Some((paragraph, rest)) = self.text.split_once("\n\n") {
                let paragraph = paragraph.to_owned();
                self.text = rest.to_owned();
                return Some(paragraph);
            }
            let frame = self.body.frame().await?.unwrap();
            self.text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
        }
    }
}

fn app(control: &Control) -> App {
    App {
        control: control.clone(),
        domain: "localhost:1".to_owned(),
        rate_limit: None,
        cors_origins: Vec::new(),
        trusted_proxies: Vec::new(),
    }
}

/// What a server seals with, unless a test says otherwise.
pub fn seal_key() -> SealKey {
    SealKey::from_bytes([2; 32])
}

pub fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}
