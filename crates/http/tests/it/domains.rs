//! Domains of tenants, workspaces and projects: when they count, for what, and that nobody gets in by another's.

use axum::http::Method;
use serde_json::{Value, json};

use crate::preview::{access, expose, furnished, look, path_of, program};
use crate::programs::Guest;
use crate::support::Server;
use crate::tenancy::{box_in, code, text};

const TENANT: &str = "/tenant/preview-domain";
const HERE: [u8; 4] = [127, 0, 0, 1];

impl Server {
    /// Gives the owner at `path` a domain that leads here; what verifying it answers.
    async fn verified(&self, path: &str, domain: &str) -> Value {
        self.names.lead(domain, HERE);
        let (status, set) = self.call(Method::PUT, path, json!({ "domain": domain })).await;
        assert_eq!((status, &set["data"]["domain"]), (200, &json!(domain)), "{set}");
        let method = if path == TENANT { Method::POST } else { Method::GET };
        let (status, verified) = self.call(method, &format!("{path}/verify"), json!({})).await;
        assert_eq!(status, 200, "{verified}");
        assert!(verified["data"]["verified_at"].is_string(), "{verified}");
        verified["data"].clone()
    }

    async fn domain_of(&self, computer: &str) -> Value {
        self.get(&format!("/computers/{computer}")).await.1["preview_domain"].clone()
    }
}

/// Whether the program of [`furnished`] answers there.
async fn answers(server: &Server, host: &str) -> bool {
    look(server, host, "/", &[]).await.body.contains(r#""program":"three""#)
}

#[tokio::test]
async fn a_domain_counts_once_it_leads_here_and_until_it_is_taken_away() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    let host = "3000-box.sandbox.shop.example:1";
    let none = json!({ "domain": null, "cname_target": "localhost", "verified_at": null });
    assert_eq!(server.get(TENANT).await, (200, json!({ "data": none })));
    let verify = async || server.post(&format!("{TENANT}/verify"), json!({})).await;
    assert_eq!(code(&verify().await), (404, "NOT_FOUND"));

    let (status, set) = server.call(Method::PUT, TENANT, json!({ "preview_domain": "Shop.Example." })).await;
    let waiting = json!({ "domain": "shop.example", "cname_target": "localhost", "verified_at": null });
    assert_eq!((status, &set["data"]), (200, &waiting));
    for (address, problem) in
        [(None, "has no address"), (Some([192, 0, 2, 1]), "does not lead to localhost alone")]
    {
        if let Some(address) = address {
            server.names.lead("shop.example", address);
        }
        let (status, answer) = verify().await;
        assert_eq!((status, &answer["data"]["verified_at"]), (200, &Value::Null));
        assert!(text(&answer["data"]["problem"]).contains(problem), "{answer}");
        assert!(!answers(&server, host).await);
    }
    let verified = server.verified(TENANT, "shop.example").await;
    assert!(verified.get("problem").is_none(), "{verified}");
    assert!(answers(&server, host).await);
    assert!(answers(&server, "box.sandbox.SHOP.example").await, "the only port is the one it is known for");
    assert!(answers(&server, "3000-box.sandbox.localhost:1").await, "the server's own goes on");

    let (_, computer) = server.get(&format!("/computers/{id}")).await;
    assert_eq!(computer["preview_domain"], json!("shop.example:1"));
    assert_eq!(computer["sandbox_url"], json!("http://box.sandbox.shop.example:1"));
    let (_, ports) = server.get(&format!("/computers/{id}/ports")).await;
    assert_eq!(ports["data"][0]["url"], json!("http://3000-box.sandbox.shop.example:1"));
    // The desktop stays where it is.
    let (_, urls) = server.get(&format!("/computers/{id}/urls")).await;
    assert!(text(&urls["desktop_url"]).contains("box.computer.localhost:1"), "{urls}");

    // Where it leads is asked once; what was verified goes on to count.
    server.names.lead("shop.example", [192, 0, 2, 1]);
    let (_, again) = verify().await;
    assert!(again["data"]["verified_at"].is_string() && again["data"]["problem"].is_string(), "{again}");
    assert!(answers(&server, host).await);

    let (status, removed) = server.delete(TENANT).await;
    assert_eq!((status, &removed["data"]), (200, &none));
    assert!(!answers(&server, host).await);
    assert_eq!(server.domain_of(&id).await, json!("localhost:1"));
    assert_eq!(server.delete(TENANT).await.0, 200, "there is none, as was asked");
}

