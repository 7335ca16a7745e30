//! Tenants, members, keys: who reaches what, and that nobody reaches anything else.
//!
//! What may leak is tried on every route of the OpenAPI document, so a new route is covered by being declared. One whose
//! path has a parameter that is not known here fails the test: `World::value` is to be told what it is.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tower::ServiceExt;

use crate::connection::{Socket, on_the_network, socket_with};
use crate::programs::Guest;
use crate::shell::Echo;
use crate::support::{Listening, Reply, Server};

/// Routes that need no account, with why.
const PUBLIC: [&str; 5] = [
    // Its ticket is its credential.
    "/computers/{id}/exec/stream/events",
    "/health",                        // says nothing about anybody
    "/templates",                     // nor does this
    "/shared/{token}",                // the token is the credential
    "/computers/{id}/viewer-session", // so is the viewer password
];

/// Routes whose parameter names something of the server, which is everybody's.
const SERVER: [&str; 2] = ["/regions/{name}", "/compute/templates/{name}"];

/// Routes whose parameter is a name of the caller's own choice: every tenant has its own `ann`.
const OWN: [&str; 1] = ["/quotas/external/{external_user_id}"];

impl Server {
    pub async fn as_key(&self, key: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
        let reply = self.send(method, path, Some(key), &[], &body.to_string()).await;
        (reply.status, serde_json::from_str(&reply.body).unwrap_or(Value::String(reply.body)))
    }

    /// Made with the server's key; the answer's `data`.
    pub async fn made(&self, path: &str, body: Value) -> Value {
        let (status, made) = self.post(path, body).await;
        assert!(matches!(status, 200 | 201), "{path}: {status} {made}");
        if made.get("data").is_some() { made["data"].clone() } else { made }
    }

    /// A tenant's id and the secret of its owner's admin key.
    pub async fn tenant(&self, name: &str) -> (String, String) {
        let tenant = self.made("/admin/tenants", json!({ "name": name })).await;
        let id = text(&tenant["id"]);
        let body = json!({ "name": "first", "key_type": "admin" });
        let key = self.made(&format!("/admin/tenants/{id}/keys"), body).await;
        (id, text(&key["key"]))
    }

    async fn home(&self) -> String {
        text(&self.get("/whoami").await.1["data"]["tenant_id"])
    }

    /// A user of the first tenant and the secret of a key of theirs.
    pub async fn user(&self, name: &str, role: &str) -> (String, String) {
        let tenant = self.home().await;
        let users = format!("/admin/tenants/{tenant}/users");
        let user = text(&self.made(&users, json!({ "name": name, "role": role })).await["id"]);
        let body = json!({ "name": name, "user_id": user });
        let key = self.made(&format!("/admin/tenants/{tenant}/keys"), body).await;
        (user, text(&key["key"]))
    }
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

pub fn box_in(place: Value) -> Value {
    let mut body = json!({ "name": "box", "template_type": "miosa-desktop" });
    body.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
    body
}

pub fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["code"].as_str().unwrap_or(""))
}

/// One of everything a tenant can have.
struct World {
    computer: String,
    snapshot: String,
    /// Its name.
    named: String,
    preset: String,
    share: String,
    webhook: String,
    delivery: String,
    workspace: String,
    project: String,
    user: String,
    key: String,
    token: String,
    tenant: String,
}

impl World {
    async fn of(server: &Server, tenant: &str, key: &str) -> Self {
        let post = async |path: &str, body: Value| {
            let (status, made) = server.as_key(key, Method::POST, path, body).await;
            assert!(matches!(status, 200..=202), "{path}: {status} {made}");
            made
        };
        let body = box_in(json!({ "workspace_slug": "clinic", "project_slug": "records" }));
        let computer = post("/computers?wait=true", body).await;
        let id = text(&computer["id"]);
        let snapshot = post(&format!("/computers/{id}/snapshots"), json!({ "comment": "c" })).await;
        let snapshot = text(&snapshot["data"]["id"]);
        let events = format!("/computers/{id}/snapshots/{snapshot}/events");
        server.as_key(key, Method::GET, &events, Value::Null).await;
        // The other tenant has a name of its own, which it finds.
        let named = format!("of-{tenant}");
        post("/named-snapshots", json!({ "snapshot_id": snapshot, "name": named })).await;
        let preset = format!("preset-{tenant}");
        post("/api-keys/presets", json!({ "name": preset, "scopes": ["computers:read"] })).await;
        let share =
            post(&format!("/computers/{id}/shares"), json!({ "kind": "link", "role": "viewer" })).await;
        let expose = json!({ "port": 3000, "visibility": "private" });
        post(&format!("/computers/{id}/ports"), expose).await;
        post(&format!("/computers/{id}/env"), json!({ "name": "SECRET", "value": "v" })).await;
        let hook = json!({ "url": "http://127.0.0.1:1/", "events": ["*"] });
        let webhook = text(&post("/webhooks", hook).await["data"]["id"]);
        let user = post(&format!("/admin/tenants/{tenant}/users"), json!({ "name": "someone" })).await;
        let user = text(&user["data"]["id"]);
        let workspace = text(&computer["workspace_id"]);
        post(&format!("/workspaces/{workspace}/members"), json!({ "user_id": user })).await;
        // A verification has something to verify.
        let domain = json!({ "domain": format!("{tenant}.example") });
        for place in
            [format!("workspaces/{workspace}"), format!("projects/{}", text(&computer["project_id"]))]
        {
            let path = format!("/{place}/preview-domain");
            assert_eq!(server.as_key(key, Method::PUT, &path, domain.clone()).await.0, 200, "{path}");
        }
        let token = json!({ "user_id": user, "workspace_id": workspace });
        Self {
            snapshot,
            named,
            preset,
            share: text(&share["data"]["id"]),
            delivery: "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000".to_owned(),
            webhook,
            project: text(&computer["project_id"]),
            key: text(&post("/api-keys", json!({ "name": "k" })).await["data"]["id"]),
            token: text(&post("/tokens/scoped", token).await["data"]["id"]),
            user,
            workspace,
            tenant: tenant.to_owned(),
            computer: id,
        }
    }

