//! The desktop stream: its addresses, and the tokens that open it.

use std::net::IpAddr;

use roost_api::{
    ApiError, ComputerId, ComputerUrls, DesktopSession, Embed, EmbedQuery, ErrorCode, NamedUrl, Status,
    StreamToken, StreamTokenRequest, Timestamp, VncCredentials,
};
use roost_store::{Caller, ComputerRecord};

use crate::access::{self, Act};
use crate::guest::not_running;
use crate::status::status;
use crate::token::{Grant, StreamRights, Token};
use crate::{Control, Failure};

pub(crate) const DEFAULT_TTL: i64 = 3600;
const SHORTEST_TTL: i64 = 60;
const LONGEST_TTL: i64 = 86_400;
pub(crate) const DEFAULT_MODE: &str = "desktop";
const LONGEST_MODE: usize = 32;

/// What a stream credential opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAccess {
    pub computer: ComputerId,
    pub rights: StreamRights,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Who was let see the desktop of a computer.
#[derive(Debug)]
pub struct StreamViewer {
    pub computer: ComputerRecord,
    pub rights: StreamRights,
    /// Whose key it was; `None` for a token, which holds for as long as it says.
    pub caller: Option<Caller>,
}

impl Control {
    pub(crate) fn desktop_url(&self, record: &ComputerRecord) -> String {
        let urls = &self.inner.config.urls;
        format!("{}://{}.computer.{}/desktop/index.html", urls.scheme, record.slug, urls.domain)
    }

    /// Where the sockets of a computer are.
    fn socket_origin(&self, record: &ComputerRecord) -> String {
        let urls = &self.inner.config.urls;
        let scheme = if self.is_https() { "wss" } else { "ws" };
        format!("{scheme}://{}.computer.{}", record.slug, urls.domain)
    }

    fn vnc_url(&self, record: &ComputerRecord, token: &str) -> String {
        format!("{}/ws/vnc/{}?auth={token}", self.socket_origin(record), record.id)
    }

    pub(crate) fn terminal_url(&self, record: &ComputerRecord) -> String {
        format!("{}/ws/terminal/{}", self.socket_origin(record), record.id)
    }

    /// Whether the hosts of computers are reached over HTTPS.
    pub fn is_https(&self) -> bool {
        self.inner.config.urls.scheme == "https"
    }

    pub fn urls(&self, record: &ComputerRecord) -> ComputerUrls {
        let urls = &self.inner.config.urls;
        let desktop_url = self.desktop_url(record);
        let desktop_path_url = format!("{}/desktop/{}/index.html", urls.origin, record.id);
        let terminal_url = self.terminal_url(record);
        let terminal_page_url =
            format!("{}://{}.computer.{}/terminal/index.html", urls.scheme, record.slug, urls.domain);
        let terminal_path_url = format!("{}/terminal/{}/index.html", urls.origin, record.id);
        let named = |name: &str, url: &str| NamedUrl { name: name.to_owned(), url: url.to_owned() };
        ComputerUrls {
            urls: vec![
                named("desktop", &desktop_url),
                named("desktop_path", &desktop_path_url),
                named("terminal", &terminal_url),
                named("terminal_page", &terminal_page_url),
                named("terminal_path", &terminal_path_url),
            ],
            terminal_page_url,
            terminal_path_url,
            stream_url: desktop_url.clone(),
            desktop_url,
            desktop_path_url,
            terminal_url,
            computer_id: record.id,
        }
    }