#[tokio::test]
async fn the_nearest_domain_counts_and_leads_to_what_is_its_owners() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    let computer = server.get(&format!("/computers/{id}")).await.1;
    let workspace = format!("/workspaces/{}/preview-domain", text(&computer["workspace_id"]));
    let project = format!("/projects/{}/preview-domain", text(&computer["project_id"]));
    let body = box_in(json!({ "project_slug": "other", "name": "den" }));
    let (status, made) = server.post("/computers?wait=true", body).await;
    assert_eq!(status, 201, "{made}");
    let other = text(&made["id"]);
    Guest::of(&server, &other).serve(3000, program("three")).await;
    expose(&server, &other, 3000, "public").await;
    for (path, domain, others) in [
        (TENANT, "tenant.example", "tenant.example:1"),
        (workspace.as_str(), "workspace.example", "workspace.example:1"),
        (project.as_str(), "project.example", "workspace.example:1"),
    ] {
        server.verified(path, domain).await;
        assert_eq!(server.domain_of(&id).await, json!(format!("{domain}:1")));
        assert_eq!(server.domain_of(&other).await, json!(others));
        assert!(answers(&server, &format!("3000-box.sandbox.{domain}")).await, "{domain}");
        let is_theirs = domain != "project.example";
        assert_eq!(answers(&server, &format!("3000-den.sandbox.{domain}")).await, is_theirs, "{domain}");
    }
    // It stays when another one is nearer, and the next one counts when that goes.
    assert!(answers(&server, "3000-box.sandbox.tenant.example").await);
    for (path, next) in [(&project, "workspace.example:1"), (&workspace, "tenant.example:1")] {
        assert_eq!(server.delete(path).await.0, 200);
        assert_eq!(server.domain_of(&id).await, json!(next));
    }
    assert!(!answers(&server, "3000-box.sandbox.project.example").await);
}

#[tokio::test]
async fn no_domain_leads_to_another_tenants_computer() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    server.verified(TENANT, "shop.example").await;
    let (_, key) = server.tenant("other").await;
    let body = box_in(json!({ "name": "den" }));
    let (status, made) = server.as_key(&key, Method::POST, "/computers?wait=true", body).await;
    assert_eq!(status, 201, "{made}");
    let theirs = text(&made["id"]);
    Guest::of(&server, &theirs).serve(3000, program("three")).await;
    let port = json!({ "port": 3000, "visibility": "public" });
    server.as_key(&key, Method::POST, &format!("/computers/{theirs}/ports"), port).await;
    assert!(answers(&server, "3000-den.sandbox.localhost:1").await);
    let bearer = format!("Bearer {key}");
    for headers in [&[][..], &[("authorization", bearer.as_str())]] {
        let reply = look(&server, "3000-den.sandbox.shop.example", "/", headers).await;
        assert_eq!(reply.status, 404, "{}", reply.body);
    }

    // They cannot have it, nor a name below it that an entry for all names brings here; their own they can.
    let put = async |domain: &str| {
        let set = server.as_key(&key, Method::PUT, TENANT, json!({ "domain": domain })).await;
        assert_eq!(set.0, 200, "{}", set.1);
        server.as_key(&key, Method::POST, &format!("{TENANT}/verify"), json!({})).await
    };
    for taken in ["shop.example", "box.sandbox.shop.example"] {
        assert_eq!(code(&put(taken).await), (409, "NAME_TAKEN"), "{taken}");
        assert!(!answers(&server, "3000-den.sandbox.box.sandbox.shop.example").await);
    }
    server.names.lead("den.example", HERE);
    assert!(put("den.example").await.1["data"]["verified_at"].is_string());
    assert!(answers(&server, "3000-den.sandbox.den.example").await);
    let reply = look(&server, "3000-box.sandbox.den.example", "/", &[]).await;
    assert_eq!(reply.status, 404, "{}", reply.body);
    // What its tenant leaves is free.
    assert_eq!(server.delete(TENANT).await.0, 200);
    assert!(put("shop.example").await.1["data"]["verified_at"].is_string());
    assert!(!answers(&server, "3000-box.sandbox.shop.example").await);
}