    /// What stands for a parameter in the path of a route.
    fn value(&self, route: &str, parameter: &str) -> &str {
        match parameter {
            "id" => &self.computer,
            "sid" => &self.snapshot,
            "share_id" => &self.share,
            "wid" if route.starts_with("/webhooks") => &self.webhook,
            "wid" if route.starts_with("/computers") => "0x1c00007",
            "wid" => &self.workspace,
            "did" => &self.delivery,
            "pid" => &self.project,
            "tid" => &self.tenant,
            "uid" | "user_id" => &self.user,
            "kid" if route.starts_with("/tokens") => &self.token,
            "kid" => &self.key,
            "name" if route.starts_with("/named-snapshots") => &self.named,
            "name" if route.starts_with("/api-keys/presets") => &self.preset,
            "name" if route == "/regions/{name}" => "local",
            "name" if route == "/compute/templates/{name}" => "miosa-desktop",
            "name" => "SECRET",
            "port" => "3000",
            "session_id" => "no-session",
            "external_user_id" => "ann",
            _ => panic!("what is {{{parameter}}} in {route}? tell World::value"),
        }
    }

    fn path(&self, route: &str) -> String {
        let mut path = String::new();
        for (n, part) in route.split(['{', '}']).enumerate() {
            path += if n % 2 == 0 { part } else { self.value(route, part) };
        }
        path
    }

    fn ids(&self) -> [&str; 9] {
        [
            &self.computer,
            &self.snapshot,
            &self.share,
            &self.webhook,
            &self.workspace,
            &self.project,
            &self.user,
            &self.key,
            &self.token,
        ]
    }
}

struct Route {
    method: Method,
    path: String,
    is_public: bool,
    is_stream: bool,
}

fn routes() -> Vec<Route> {
    let document: Value = serde_json::from_str(&roost_http::openapi().unwrap()).unwrap();
    let paths: BTreeMap<String, Value> = serde_json::from_value(document["paths"].clone()).unwrap();
    let mut routes = Vec::new();
    for (path, methods) in paths {
        let path = path.strip_prefix("/api/v1").unwrap().to_owned();
        for (method, route) in methods.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            routes.push(Route {
                method,
                is_public: route["security"].as_array().is_some_and(|all| all.contains(&json!({}))),
                is_stream: route["responses"]["200"]["content"].get("text/event-stream").is_some(),
                path: path.clone(),
            });
        }
    }
    assert!(routes.len() > 100, "the document is read as it is written");
    routes
}

/// Two tenants try every route with each other's ids, in the path and in what comes back.
#[tokio::test]
async fn no_route_leads_into_another_tenant() {
    let server = Server::new().await;
    let (one, one_key) = server.tenant("one").await;
    let (other, other_key) = server.tenant("other").await;
    let world = World::of(&server, &one, &one_key).await;
    // The other has one of everything too: it is not the lack of it that hides what is there.
    World::of(&server, &other, &other_key).await;
    let mut public = BTreeSet::new();
    let mut wrong = Vec::new();
    // What exists is there for its own tenant, or the test would prove nothing. Before anything is deleted.
    for route in routes().iter().filter(|route| route.method == Method::GET && !route.is_stream) {
        if route.path.contains("{did}") || route.path.contains("{token}") {
            continue;
        }
        let (status, answer) =
            server.as_key(&one_key, Method::GET, &world.path(&route.path), Value::Null).await;
        if matches!(status, 401 | 403 | 404) {
            wrong.push(format!("its own GET {}: {status} {answer}", route.path));
        }
    }
    for Route { method, path: route, is_public, is_stream } in routes() {
        if is_public {
            public.insert(route);
            continue;
        }
        let is_ours = SERVER.contains(&route.as_str()) || OWN.contains(&route.as_str());
        let has_id = route.contains('{') && !is_ours;
        if !has_id && (is_stream || method != Method::GET) {
            continue; // looked at one by one below
        }
        let path = world.path(&route);
        let reply = server.send(method.clone(), &path, Some(&other_key), &[], "{}").await;
        let leaked = world.ids().into_iter().filter(|id| !path.contains(id) && reply.body.contains(id));
        if leaked.count() > 0 || has_id && reply.status != 404 {
            wrong.push(format!("{method} {route}: {} {}", reply.status, reply.body));
        }
    }
    assert!(wrong.is_empty(), "{} routes:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(public.iter().map(String::as_str).collect::<Vec<_>>(), sorted(&PUBLIC));
    // Nothing of all that has changed what is there.
    for route in ["/computers/{id}", "/webhooks/{wid}", "/workspaces/{wid}", "/api-keys/{kid}"] {
        let path = world.path(route);
        assert_eq!(server.as_key(&one_key, Method::GET, &path, Value::Null).await.0, 200, "{route}");
    }
}

/// The same inside of one tenant, for a user who was let into nothing.
#[tokio::test]
async fn no_route_leads_to_what_a_member_was_not_let_into() {
    let server = Server::new().await;
    let home = server.home().await;
    let world = World::of(&server, &home, &server.key.clone()).await;
    let (_, colleague) = server.user("colleague", "member").await;
    let mut wrong = Vec::new();
    for Route { method, path: route, is_public, .. } in routes() {
        let is_their_own_tenant = route.starts_with("/platform/");
        let is_the_servers = SERVER.contains(&route.as_str());
        if is_public || !route.contains('{') || is_their_own_tenant || is_the_servers {
            continue;
        }
        let reply = server.send(method.clone(), &world.path(&route), Some(&colleague), &[], "{}").await;
        let answer: Value = serde_json::from_str(&reply.body).unwrap_or_default();
        if (reply.status, &answer["code"]) != (403, &json!("FORBIDDEN")) {
            wrong.push(format!("{method} {route}: {} {}", reply.status, reply.body));
        }
    }
    assert!(wrong.is_empty(), "{} routes:\n{}", wrong.len(), wrong.join("\n"));
    // And nothing of it is in a list.
    for list in
        ["/computers", "/snapshots", "/snapshots/groups", "/named-snapshots", "/admin/snapshots", "/webhooks"]
    {
        let (status, listed) = server.as_key(&colleague, Method::GET, list, Value::Null).await;
        assert_eq!((status, &listed["data"]), (200, &json!([])), "{list}");
    }
    let seed = "not a member of this computer";
    let path = format!("/computers/{}", world.computer);
    assert_eq!(server.as_key(&colleague, Method::GET, &path, Value::Null).await.1["message"], json!(seed));
    // Let into the workspace, they are.
    let (user, member) = server.user("member", "member").await;
    let members = format!("/workspaces/{}/members", world.workspace);
    server.made(&members, json!({ "user_id": user, "role": "viewer" })).await;
    assert_eq!(server.as_key(&member, Method::GET, &path, Value::Null).await.0, 200);
    assert_eq!(server.as_key(&member, Method::GET, "/computers", Value::Null).await.1["total"], json!(1));
    let exec = format!("{path}/exec");
    let answer = server.as_key(&member, Method::POST, &exec, json!({ "command": "true" })).await;
    assert_eq!(code(&answer), (403, "FORBIDDEN"), "a viewer only looks");
    server.made(&members, json!({ "user_id": user, "role": "member" })).await;
    let (status, stopped) = server.as_key(&member, Method::POST, &format!("{path}/stop"), json!({})).await;
    assert_eq!((status, &stopped["status"]), (200, &json!("stopped")));
    assert_eq!(server.delete(&format!("{members}/{user}")).await.0, 200);
    assert_eq!(server.as_key(&member, Method::GET, &path, Value::Null).await.0, 403);
}

/// Ids of another tenant in a body or a query are those of nobody.
#[tokio::test]
async fn ids_of_another_tenant_in_bodies_name_nothing() {
    let server = Server::new().await;
    let (one, one_key) = server.tenant("one").await;
    let (other, other_key) = server.tenant("other").await;
    let world = World::of(&server, &one, &one_key).await;
    let own = World::of(&server, &other, &other_key).await;
    let World { workspace, project, snapshot, computer, user, .. } = &world;
    for (method, path, body) in [
        (Method::POST, "/computers".to_owned(), box_in(json!({ "workspace_id": workspace }))),
        (Method::POST, "/computers".to_owned(), box_in(json!({ "project_id": project }))),
        (Method::POST, "/named-snapshots".to_owned(), json!({ "name": "n", "snapshot_id": snapshot })),
        (Method::POST, "/named-snapshots".to_owned(), json!({ "name": "n", "computer_id": computer })),
        (Method::POST, "/projects".to_owned(), json!({ "name": "n", "workspace_id": workspace })),
        (Method::GET, format!("/projects?workspace_id={workspace}"), Value::Null),
        (
            Method::POST,
            format!("/projects/{}/move", own.project),
            json!({ "target_workspace_id": workspace }),
        ),
        (Method::POST, format!("/workspaces/{}/members", own.workspace), json!({ "user_id": user })),
        (Method::POST, "/api-keys".to_owned(), json!({ "workspace_id": workspace })),
        (Method::POST, format!("/admin/tenants/{other}/keys"), json!({ "user_id": user })),
        (
            Method::POST,
            "/tokens/scoped".to_owned(),
            json!({ "user_id": user, "workspace_id": own.workspace }),
        ),
        (
            Method::POST,
            "/tokens/scoped".to_owned(),
            json!({ "user_id": own.user, "workspace_id": workspace }),
        ),
    ] {
        let answer = server.as_key(&other_key, method, &path, body.clone()).await;
        assert_eq!(code(&answer), (404, "NOT_FOUND"), "{path} {body}");
    }
    let (_, deleted) =
        server.as_key(&other_key, Method::POST, "/snapshots/delete", json!({ "ids": [snapshot] })).await;
    assert_eq!(deleted["data"]["not_found"], json!([snapshot]));
    let grant = json!({ "tenant_id": one, "credits": 5 });
    let answer = server.as_key(&other_key, Method::POST, "/credits/grants", grant).await;
    assert_eq!(code(&answer), (403, "FORBIDDEN"));
    let answer = server.as_key(&other_key, Method::POST, "/admin/tenants", json!({ "name": "third" })).await;
    assert_eq!(code(&answer), (403, "FORBIDDEN"));
    for filter in
        [format!("workspace_id={workspace}"), format!("project_id={project}"), format!("search={computer}")]
    {
        let (_, listed) =
            server.as_key(&other_key, Method::GET, &format!("/computers?{filter}"), Value::Null).await;
        assert_eq!(listed["total"], json!(0), "{filter}");
    }
}

fn sorted<'a>(texts: &[&'a str]) -> Vec<&'a str> {
    let mut texts = texts.to_vec();
    texts.sort_unstable();
    texts
}