    pub fn vnc_credentials(&self, record: &ComputerRecord) -> Result<VncCredentials, Failure> {
        let status = status(record);
        if status != Status::Running {
            return Err(not_running(status));
        }
        let token = self.stream_token(record, &StreamTokenRequest::default())?;
        Ok(VncCredentials {
            desktop_url: self.desktop_url(record),
            ws_url: self.vnc_url(record, &token.token),
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
        let ttl_seconds = checked_ttl(request.ttl_seconds)?;
        let expires_at = Timestamp::now().as_seconds() + ttl_seconds;
        let grant = Grant::Stream(StreamRights::Control);
        let token = Token { computer: record.id, grant, expires_at };
        Ok(StreamToken {
            token: self.inner.config.stream_key.mint(token)?,
            expires_at,
            ttl_seconds,
            computer_id: record.id,
            slug: record.slug.clone(),
        })
    }

    /// The live desktop for an iframe; 409 for a computer that does not run.
    pub fn embed_desktop(&self, record: &ComputerRecord, query: &EmbedQuery) -> Result<Embed, Failure> {
        let mode = query.mode.as_deref().unwrap_or(DEFAULT_MODE);
        if mode.chars().count() > LONGEST_MODE || mode.chars().any(char::is_control) {
            return Err(
                ApiError::field("mode", format!("not a word of at most {LONGEST_MODE} characters")).into()
            );
        }
        let rights = match query.view_only {
            Some(true) => StreamRights::View,
            Some(false) | None => StreamRights::Control,
        };
        self.require_desktop(record)?;
        let ttl = checked_ttl(query.ttl_seconds.or(query.ttl))?;
        self.embed(record, rights, ttl, mode)
    }

    pub(crate) fn embed(
        &self,
        record: &ComputerRecord,
        rights: StreamRights,
        ttl_seconds: i64,
        mode: &str,
    ) -> Result<Embed, Failure> {
        let expires_at = Timestamp::now().as_seconds() + ttl_seconds;
        let token = Token { computer: record.id, grant: Grant::Stream(rights), expires_at };
        let token = self.inner.config.stream_key.mint(token)?;
        let desktop_url = self.desktop_url(record);
        // Behind `#` it reaches no log and no other server.
        let url = format!("{desktop_url}#auth={token}");
        Ok(Embed {
            computer_id: record.id,
            slug: record.slug.clone(),
            mode: mode.to_owned(),
            view_only: rights == StreamRights::View,
            ws_url: self.vnc_url(record, &token),
            token,
            expires_at,
            ttl_seconds,
            embed_url: url.clone(),
            desktop_entry_url: url.clone(),
            url,
            desktop_url,
        })
    }

    /// What a stream token opens; 401 for anything that is not a token that still holds.
    pub fn verify_stream_token(&self, token: &str) -> Result<StreamAccess, Failure> {
        let found = self.inner.config.stream_key.verify(token, Timestamp::now());
        let access = found.and_then(|found| match found.grant {
            Grant::Stream(rights) => {
                Some(StreamAccess { computer: found.computer, rights, expires_at: found.expires_at })
            }
            Grant::Preview(_) | Grant::Member(_) => None,
        });
        access.ok_or_else(|| {
            Failure::new(
                ErrorCode::InvalidToken,
                "the stream token is wrong or has expired; get a new one with POST \
                 /api/v1/computers/{id}/stream-token",
            )
        })
    }

    /// Lets a holder of a stream token or of an API key of the computer's tenant see the desktop, and says whether
    /// they may drive it.
    pub async fn authorize_stream(
        &self,
        id: ComputerId,
        token: Option<&str>,
        bearer: Option<&str>,
        from: Option<IpAddr>,
    ) -> Result<StreamViewer, Failure> {
        match token.or(bearer.filter(|text| text.starts_with("rst_"))) {
            Some(token) => {
                let access = self.verify_stream_token(token)?;
                if access.computer != id {
                    return Err(Failure::new(
                        ErrorCode::InvalidToken,
                        "the stream token is for another computer",
                    ));
                }
                Ok(StreamViewer { computer: self.record(id).await?, rights: access.rights, caller: None })
            }
            None => {
                let caller: Caller = self.authenticate(bearer, from).await?;
                let computer = self.get_for(&caller, id, Act::Read).await?;
                let rights = match access::check(&caller, &computer, Act::Write) {
                    Ok(()) => StreamRights::Control,
                    Err(_) => StreamRights::View,
                };
                Ok(StreamViewer { computer, rights, caller: Some(caller) })
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
            view_only: access.rights == StreamRights::View,
            expires_at: access.expires_at,
        }
    }

    pub async fn computer_by_slug(&self, slug: &str) -> Result<ComputerRecord, Failure> {
        self.inner.store.computer_by_slug(slug).await?.ok_or_else(Failure::computer_not_found)
    }
}

/// How long a token is to hold, in seconds; 422 for what is not allowed.
pub(crate) fn checked_ttl(asked: Option<i64>) -> Result<i64, ApiError> {
    let seconds = asked.unwrap_or(DEFAULT_TTL);
    if (SHORTEST_TTL..=LONGEST_TTL).contains(&seconds) {
        return Ok(seconds);
    }
    let message = format!("ttl_seconds must be {SHORTEST_TTL} to {LONGEST_TTL}, not {seconds}");
    let mut error = ApiError::new(ErrorCode::InvalidTtl, message.clone());
    error.fields.insert("ttl_seconds".to_owned(), vec![message]);
    Err(error)
}
