//! Speaks to the addresses of webhooks.
//!
//! The address that a name leads to is looked at before anything is sent there, and the connection goes to that very
//! address: whoever may make a webhook must not reach what only this host reaches. Redirections are not followed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use roost_control::Outbound;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// As much of an answer as is kept.
const MOST_ANSWER: usize = 1024;
const MOST_HEADERS: usize = 20;
const MOST_HEADER_BYTES: usize = 4096;
/// What the connection and the signature need themselves.
const OURS: [&str; 8] =
    ["host", "connection", "content-length", "content-type", "transfer-encoding", "upgrade", "te", "trailer"];

/// Where webhooks may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// `https` to public addresses.
    Public,
    /// Also `http`, and whatever this host reaches.
    Anywhere,
}

pub struct Outgoing {
    reach: Reach,
    tls: TlsConnector,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("reach", &self.reach).finish_non_exhaustive()
    }
}

struct Target {
    is_tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Outgoing {
    /// Trusts whom the host trusts.
    pub fn new(reach: Reach) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(error = error as &dyn std::error::Error, "failed to read the host's certificates");
        }
        roots.add_parsable_certificates(found.certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { reach, tls: TlsConnector::from(Arc::new(config)) })
    }

    fn target(&self, url: &str) -> Result<Target, String> {
        let uri: Uri = url.parse().map_err(|_| "not an address such as https://example.org/hook")?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err("not an address such as https://example.org/hook".to_owned());
        };
        let is_tls = match (scheme, self.reach) {
            ("https", _) => true,
            ("http", Reach::Anywhere) => false,
            _ => return Err("must begin with https://".to_owned()),
        };
        if authority.as_str().contains('@') {
            return Err("must hold no user name or password; use headers".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if let Ok(address) = host.parse::<IpAddr>() {
            self.allow(address)?;
        }
        Ok(Target {
            is_tls,
            host,
            port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            authority: authority.to_string(),
            path: uri.path_and_query().map_or("/".to_owned(), ToString::to_string),
        })
    }

    fn allow(&self, address: IpAddr) -> Result<(), String> {
        if self.reach == Reach::Anywhere || is_public(address) {
            return Ok(());
        }
        Err(format!("leads to {address}, which is not a public address"))
    }

    async fn connect(&self, target: &Target) -> Result<TcpStream, String> {
        let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|error| format!("failed to find {}: {error}", target.host))?.collect();
        let mut problem = format!("{} has no address", target.host);
        for address in found {
            match self.allow(address.ip()) {
                Ok(()) => match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => problem = format!("failed to connect to {}: {error}", target.host),
                },
                Err(refused) => problem = refused,
            }
        }
        Err(problem)
    }
}

#[async_trait]
impl Outbound for Outgoing {
    fn check(&self, url: &str) -> Result<(), String> {
        self.target(url).map(|_| ())
    }

    fn check_headers(&self, headers: &BTreeMap<String, String>) -> Result<(), String> {
        let size: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if headers.len() > MOST_HEADERS || size > MOST_HEADER_BYTES {
            return Err(format!("more than {MOST_HEADERS} headers, or than {MOST_HEADER_BYTES} bytes"));
        }
        for (name, value) in headers {
            let lower = name.to_ascii_lowercase();
            if OURS.contains(&lower.as_str()) || lower.starts_with("x-miosa-") {
                return Err(format!("{name} is set by the server"));
            }
            let fits = HeaderName::try_from(name).is_ok() && HeaderValue::try_from(value).is_ok();
            fits.then_some(()).ok_or_else(|| format!("{name:?} is not a header that can be sent"))?;
        }
        Ok(())
    }

    async fn post(
        &self,
        url: &str,
        headers: &BTreeMap<String, String>,
        body: &str,
    ) -> Result<(u16, String), String> {
        let target = self.target(url)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&target.path)
            .header(header::HOST, &target.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("roost/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body.to_owned())).map_err(|error| error.to_string())?;
        let stream = self.connect(&target).await?;
        if !target.is_tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(target.host.clone()).map_err(|error| error.to_string())?;
        let stream = self.tls.connect(name, stream).await;
        exchange(stream.map_err(|error| format!("failed to speak TLS to {}: {error}", target.host))?, request)
            .await
    }
}

async fn exchange<S>(stream: S, request: Request<Body>) -> Result<(u16, String), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| format!("the connection broke: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let speaking = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut text = Vec::new();
        while text.len() < MOST_ANSWER {
            // What of the text did not arrive is not worth another delivery.
            let Some(Ok(frame)) = body.frame().await else { break };
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
        text.truncate(MOST_ANSWER);
        Ok((status, String::from_utf8_lossy(&text).replace('\0', "\u{fffd}")))
    };
    tokio::pin!(connection);
    tokio::pin!(speaking);
    // The connection goes with this future, however it ends.
    tokio::select! {
        biased;
        spoken = &mut speaking => spoken,
        ended = &mut connection => match ended {
            Ok(()) => speaking.await,
            Err(error) => Err(broken(error)),
        },
    }
}

/// Whether an address is one of the open internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || a == 0
        || a >= 224
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b));
    !is_special
}

/// What is assigned (2000::/3), without documentation, and without ways into other networks (Teredo, 6to4).
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    (0x2000..0x4000).contains(&a) && a != 0x2002 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses() {
        for text in ["1.1.1.1", "172.15.0.1", "100.63.0.1", "2606:4700::1", "2a00::1"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:0::1",
            "2001:db8::1",
            "ff02::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn targets() {
        let public = Outgoing::new(Reach::Public).unwrap();
        assert!(public.check("https://example.org/hook?a=b").is_ok());
        assert!(public.check("https://1.1.1.1:8443/").is_ok());
        for url in [
            "",
            "example.org",
            "http://example.org",
            "ftp://example.org",
            "https://u:p@example.org",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/latest",
        ] {
            assert!(public.check(url).is_err(), "{url}");
        }
        let anywhere = Outgoing::new(Reach::Anywhere).unwrap();
        assert!(anywhere.check("http://127.0.0.1:1/").is_ok());
        for (name, value) in [("Host", "x"), ("X-Miosa-Signature", "x"), ("a b", "x"), ("a", "x\ny")] {
            let headers = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert!(public.check_headers(&headers).is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_host_leads_nowhere() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let refused = Outgoing::new(Reach::Public).unwrap().post(&url, &BTreeMap::new(), "{}").await;
        assert!(refused.unwrap_err().contains("not a public address"));
    }
}