#[tokio::test]
async fn a_request_names_one_tenant_or_none() {
    let server = Server::new().await;
    let (one, one_key) = server.tenant("one").await;
    let home = server.home().await;
    let whoami = async |key: &str, headers: &[(&str, &str)]| {
        let reply: Reply = server.send(Method::GET, "/whoami", Some(key), headers, "").await;
        let body = reply.json();
        let said = if reply.status == 200 { &body["data"]["tenant_id"] } else { &body["code"] };
        (reply.status, text(said))
    };
    let is = |status: u16, said: &str| (status, said.to_owned());
    let own = server.key.as_str();
    assert_eq!(whoami(own, &[]).await, is(200, &home));
    assert_eq!(whoami(own, &[("x-miosa-tenant", "one")]).await, is(200, &one));
    assert_eq!(whoami(own, &[("x-miosa-tenant", &one)]).await, is(200, &one));
    assert_eq!(whoami(own, &[("x-miosa-tenant", "nobody")]).await, is(404, "ORG_NOT_FOUND"));
    let both = [("x-miosa-tenant", home.as_str()), ("x-miosa-tenant", one.as_str())];
    assert_eq!(whoami(own, &both).await, is(422, "TENANT_RESOLUTION_FAILED"));
    assert_eq!(whoami(own, &[("x-miosa-tenant", "")]).await, is(422, "TENANT_RESOLUTION_FAILED"));
    // Whether there is such a tenant is not told to who may not act there.
    assert_eq!(whoami(&one_key, &[("x-miosa-tenant", "one")]).await, is(200, &one));
    for name in [home.as_str(), "default", "nobody"] {
        assert_eq!(whoami(&one_key, &[("x-miosa-tenant", name)]).await, is(403, "INVALID_TENANT_CONTEXT"));
    }
    // An operator who acts in a tenant sees and makes what is there.
    let body = box_in(json!({})).to_string();
    let acting = [("x-miosa-tenant", "one")];
    let made = server.send(Method::POST, "/computers", Some(own), &acting, &body).await;
    assert_eq!((made.status, &made.json()["tenant_id"]), (201, &json!(one)));
    let (_, listed) = server.as_key(&one_key, Method::GET, "/computers", Value::Null).await;
    assert_eq!(
        (listed["total"].clone(), server.get("/computers").await.1["total"].clone()),
        (json!(1), json!(0))
    );
    let (_, tenants) = server.get("/platform/tenants").await;
    assert_eq!(tenants["data"].as_array().unwrap().len(), 2);
    let (_, tenants) = server.as_key(&one_key, Method::GET, "/platform/tenants", Value::Null).await;
    assert_eq!(tenants["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn computers_go_where_a_request_says_and_places_are_made_once() {
    let server = Server::new().await;
    let made = async |place: Value| {
        let (status, computer) = server.post("/computers", box_in(place.clone())).await;
        assert_eq!(status, 201, "{place}: {computer}");
        (text(&computer["workspace_id"]), text(&computer["project_id"]))
    };
    let plain = made(json!({})).await;
    let slug = json!({ "workspace_slug": "dr-smith-clinic", "workspace_name": "Dr. Smith Clinic",
        "project_slug": "records", "external_workspace_id": "clinic_1", "external_project_id": "p_1" });
    let clinic = made(slug.clone()).await;
    assert!(clinic.0 != plain.0 && clinic.1 != plain.1);
    for place in [
        slug,
        json!({ "workspace_slug": "dr-smith-clinic", "project_slug": "records" }),
        json!({ "workspace_id": clinic.0, "project_id": clinic.1 }),
        json!({ "project_id": clinic.1 }),
        json!({ "external_workspace_id": "clinic_1", "external_project_id": "p_1" }),
    ] {
        assert_eq!(made(place.clone()).await, clinic, "{place}");
    }
    let other = made(json!({ "external_workspace_id": "clinic_2" })).await;
    assert!(other.0 != clinic.0 && other.0 != plain.0);
    let (_, workspace) = server.get(&format!("/workspaces/{}", clinic.0)).await;
    let wanted = json!(["Dr. Smith Clinic", "dr-smith-clinic", "clinic_1", false]);
    let keys = ["name", "slug", "external_workspace_id", "is_default"];
    assert_eq!(json!(keys.map(|key| workspace[key].clone())), wanted);
    // A project of another workspace is not in this one.
    let astray = box_in(json!({ "workspace_id": plain.0, "project_id": clinic.1 }));
    assert_eq!(code(&server.post("/computers", astray).await), (422, "VALIDATION_FAILED"));
    let nowhere = box_in(json!({ "workspace_id": "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000" }));
    assert_eq!(code(&server.post("/computers", nowhere).await), (404, "NOT_FOUND"));
    for (filter, count) in [
        (format!("workspace_id={}", clinic.0), 6),
        (format!("project_id={}", clinic.1), 6),
        ("external_workspace_id=clinic_1".to_owned(), 3),
        ("external_project_id=p_1&external_workspace_id=clinic_1".to_owned(), 3),
        (format!("workspace_id={}&external_project_id=other", clinic.0), 0),
    ] {
        assert_eq!(server.get(&format!("/computers?{filter}")).await.1["total"], json!(count), "{filter}");
    }
    // The header says where what names nothing goes.
    let body = box_in(json!({})).to_string();
    for name in [clinic.0.as_str(), "dr-smith-clinic"] {
        let header = [("x-miosa-workspace", name)];
        let reply = server.send(Method::POST, "/computers", Some(&server.key), &header, &body).await;
        assert_eq!(reply.json()["workspace_id"], json!(clinic.0), "{name}");
    }
    // Deleting the workspace leaves its computers to the default one.
    assert_eq!(server.delete(&format!("/workspaces/{}", clinic.0)).await.0, 200);
    let (_, listed) = server.get(&format!("/computers?workspace_id={}", plain.0)).await;
    assert_eq!(listed["total"], json!(9));
    assert!(listed["data"].as_array().unwrap().iter().all(|row| row["project_id"] == json!(plain.1)));
    let answer = server.delete(&format!("/workspaces/{}", plain.0)).await;
    assert_eq!(code(&answer), (409, "RESOURCE_STATE"));
}

/// However many ask for it at once, a workspace is made once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_workspace_that_many_ask_for_is_made_once() {
    let server = std::sync::Arc::new(Server::new().await);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..12 {
        let server = server.clone();
        let place = match n % 2 {
            0 => json!({ "workspace_slug": "w", "project_slug": "p" }),
            _ => json!({ "external_workspace_id": "e", "external_project_id": "x" }),
        };
        tasks.spawn(async move { server.post("/computers", box_in(place)).await });
    }
    let made = tasks.join_all().await;
    assert!(made.iter().all(|(status, _)| *status == 201), "{made:?}");
    let places: BTreeSet<_> =
        made.iter().map(|(_, row)| (text(&row["workspace_id"]), text(&row["project_id"]))).collect();
    assert_eq!(places.len(), 2);
}

#[tokio::test]
async fn keys_hold_as_long_and_as_far_as_they_say() {
    let server = Server::new().await;
    let id = server.computer().await;
    let path = format!("/computers/{id}");
    let made = async |body: Value| {
        let key = server.made("/api-keys", body).await;
        (text(&key["id"]), text(&key["key"]))
    };
    let status = async |key: &str, method: Method, path: &str| {
        let answer = server.as_key(key, method, path, json!({})).await;
        (answer.0, answer.1["code"].as_str().unwrap_or_default().to_owned())
    };
    let refused = |status: u16, code: &str| (status, code.to_owned());
    // Scopes.
    let (reader, read) = made(json!({ "name": "reader", "scopes": ["computers:read"] })).await;
    assert_eq!(status(&read, Method::GET, &path).await.0, 200);
    assert_eq!(
        status(&read, Method::POST, &format!("{path}/stop")).await,
        refused(403, "insufficient_scope")
    );
    assert_eq!(status(&read, Method::GET, "/credits/balance").await, refused(403, "insufficient_scope"));
    // What drives the desktop is not only looking, whatever the method.
    for route in ["vnc-credentials", "embed", "exec/stream?command=true", "tunnel/80"] {
        let headers = [("upgrade", "websocket"), ("connection", "upgrade")];
        let reply = server.send(Method::GET, &format!("{path}/{route}"), Some(&read), &headers, "").await;
        assert_eq!((reply.status, &reply.json()["code"]), (403, &json!("insufficient_scope")), "{route}");
    }
    assert_eq!(status(&read, Method::GET, &format!("{path}/embed?view_only=true")).await.0, 200);
    let (_, none) = made(json!({ "scopes": [] })).await;
    assert_eq!(status(&none, Method::GET, "/whoami").await.0, 200);
    assert_eq!(status(&none, Method::GET, &path).await, refused(403, "insufficient_scope"));
    let nobody = "/computers/3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000";
    assert_eq!(status(&none, Method::GET, nobody).await, refused(404, "NOT_FOUND"));
    // A key makes none that can do more.
    let answer =
        server.as_key(&read, Method::POST, "/api-keys", json!({ "scopes": ["computers:read"] })).await;
    assert_eq!(code(&answer), (403, "insufficient_scope"));
    let (_, user) = made(json!({ "name": "user" })).await;
    let answer = server.as_key(&user, Method::POST, "/api-keys", json!({ "key_type": "admin" })).await;
    assert_eq!(code(&answer), (403, "FORBIDDEN"));
    for wrong in [
        json!({ "scopes": ["everything"] }),
        json!({ "allowed_ips": ["10.0.0.0/33"] }),
        json!({ "purpose": "optimal" }),
        json!({ "expires_at": "2020-01-01T00:00:00Z" }),
        json!({ "expires_in_days": 0 }),
        json!({ "key_type": "root" }),
    ] {
        assert_eq!(server.post("/api-keys", wrong.clone()).await.0, 422, "{wrong}");
    }
    // Changed, disabled, rotated, deleted: at once.
    let key = format!("/api-keys/{reader}");
    let (_, seen) = server.get(&key).await;
    assert_eq!(seen["data"]["scopes"], json!(["computers:read"]));
    assert!(seen["data"]["last_used_at"].is_string() && seen["data"].get("key").is_none());
    assert!(read.starts_with(seen["data"]["prefix"].as_str().unwrap()) && read.starts_with("msk_u_"));
    let disabled = server.call(Method::PATCH, &key, json!({ "status": "disabled" })).await;
    assert_eq!((disabled.0, &disabled.1["data"]["active"]), (200, &json!(false)));
    assert_eq!(status(&read, Method::GET, &path).await, refused(401, "invalid_token"));
    server.call(Method::PATCH, &key, json!({ "status": "active", "name": "r" })).await;
    assert_eq!(status(&read, Method::GET, &path).await.0, 200);
    let rotated = text(&server.made(&format!("{key}/rotate"), json!({})).await["key"]);
    assert_eq!(status(&read, Method::GET, &path).await, refused(401, "invalid_token"));
    assert_eq!(status(&rotated, Method::GET, &path).await.0, 200);
    assert_eq!(server.delete(&key).await.0, 200);
    assert_eq!(status(&rotated, Method::GET, &path).await, refused(401, "invalid_token"));
    assert_eq!(code(&server.delete(&key).await), (404, "NOT_FOUND"));
    // One key is left with which the server can be operated.
    let own = text(&server.get("/whoami").await.1["data"]["key_id"]);
    let own = format!("/api-keys/{own}");
    assert_eq!(code(&server.delete(&own).await), (409, "RESOURCE_STATE"));
    let disabled = server.call(Method::PATCH, &own, json!({ "status": "disabled" })).await;
    assert_eq!(code(&disabled), (409, "RESOURCE_STATE"));
    // A member's keys are theirs and the administrators'.
    let (_, member) = server.user("member", "member").await;
    let (mine, _) = made(json!({ "name": "mine" })).await;
    let path = format!("/api-keys/{mine}");
    assert_eq!(status(&member, Method::GET, &path).await, refused(403, "FORBIDDEN"));
    let (_, listed) = server.as_key(&member, Method::GET, "/api-keys", Value::Null).await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_that_expires_ends_and_leaves_none_behind() {
    let server = Server::new().await;
    let now = roost_api::Timestamp::now().as_micros();
    let soon = roost_api::Timestamp::from_micros(now + 1_500_000).unwrap();
    let short = server.made("/api-keys", json!({ "expires_at": soon })).await;
    let secret = text(&short["key"]);
    let later = json!({ "expires_in_days": 30 });
    let (status, child) = server.as_key(&secret, Method::POST, "/api-keys", later).await;
    assert_eq!((status, &child["data"]["expires_at"]), (201, &short["expires_at"]));
    let mut stream = server.listen_as(&secret, "/events/stream").await;
    // The stream ends when the key does, and then it is no key any more.
    assert_eq!(stream.next().await, None);
    let child = text(&child["data"]["key"]);
    for key in [secret, child] {
        let answer = server.as_key(&key, Method::GET, "/whoami", Value::Null).await;
        assert_eq!(code(&answer), (401, "invalid_token"));
    }
}

#[tokio::test]
async fn streams_end_with_the_key_and_with_the_right() {
    let server = Server::new().await;
    let id = server.computer().await;
    let computer = format!("/computers/{id}/events");
    let (user, member) = server.user("member", "member").await;
    let workspace = text(&server.get(&format!("/computers/{id}")).await.1["workspace_id"]);
    server.made(&format!("/workspaces/{workspace}/members"), json!({ "user_id": user })).await;
    let key = server.made("/api-keys", json!({})).await;
    let (kid, secret) = (text(&key["id"]), text(&key["key"]));
    let mut streams = vec![server.listen_as(&secret, "/events/stream").await];
    streams.push(server.listen_as(&secret, &computer).await);
    streams[1].next().await.unwrap();
    let mut members = server.listen_as(&member, &computer).await;
    members.next().await.unwrap();
    let mut stays = server.listen("/events/stream", None).await;
    assert_eq!(server.delete(&format!("/api-keys/{kid}")).await.0, 200);
    for stream in &mut streams {
        assert_eq!(stream.next().await, None);
    }
    assert_eq!(server.delete(&format!("/workspaces/{workspace}/members/{user}")).await.0, 200);
    assert_eq!(members.next().await, None);
    // Somebody else's goes on.
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    stays.until("computer.stopped").await;
}

/// A socket is open for as long as whoever opened it may use the computer.
#[tokio::test]
async fn sockets_end_with_the_key_and_with_the_right() {
    let server = Server::new().await;
    let _echo = Echo::of(&server).await;
    let (shell, tunnels) = (server.computer().await, server.computer().await);
    let guest = Guest::of(&server, &tunnels);
    let _programs = (guest.listen(5432).await, guest.listen_as_display().await);
    let address = on_the_network(&server).await;
    let open = async |key: &str| {
        let key = format!("Bearer {key}");
        let mut sockets = Vec::new();
        for path in [
            format!("/api/v1/computers/{shell}/exec/ws?command=cat"),
            format!("/api/v1/computers/{shell}/exec/spawn?command=cat"),
            format!("/ws/terminal/{shell}"),
            format!("/api/v1/computers/{tunnels}/tunnel/5432"),
            format!("/ws/vnc/{tunnels}"),
        ] {
            let socket = socket_with(address, &path, &[("authorization", &key)]).await;
            sockets.push((path.clone(), socket.unwrap_or_else(|status| panic!("{path}: {status}"))));
        }
        sockets
    };
    let end = async |sockets: Vec<(String, Socket)>| {
        for (path, mut socket) in sockets {
            let code = loop {
                match socket.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => break u16::from(frame.code),
                    Some(Ok(_)) => {}
                    other => panic!("{path}: {other:?}"),
                }
            };
            assert_eq!(code, 1008, "{path}");
        }
    };
    // A command that prints what it is given; it ends with its socket.
    let goes_on = async |socket: &mut Socket| {
        socket
            .send(Message::text(json!({ "type": "stdin", "data": "still here" }).to_string()))
            .await
            .unwrap();
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) if text.as_str().contains("still here") => return,
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let (user, member) = server.user("member", "member").await;
    let workspace = text(&server.get(&format!("/computers/{shell}")).await.1["workspace_id"]);
    let members = format!("/workspaces/{workspace}/members");
    server.made(&members, json!({ "user_id": user })).await;
    let key = server.made("/api-keys", json!({})).await;
    let (kid, secret) = (text(&key["id"]), text(&key["key"]));
    let (sockets, mut theirs, mut stay) = (open(&secret).await, open(&member).await, open(&server.key).await);
    let ticket = format!("/computers/{shell}/exec/stream");
    let (status, ticket) =
        server.as_key(&secret, Method::POST, &ticket, json!({ "command": "sleep 1000" })).await;
    assert_eq!(status, 202, "{ticket}");
    let url = text(&ticket["stream_url"]);
    let request = Request::get(&url[url.find("/api/v1").unwrap()..]).body(Body::empty()).unwrap();
    let mut lines = Listening::of(server.router.clone().oneshot(request).await.unwrap().into_body());
    assert!(lines.next_data().await.is_some());

    assert_eq!(server.delete(&format!("/api-keys/{kid}")).await.0, 200);
    end(sockets).await;
    while lines.next_data().await.is_some() {}
    // Somebody else's go on, and so do those of who may do more than before.
    goes_on(&mut stay[0].1).await;
    let other = text(&server.made("/workspaces", json!({ "name": "other" })).await["id"]);
    server.made(&format!("/workspaces/{other}/members"), json!({ "user_id": user })).await;
    goes_on(&mut theirs[0].1).await;
    // Who may only look any more uses nothing, and looks.
    server.made(&members, json!({ "user_id": user, "role": "viewer" })).await;
    end(theirs).await;
    let bearer = format!("Bearer {member}");
    let screen = format!("/ws/vnc/{tunnels}");
    let screen =
        (screen.clone(), socket_with(address, &screen, &[("authorization", &bearer)]).await.unwrap());
    assert_eq!(server.delete(&format!("{members}/{user}")).await.0, 200);
    end(vec![screen]).await;
    goes_on(&mut stay[0].1).await;
}

/// A computer that goes to a workspace where its user is not let in is closed for them.
#[tokio::test]
async fn sockets_end_when_the_computer_goes_elsewhere() {
    let server = Server::new().await;
    let _echo = Echo::of(&server).await;
    let address = on_the_network(&server).await;
    let (user, member) = server.user("member", "member").await;
    let (ward, lab) = (
        text(&server.made("/workspaces", json!({ "name": "ward" })).await["id"]),
        text(&server.made("/workspaces", json!({ "name": "lab" })).await["id"]),
    );
    server.made(&format!("/workspaces/{ward}/members"), json!({ "user_id": user })).await;
    let body = box_in(json!({ "workspace_id": ward, "project_slug": "p" }));
    let made = server.post("/computers?wait=true", body).await.1;
    let (computer, project) = (text(&made["id"]), text(&made["project_id"]));
    let path = format!("/api/v1/computers/{computer}/exec/ws?command=cat");
    let bearer = format!("Bearer {member}");
    let closed = async |mut socket: Socket| {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(Some(frame)))) => return u16::from(frame.code),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let moved = format!("/projects/{project}/move");
    let transferred = json!({ "resource_ids": [computer], "target_workspace_id": lab });
    for (route, body, back) in [
        (moved.clone(), json!({ "target_workspace_id": lab }), json!({ "target_workspace_id": ward })),
        (format!("/workspaces/{ward}/transfer"), transferred, Value::Null),
    ] {
        let socket = socket_with(address, &path, &[("authorization", &bearer)]).await.unwrap();
        server.made(&route, body).await;
        assert_eq!(closed(socket).await, 1008, "{route}");
        if !back.is_null() {
            server.made(&moved, back).await;
        }
    }
}

