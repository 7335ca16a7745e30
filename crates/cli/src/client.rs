//! The HTTP client of the command line.

use anyhow::{Context, anyhow, bail};
use reqwest::{Method, Response};
use roost_api::{Computer, ComputerId};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServerArgs {
    /// Address of the server [default: from the configuration file]
    #[arg(long, global = true, env = "ROOST_URL", value_name = "URL")]
    url: Option<String>,

    /// API key [default: from the configuration file]
    #[arg(long, global = true, env = "ROOST_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// Without a trailing slash.
    url: String,
    key: String,
}

impl Client {
    pub(crate) fn new(args: &ServerArgs) -> anyhow::Result<Self> {
        let config = config::read()?;
        let from_config = |value: fn(config::Config) -> String| config.clone().map(value);
        let missing = |what: &str| {
            let path = config::path().map_or_else(|_| "the configuration file".to_owned(), String::from);
            anyhow!(
                "no {what} is known: run `cargo xtask up`, or set ROOST_URL and ROOST_API_KEY (looked in {path})"
            )
        };
        let url = args.url.clone().or_else(|| from_config(|config| config.url));
        let url = url.ok_or_else(|| missing("server"))?.trim_end_matches('/').to_owned();
        let key = args.api_key.clone().or_else(|| from_config(|config| config.api_key));
        let key = key.ok_or_else(|| missing("API key"))?;
        if !url.starts_with("http://") {
            bail!("{url:?} is not an http:// address; this command line does not speak TLS yet");
        }
        Ok(Self { http: reqwest::Client::new(), url, key })
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Where the server's sockets are.
    pub(crate) fn socket_origin(&self) -> String {
        self.url.replacen("http", "ws", 1)
    }

    /// The address of a WebSocket route.
    pub(crate) fn socket_url(&self, path: &str) -> String {
        format!("{}/api/v1{path}", self.socket_origin())
    }

    /// A request that is not sent yet.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}/api/v1{path}", self.url)).bearer_auth(&self.key)
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Response> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| {
            format!(
                "failed to reach the server at {}: is it running? start it with `cargo xtask up`",
                self.url
            )
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        Err(refusal(status.as_u16(), &text))
    }

    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<T> {
        let response = self.send(method, path, body).await?;
        response
            .json()
            .await
            .with_context(|| format!("the answer to {path} is not what this version expects"))
    }

    pub(crate) async fn computers(&self) -> anyhow::Result<Vec<Computer>> {
        let list: Value = self.call(Method::GET, "/computers", None).await?;
        let rows = list.get("computers").cloned().unwrap_or_default();
        serde_json::from_value(rows).context("the list of computers is not what this version expects")
    }

    /// The computer a person means: by id, slug or name.
    pub(crate) async fn find(&self, name: &str) -> anyhow::Result<Computer> {
        if let Ok(id) = name.parse::<ComputerId>() {
            return self.call(Method::GET, &format!("/computers/{id}"), None).await;
        }
        let computers = self.computers().await?;
        if let Some(computer) = computers.iter().find(|computer| computer.slug == name) {
            return Ok(computer.clone());
        }
        let mut named: Vec<&Computer> = computers.iter().filter(|computer| computer.name == name).collect();
        match (named.pop(), named.is_empty()) {
            (Some(computer), true) => Ok(computer.clone()),
            (Some(_), false) => {
                bail!("several computers are named {name:?}; use the slug or id from `roost list`")
            }
            (None, _) => bail!("there is no computer {name:?}; `roost list` shows what there is"),
        }
    }
}

/// The server's error as a person reads it.
pub(crate) fn refusal(status: u16, body: &str) -> anyhow::Error {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    match (text("message"), text("code"), text("request_id")) {
        (Some(message), Some(code), Some(request)) => {
            anyhow!("{message} ({status} {code}, request {request})")
        }
        _ => anyhow!("the server answered {status}"),
    }
}