#[tokio::test]
async fn a_session_is_of_its_own_host() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "private").await;
    server.verified(TENANT, "shop.example").await;
    let host = "3000-box.sandbox.shop.example:1";
    assert_eq!(look(&server, host, "/", &[]).await.status, 401);
    let ways = access(&server, &id, 3000).await;
    assert!(text(&ways["session_url"]).starts_with("http://3000-box.sandbox.shop.example:1/.roost/"));
    let begun = look(&server, host, path_of(&ways["session_url"]), &[]).await;
    assert_eq!(begun.status, 303, "{}", begun.body);
    let cookie = begun.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let asks = async |origin: &str| {
        look(&server, host, "/", &[("cookie", cookie.as_str()), ("origin", origin)]).await.status
    };
    assert_eq!(asks("http://3000-box.sandbox.shop.example:1").await, 200);
    assert_eq!(asks("http://3000-den.sandbox.shop.example:1").await, 401);
    assert_eq!(asks("http://3000-box.sandbox.localhost:1").await, 401);
}

#[tokio::test]
async fn a_domain_is_set_by_who_administers_its_owner() {
    let server = Server::new().await;
    let (user, member) = server.user("member", "member").await;
    let workspace = text(&server.made("/workspaces", json!({ "name": "ward" })).await["id"]);
    server.made(&format!("/workspaces/{workspace}/members"), json!({ "user_id": user })).await;
    let project = json!({ "name": "p", "workspace_id": workspace });
    let project = text(&server.made("/projects", project).await["id"]);
    let reading = text(&server.made("/api-keys", json!({ "scopes": ["computers:read"] })).await["key"]);
    let places =
        [format!("/workspaces/{workspace}/preview-domain"), format!("/projects/{project}/preview-domain")];
    for path in &places {
        server.verified(path, "ward.example").await;
        let body = json!({ "domain": "other.example" });
        for (method, path) in [
            (Method::PUT, path.clone()),
            (Method::DELETE, path.clone()),
            (Method::GET, format!("{path}/verify")),
        ] {
            let answer = server.as_key(&member, method.clone(), &path, body.clone()).await;
            assert_eq!(code(&answer), (403, "WORKSPACE_FORBIDDEN"), "{method} {path}");
            let answer = server.as_key(&reading, method.clone(), &path, body.clone()).await;
            assert_eq!(code(&answer), (403, "insufficient_scope"), "{method} {path}");
        }
        let (status, read) = server.as_key(&member, Method::GET, path, Value::Null).await;
        assert_eq!((status, &read["data"]["domain"]), (200, &json!("ward.example")));
    }
    for (method, path) in [(Method::PUT, TENANT), (Method::DELETE, TENANT)] {
        let answer = server.as_key(&member, method, path, json!({ "domain": "other.example" })).await;
        assert_eq!(code(&answer), (403, "FORBIDDEN"));
    }
    let confined = json!({ "name": "k", "workspace_id": workspace });
    let confined = text(&server.made("/api-keys", confined).await["key"]);
    assert_eq!(server.as_key(&confined, Method::GET, TENANT, Value::Null).await.0, 403);
    for (body, expected) in [
        (json!({}), (400, "MISSING_PARAM")),
        (json!({ "domain": "" }), (422, "VALIDATION_FAILED")),
        (json!({ "domain": "https://shop.example" }), (422, "VALIDATION_FAILED")),
        (json!({ "domain": "*.shop.example" }), (422, "VALIDATION_FAILED")),
        (json!({ "domain": "192.0.2.1" }), (422, "VALIDATION_FAILED")),
        (json!({ "domain": "a.localhost" }), (422, "VALIDATION_FAILED")),
    ] {
        let answer = server.call(Method::PUT, TENANT, body.clone()).await;
        assert_eq!(code(&answer), expected, "{body}: {}", answer.1);
    }
}