/// What a refused computer names by slug is not made without it.
#[tokio::test]
async fn a_computer_that_is_refused_leaves_nothing() {
    let server = Server::new().await;
    let workspaces = async || {
        let (_, listed) = server.get("/workspaces").await;
        let names: Vec<_> = listed["data"].as_array().unwrap().iter().map(|row| text(&row["slug"])).collect();
        names
    };
    let projects = async || server.get("/projects").await.1["total"].clone();
    let quota = json!({ "max_sandboxes": 0 });
    assert_eq!(server.call(Method::PUT, "/quotas/external/ann", quota).await.0, 200);
    let place = json!({ "workspace_slug": "clinic", "project_slug": "records" });
    let refused = [
        (json!({ "external_user_id": "ann" }), (403, "QUOTA_EXCEEDED")),
        (json!({ "selected_apps": ["no such app"] }), (422, "VALIDATION_FAILED")),
        (json!({ "project_id": "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000" }), (404, "NOT_FOUND")),
    ];
    for (reason, expected) in refused {
        let mut body = box_in(place.clone());
        body.as_object_mut().unwrap().extend(reason.as_object().unwrap().clone());
        assert_eq!(code(&server.post("/computers", body).await), expected, "{reason}");
        assert_eq!(
            (workspaces().await, projects().await),
            (vec!["default".to_owned()], json!(1)),
            "{reason}"
        );
    }
    // The policy of a workspace that is there refuses a project in it.
    let made = server.post("/computers", box_in(place)).await.1;
    let policy = format!("/workspaces/{}/policy", text(&made["workspace_id"]));
    assert_eq!(server.call(Method::PUT, &policy, json!({ "max_computers": 1 })).await.0, 200);
    let before = projects().await;
    let body = box_in(json!({ "workspace_slug": "clinic", "project_slug": "another" }));
    assert_eq!(code(&server.post("/computers", body).await), (403, "QUOTA_EXCEEDED"));
    assert_eq!(projects().await, before);
}

