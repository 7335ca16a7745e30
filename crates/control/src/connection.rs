//! The desktop stream: addresses, tokens and the tunnel to the display.

use roost_api::{
    ApiError, ComputerId, ComputerUrls, DesktopSession, ErrorCode, NamedUrl, Status, StreamToken,
    StreamTokenRequest, Timestamp, VncCredentials,
};
use roost_guest_proto::v1::tunnel_client::TunnelClient;
use roost_guest_proto::v1::tunnel_input::Input;
use roost_guest_proto::v1::tunnel_target::Target;
use roost_guest_proto::v1::{Display, TunnelInput, TunnelOutput, TunnelTarget};
use roost_store::{Caller, ComputerRecord};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::guest::not_running;
use crate::status::status;
use crate::{Control, Failure};

const DEFAULT_TTL: i64 = 3600;
const SHORTEST_TTL: i64 = 60;
const LONGEST_TTL: i64 = 86_400;

/// A byte stream to the RFB server of a desktop. Dropping it closes the connection.
#[derive(Debug)]
pub struct DisplayStream {
    pub input: mpsc::Sender<TunnelInput>,
    pub output: tonic::Streaming<TunnelOutput>,
}

/// What a stream credential opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAccess {
    pub computer: ComputerId,
    /// Unix seconds.
    pub expires_at: i64,
}

impl Control {
    pub(crate) fn desktop_url(&self, record: &ComputerRecord) -> String {
        let urls = &self.inner.config.urls;
        format!("{}://{}.computer.{}/desktop/index.html", urls.scheme, record.slug, urls.domain)
    }

    pub fn urls(&self, record: &ComputerRecord) -> ComputerUrls {
        let urls = &self.inner.config.urls;
        let desktop_url = self.desktop_url(record);
        let desktop_path_url = format!("{}/desktop/{}/index.html", urls.origin, record.id);
        let named = |name: &str, url: &str| NamedUrl { name: name.to_owned(), url: url.to_owned() };
        ComputerUrls {
            urls: vec![named("desktop", &desktop_url), named("desktop_path", &desktop_path_url)],
            stream_url: desktop_url.clone(),
            desktop_url,
            desktop_path_url,
            computer_id: record.id,
        }
    }

    pub fn vnc_credentials(&self, record: &ComputerRecord) -> Result<VncCredentials, Failure> {
        let status = status(record);
        if status != Status::Running {
            return Err(not_running(status));
        }
        let token = self.stream_token(record, &StreamTokenRequest::default())?;
        let urls = &self.inner.config.urls;
        let scheme = if urls.scheme == "https" { "wss" } else { "ws" };
        Ok(VncCredentials {
            desktop_url: self.desktop_url(record),
            ws_url: format!(
                "{scheme}://{}.computer.{}/ws/vnc/{}?auth={}",
                record.slug, urls.domain, record.id, token.token
            ),
            token: token.token,
            expires_at: token.expires_at,
            computer_id: record.id,
            slug: record.slug.clone(),
        })
    }

    pub fn stream_token(
        &self,
        record: &ComputerRecord,
        request: &StreamTokenRequest,
    ) -> Result<StreamToken, Failure> {
        let ttl_seconds = request.ttl_seconds.unwrap_or(DEFAULT_TTL);
        if !(SHORTEST_TTL..=LONGEST_TTL).contains(&ttl_seconds) {
            let message = format!("ttl_seconds must be {SHORTEST_TTL} to {LONGEST_TTL}, not {ttl_seconds}");
            let mut error = ApiError::new(ErrorCode::InvalidTtl, message.clone());
            error.fields.insert("ttl_seconds".to_owned(), vec![message]);
            return Err(error.into());
        }
        let expires_at = Timestamp::now().as_seconds() + ttl_seconds;
        Ok(StreamToken {
            token: self.inner.config.stream_key.mint(record.id, expires_at)?,
            expires_at,
            ttl_seconds,
            computer_id: record.id,
            slug: record.slug.clone(),
        })
    }

    /// What a stream token opens; 401 for anything that is not a token that still holds.
    pub fn verify_stream_token(&self, token: &str) -> Result<StreamAccess, Failure> {
        let found = self.inner.config.stream_key.verify(token, Timestamp::now());
        found.map(|(computer, expires_at)| StreamAccess { computer, expires_at }).ok_or_else(|| {
            Failure::new(
                ErrorCode::InvalidToken,
                "the stream token is wrong or has expired; get a new one with POST \
                 /api/v1/computers/{id}/stream-token",
            )
        })
    }

    /// Lets a holder of a stream token or of an API key of the computer's tenant see and drive the desktop.
    pub async fn authorize_stream(
        &self,
        id: ComputerId,
        token: Option<&str>,
        bearer: Option<&str>,
    ) -> Result<ComputerRecord, Failure> {
        match token.or(bearer.filter(|text| !text.starts_with("msk_"))) {
            Some(token) => {
                if self.verify_stream_token(token)?.computer != id {
                    return Err(Failure::new(
                        ErrorCode::InvalidToken,
                        "the stream token is for another computer",
                    ));
                }
                self.record(id).await
            }
            None => {
                let caller: Caller = self.authenticate(bearer).await?;
                self.get(&caller, id).await
            }
        }
    }

    pub fn desktop_session(&self, record: &ComputerRecord, access: StreamAccess) -> DesktopSession {
        DesktopSession {
            computer_id: record.id,
            name: record.name.clone(),
            slug: record.slug.clone(),
            status: status(record),
            ws_path: format!("/ws/vnc/{}", record.id),
            expires_at: access.expires_at,
        }
    }

    pub async fn computer_by_slug(&self, slug: &str) -> Result<ComputerRecord, Failure> {
        self.inner.store.computer_by_slug(slug).await?.ok_or_else(Failure::computer_not_found)
    }

    /// Opens a connection to the RFB server of a running computer.
    pub async fn open_display(&self, id: ComputerId) -> Result<DisplayStream, Failure> {
        let mut client = TunnelClient::new(self.guest(id).await?);
        let (input, inputs) = mpsc::channel(16);
        let target = TunnelTarget { target: Some(Target::Display(Display {})) };
        let first = TunnelInput { input: Some(Input::Target(target)) };
        let inputs = tokio_stream::StreamExt::chain(tokio_stream::once(first), ReceiverStream::new(inputs));
        let output = client.open(inputs).await.map_err(Failure::from_guest)?.into_inner();
        Ok(DisplayStream { input, output })
    }
}