/// Two customers of one tenant, each with a key of their own.
#[tokio::test]
async fn confined_keys_reach_nothing_outside() {
    let server = Server::new().await;
    let made = async |place: Value| {
        let (status, computer) = server.post("/computers?wait=true", box_in(place)).await;
        assert_eq!(status, 201, "{computer}");
        computer
    };
    let ann = made(json!({ "external_user_id": "ann", "workspace_slug": "a" })).await;
    let bob = made(json!({ "external_user_id": "bob", "workspace_slug": "b" })).await;
    let user = server.made("/api-keys/scoped", json!({ "external_user_id": "ann" })).await;
    assert_eq!(user["external_user_id"], json!("ann"));
    let workspace = server.made("/api-keys", json!({ "workspace_id": ann["workspace_id"] })).await;
    for key in [&user, &workspace] {
        let key = text(&key["key"]);
        let (_, listed) = server.as_key(&key, Method::GET, "/computers", Value::Null).await;
        assert_eq!((&listed["total"], &listed["data"][0]["id"]), (&json!(1), &ann["id"]));
        for (computer, status) in [(&ann, 200), (&bob, 403)] {
            let path = format!("/computers/{}", text(&computer["id"]));
            assert_eq!(server.as_key(&key, Method::GET, &path, Value::Null).await.0, status);
        }
        for (method, path) in [
            (Method::GET, "/api-keys"),
            (Method::POST, "/api-keys"),
            (Method::GET, "/credits/balance"),
            (Method::GET, "/credits/transactions"),
            (Method::POST, "/workspaces"),
            (Method::POST, "/admin/tenants"),
        ] {
            let (status, answer) = server.as_key(&key, method, path, json!({ "name": "n" })).await;
            assert_eq!(status, 403, "{path}: {answer}");
        }
        // Events and usage are of that one computer.
        let mut stream = server.listen_as(&key, "/events/stream").await;
        for computer in [&bob, &ann] {
            for verb in ["stop", "start"] {
                server.post(&format!("/computers/{}/{verb}", text(&computer["id"])), json!({})).await;
            }
        }
        for heard in stream.until("computer.stopped").await {
            assert_eq!(heard.data["computer_id"], ann["id"]);
        }
        let (_, sessions) = server.as_key(&key, Method::GET, "/usage/sessions", Value::Null).await;
        let rows = sessions["data"].as_array().unwrap();
        assert!(!rows.is_empty() && rows.iter().all(|row| row["computer_id"] == ann["id"]));
    }
    // What they make is inside too.
    let (user, workspace) = (text(&user["key"]), text(&workspace["key"]));
    let (_, computer) = server.as_key(&user, Method::POST, "/computers", box_in(json!({}))).await;
    assert_eq!(computer["external_user_id"], json!("ann"));
    let (_, computer) = server.as_key(&workspace, Method::POST, "/computers", box_in(json!({}))).await;
    assert_eq!(computer["workspace_id"], ann["workspace_id"]);
    let outside = box_in(json!({ "external_user_id": "bob" }));
    assert_eq!(code(&server.as_key(&user, Method::POST, "/computers", outside).await), (403, "FORBIDDEN"));
    for outside in [json!({ "workspace_slug": "b" }), json!({ "workspace_slug": "new" })] {
        let answer = server.as_key(&workspace, Method::POST, "/computers", box_in(outside)).await;
        assert_eq!(code(&answer), (403, "WORKSPACE_FORBIDDEN"));
    }
    // Names of other customers are not for an end user.
    assert_eq!(server.as_key(&user, Method::GET, "/workspaces", Value::Null).await.0, 403);
    let (_, seen) = server.as_key(&workspace, Method::GET, "/workspaces", Value::Null).await;
    assert_eq!(seen["data"].as_array().unwrap().len(), 1);
}

/// An answer may hold a secret: who sends the same request with the same key of idempotency does not get it.
#[tokio::test]
async fn a_kept_answer_is_for_the_key_that_asked() {
    let server = Server::new().await;
    let (_, colleague) = server.user("colleague", "admin").await;
    let send = async |key: &str| {
        let headers = [("idempotency-key", "k-1")];
        server.send(Method::POST, "/api-keys", Some(key), &headers, r#"{ "name": "n" }"#).await
    };
    let first = send(&server.key).await;
    let again = send(&server.key).await;
    assert_eq!((first.status, &first.body), (201, &again.body));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let theirs = send(&colleague).await;
    assert_eq!((theirs.status, theirs.header("idempotency-replayed")), (201, None));
    assert_ne!(theirs.json()["data"]["key"], first.json()["data"]["key"]);
}

#[tokio::test]
async fn tenants_and_users_have_a_beginning_and_an_end() {
    let server = Server::new().await;
    let (one, key) = server.tenant("One Clinic").await;
    let path = format!("/admin/tenants/{one}");
    assert_eq!(server.get(&path).await.1["data"]["slug"], json!("one-clinic"));
    assert_eq!(server.get("/admin/tenants/one-clinic").await.1["data"]["id"], json!(one));
    assert_eq!(
        server.made("/admin/tenants", json!({ "name": "One Clinic" })).await["slug"],
        json!("one-clinic-2")
    );
    let taken = json!({ "name": "x", "slug": "one-clinic" });
    assert_eq!(code(&server.post("/admin/tenants", taken).await), (409, "NAME_TAKEN"));
    // Its administrator makes users and keys, and is nobody elsewhere.
    let users = format!("{path}/users");
    let ann = json!({ "name": "Ann", "email": "ann@example.org", "role": "admin" });
    let (status, made) = server.as_key(&key, Method::POST, &users, ann.clone()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(code(&server.as_key(&key, Method::POST, &users, ann).await), (409, "NAME_TAKEN"));
    let ann = format!("{users}/{}", text(&made["data"]["id"]));
    let (_, listed) = server.as_key(&key, Method::GET, &users, Value::Null).await;
    let owner =
        listed["data"].as_array().unwrap().iter().find(|user| user["role"] == json!("owner")).unwrap();
    let owner = format!("{users}/{}", text(&owner["id"]));
    assert_eq!(code(&server.delete(&owner).await), (409, "RESOURCE_STATE"), "somebody owns a tenant");
    let change = server.call(Method::PATCH, &owner, json!({ "role": "member" })).await;
    assert_eq!(code(&change), (409, "RESOURCE_STATE"));
    let body = json!({ "user_id": made["data"]["id"], "key_type": "admin" });
    let (_, made) = server.as_key(&key, Method::POST, &format!("{path}/keys"), body).await;
    let admin = text(&made["data"]["key"]);
    // An admin is no owner, and makes none.
    let answer = server.as_key(&admin, Method::POST, &users, json!({ "name": "x", "role": "owner" })).await;
    assert_eq!(code(&answer), (403, "FORBIDDEN"));
    assert_eq!(code(&server.as_key(&admin, Method::DELETE, &owner, Value::Null).await), (403, "FORBIDDEN"));
    // A user who is removed is out at once; what they made stays.
    let (_, computer) = server.as_key(&admin, Method::POST, "/computers?wait=true", box_in(json!({}))).await;
    assert_eq!(server.as_key(&key, Method::DELETE, &ann, Value::Null).await.0, 200);
    assert_eq!(server.as_key(&admin, Method::GET, "/whoami", Value::Null).await.0, 401);
    let computer = format!("/computers/{}", text(&computer["id"]));
    assert_eq!(server.as_key(&key, Method::GET, &computer, Value::Null).await.0, 200);
    // A tenant goes when it is empty; the first one stays.
    assert_eq!(code(&server.delete(&path).await), (409, "RESOURCE_STATE"));
    assert_eq!(server.as_key(&key, Method::DELETE, &computer, Value::Null).await.0, 200);
    assert_eq!(code(&server.as_key(&key, Method::DELETE, &path, Value::Null).await), (403, "FORBIDDEN"));
    assert_eq!(server.delete(&path).await.0, 200);
    assert_eq!(server.as_key(&key, Method::GET, "/whoami", Value::Null).await.0, 401);
    assert_eq!(code(&server.get(&path).await), (404, "NOT_FOUND"));
    let home = server.home().await;
    assert_eq!(code(&server.delete(&format!("/admin/tenants/{home}")).await), (409, "RESOURCE_STATE"));
}

#[tokio::test]
async fn workspaces_and_projects_are_as_documented() {
    let server = Server::new().await;
    let body = json!({ "name": "Clinic", "external_workspace_id": "c_1", "metadata": { "n": 1 } });
    let (status, clinic) = server.post("/workspaces", body.clone()).await;
    assert_eq!((status, &clinic["slug"], &clinic["metadata"]), (201, &json!("clinic"), &json!({ "n": "1" })));
    assert!(clinic.get("reused").is_none());
    let (status, again) = server.post("/workspaces", body).await;
    assert_eq!((status, &again["id"], &again["reused"]), (200, &clinic["id"], &json!(true)));
    let answer = server.post("/workspaces", json!({ "name": "Clinic" })).await;
    assert_eq!(code(&answer), (409, "WORKSPACE_NAME_EXISTS"));
    assert_eq!(answer.1["error"]["existing"]["id"], clinic["id"]);
    let twice = json!({ "name": "Clinic", "allow_duplicate_name": true });
    assert_eq!(server.post("/workspaces", twice).await.1["slug"], json!("clinic-2"));
    assert_eq!(code(&server.post("/workspaces", json!({})).await), (400, "MISSING_PARAM"));
    let (_, listed) = server.get("/workspaces?per_page=2").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    assert_eq!((&listed["meta"]["total"], &listed["meta"]["total_pages"]), (&json!(3), &json!(2)));
    let path = format!("/workspaces/{}", text(&clinic["id"]));
    let changed = json!({ "name": "Other", "description": "d" });
    let (_, changed) = server.call(Method::PATCH, &path, changed).await;
    assert_eq!(
        (&changed["name"], &changed["description"], &changed["slug"]),
        (&json!("Other"), &json!("d"), &json!("clinic"))
    );
    let (_, changed) = server.call(Method::PATCH, &path, json!({ "description": null })).await;
    assert_eq!((&changed["name"], &changed["description"]), (&json!("Other"), &Value::Null));
    let (_, changed) = server.call(Method::PUT, &format!("{path}/settings"), json!({ "max": 3 })).await;
    assert_eq!(changed["settings"], json!({ "max": 3 }));

    let body = json!({ "name": "Records", "external_workspace_id": "c_1" });
    let records = server.made("/projects", body).await;
    assert_eq!((&records["workspace_id"], &records["slug"]), (&clinic["id"], &json!("records")));
    let again = json!({ "name": "R", "slug": "records", "workspace_slug": "clinic" });
    assert_eq!(code(&server.post("/projects", again).await), (409, "NAME_TAKEN"));
    let project = format!("/projects/{}", text(&records["id"]));
    let (_, computer) =
        server.post("/computers?wait=true", box_in(json!({ "project_id": records["id"] }))).await;
    assert_eq!(server.get(&format!("{project}/summary")).await.1["data"]["computers"]["running"], json!(1));
    let stats = server.get(&format!("{path}/stats")).await.1["data"].clone();
    assert_eq!((&stats["computers"]["total"], &stats["members"]), (&json!(1), &json!(1)));
    let (_, inside) = server.get(&format!("{path}/computers")).await;
    assert_eq!(inside["computers"][0]["id"], computer["id"]);
    // It takes its computers with it.
    let target = text(&server.get("/whoami").await.1["data"]["workspace_id"]);
    let (status, _) = server.post(&format!("{project}/move"), json!({ "target_workspace_id": target })).await;
    assert_eq!(status, 200);
    let path = format!("/computers/{}", text(&computer["id"]));
    assert_eq!(server.get(&path).await.1["workspace_id"], json!(target));
    assert_eq!(server.delete(&project).await.0, 200);
    let (_, left) = server.get(&path).await;
    assert!(left["workspace_id"] == json!(target) && left["project_id"] != records["id"]);
    let default = format!("/projects/{}", text(&left["project_id"]));
    assert_eq!(code(&server.delete(&default).await), (409, "RESOURCE_STATE"));
}
