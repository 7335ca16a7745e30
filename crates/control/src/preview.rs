//! Who may use a port of a computer through the proxy.
//!
//! A visitor is a member of the computer's tenant (an API key, or a session begun by a one-time link), a guest (a
//! preview token or the viewer password, for ports that are protected), or nobody. What each may do is
//! [`decide`], one table. A computer that does not exist and a port that is not exposed look alike to everybody
//! who is no member.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_api::{
    ApiError, ComputerId, ErrorCode, PortAccess, PortAccessRequest, PortNumber, PortVisibility, Status,
    Timestamp,
};
use roost_store::{Caller, ComputerRecord, PortLink, PortRecord};

use crate::connection::{DEFAULT_TTL, checked_ttl};
use crate::keys::hash;
use crate::status::status;
use crate::token::{Grant, Token};
use crate::{Control, Failure};

/// Where a computer has no single exposed port, its short address leads here: what most web tools listen on.
const USUAL_PORT: u16 = 3000;
/// How long a one-time link holds.
const LINK_HOLDS: Duration = Duration::from_secs(60);
/// Nobody needs more at once; it bounds what they take.
const MOST_LINKS: u32 = 10_000;
/// How long a request waits for a computer that is starting.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// By host name; without a port the one the computer is known for.
    Host {
        slug: String,
        port: Option<PortNumber>,
        /// Under which domain, where it is not the server's: then only computers of the domain's owner are behind it.
        domain: Option<String>,
    },
    Path {
        computer: ComputerId,
        port: PortNumber,
    },
}

/// The credentials that came with a request.
#[derive(Debug, Clone, Default)]
pub struct Visitor<'a> {
    pub bearer: Option<&'a str>,
    /// Where the request comes from, as far as that is known.
    pub from: Option<IpAddr>,
    /// Values of session cookies.
    pub sessions: Vec<&'a str>,
}

/// What became of a request at a door.
#[derive(Debug, Clone)]
pub struct Answer {
    pub decision: Decision,
    /// Whether the bearer credential is one of ours; the program in the computer must not see it then.
    pub is_our_bearer: bool,
    /// Whose key it is that opened the door, where one was needed.
    pub opened_by: Option<Caller>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Open(Place),
    /// A private port.
    SignIn,
    /// A protected port.
    AskPassword(Place),
    NotFound,
}

/// A port of a computer that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub computer: ComputerId,
    pub port: PortNumber,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Member,
    Guest,
    Nobody,
}

/// A session that a browser was let into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// For the cookie.
    pub value: String,
    pub seconds: i64,
}

fn decide(place: Place, exposed: Option<PortVisibility>, standing: Standing) -> Decision {
    match (exposed, standing) {
        (Some(PortVisibility::Public), _) | (_, Standing::Member) => Decision::Open(place),
        (Some(PortVisibility::Protected), Standing::Guest) => Decision::Open(place),
        (Some(PortVisibility::Protected), Standing::Nobody) => Decision::AskPassword(place),
        (Some(PortVisibility::Private), Standing::Guest | Standing::Nobody) => Decision::SignIn,
        (None, Standing::Guest | Standing::Nobody) => Decision::NotFound,
    }
}

impl Control {
    /// Who gets in at a door.
    pub async fn knock(&self, door: &Door, visitor: &Visitor<'_>) -> Result<Answer, Failure> {
        let caller = match visitor.bearer {
            Some(bearer) if !bearer.starts_with("rpt_") => {
                match self.authenticate(Some(bearer), visitor.from).await {
                    Ok(caller) => Some(caller),
                    // It may be meant for the program in the computer.
                    Err(failure) if failure.public.code.status() < 500 => None,
                    Err(failure) => return Err(failure),
                }
            }
            _ => None,
        };
        let is_our_bearer = caller.is_some() || visitor.bearer.is_some_and(crate::token::looks_like_ours);
        let Some((record, place)) = self.behind(door).await? else {
            return Ok(Answer { decision: Decision::NotFound, is_our_bearer, opened_by: None });
        };
        let is_member = match &caller {
            Some(caller) => self.get(caller, record.id).await.is_ok(),
            None => false,
        };
        let standing = if is_member { Standing::Member } else { self.standing(place, visitor) };
        let exposed = self.inner.store.port(place.computer, place.port).await?;
        let visibility = exposed.map(|port| port.visibility);
        let decision = decide(place, visibility, standing);
        let needed = is_member && visibility != Some(PortVisibility::Public);
        Ok(Answer { decision, is_our_bearer, opened_by: caller.filter(|_| needed) })
    }

    async fn behind(&self, door: &Door) -> Result<Option<(ComputerRecord, Place)>, Failure> {
        let store = &self.inner.store;
        let (record, port) = match door {
            Door::Host { slug, port, domain } => {
                let mut record = store.computer_by_slug(slug).await?;
                if let (Some(domain), Some(found)) = (domain, &record)
                    && !store.is_preview_domain_of(domain, found).await?
                {
                    record = None;
                }
                (record, *port)
            }
            Door::Path { computer, port } => (store.computer(*computer).await?, Some(*port)),
        };
        let Some(record) = record else { return Ok(None) };
        let port = match port {
            Some(port) => port,
            None => known_port(&store.ports(record.id).await?),
        };
        let place = Place { computer: record.id, port };
        Ok(Some((record, place)))
    }

    fn standing(&self, place: Place, visitor: &Visitor<'_>) -> Standing {
        let now = Timestamp::now();
        // More than one cookie may have our name: a neighbour can set one for a whole domain.
        let grants = visitor.sessions.iter().copied().filter_map(|text| {
            let token = self.inner.config.stream_key.verify(text, now)?;
            (token.computer == place.computer).then_some(token.grant)
        });
        let mut standing = Standing::Nobody;
        for grant in grants {
            match grant {
                Grant::Member(port) if port == place.port => return Standing::Member,
                Grant::Preview(port) if port == place.port => standing = Standing::Guest,
                Grant::Member(_) | Grant::Preview(_) | Grant::Stream(_) => {}
            }
        }
        if visitor.bearer.is_some_and(|text| self.is_preview_token(place, text)) {
            standing = Standing::Guest;
        }
        standing
    }

    fn is_preview_token(&self, place: Place, text: &str) -> bool {
        let token = self.inner.config.stream_key.verify(text, Timestamp::now());
        token.is_some_and(|token| {
            token.computer == place.computer && token.grant == Grant::Preview(place.port)
        })
    }

    /// Ways into a port, for a member to use and to pass on.
    pub async fn port_access(
        &self,
        record: &ComputerRecord,
        port: PortNumber,
        request: &PortAccessRequest,
    ) -> Result<PortAccess, Failure> {
        let ttl_seconds = checked_ttl(request.ttl_seconds)?;
        let expires_at = Timestamp::now().as_seconds() + ttl_seconds;
        let token = Token { computer: record.id, grant: Grant::Preview(port), expires_at };
        let token = self.inner.config.stream_key.mint(token)?;
        let link =
            self.one_time_link(PortLink { computer: record.id, port, session_ends_at: expires_at }).await?;
        let url = self.preview_url(record, port);
        Ok(PortAccess {
            computer_id: record.id,
            port,
            session_url: format!("{url}/.roost/session?token={link}"),
            preview_url: format!("{url}/.roost/session?token={token}"),
            url,
            token,
            expires_at,
            ttl_seconds,
        })
    }

    async fn one_time_link(&self, link: PortLink) -> Result<String, Failure> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
        let secret = format!("rol_{}", URL_SAFE_NO_PAD.encode(bytes));
        let until = Timestamp::now().as_micros() + i64::try_from(LINK_HOLDS.as_micros()).unwrap_or(i64::MAX);
        let until = Timestamp::from_micros(until).unwrap_or_else(Timestamp::now);
        if !self.inner.store.insert_port_link(&hash(&secret), &link, until, MOST_LINKS).await? {
            // The computer may have gone, which says so by itself.
            self.record(link.computer).await?;
            let message = "too many links are open; try again in a minute";
            return Err(ApiError::new(ErrorCode::Unavailable, message).retry_after_ms(60_000).into());
        }
        Ok(secret)
    }

    /// The session that a link begins, at the door it is for.
    pub async fn begin_session(&self, door: &Door, token: &str) -> Result<Session, Failure> {
        let refused = || {
            Failure::new(
                ErrorCode::InvalidToken,
                "this link has been used, has expired, or is for another address; get a new one",
            )
        };
        let Some((_, place)) = self.behind(door).await? else { return Err(refused()) };
        if self.is_preview_token(place, token) {
            let held = self.inner.config.stream_key.verify(token, Timestamp::now()).ok_or_else(refused)?;
            return Ok(session(token.to_owned(), held));
        }
        let link = self.inner.store.take_port_link(&hash(token)).await?.ok_or_else(refused)?;
        if link.computer != place.computer || link.port != place.port {
            return Err(refused());
        }
        let grant = Grant::Member(link.port);
        let held = Token { computer: link.computer, grant, expires_at: link.session_ends_at };
        Ok(session(self.inner.config.stream_key.mint(held)?, held))
    }

    /// The session that the viewer password begins, at a port that asks for it.
    pub async fn begin_session_with_password(
        &self,
        place: Place,
        password: &str,
    ) -> Result<Session, Failure> {
        self.check_viewer_password(place.computer, password).await?;
        let expires_at = Timestamp::now().as_seconds() + DEFAULT_TTL;
        let token = Token { computer: place.computer, grant: Grant::Preview(place.port), expires_at };
        Ok(session(self.inner.config.stream_key.mint(token)?, token))
    }

    /// Returns when the computer runs. One that is starting is waited for, for a while.
    pub async fn wait_for_running(&self, computer: ComputerId) -> Result<(), Failure> {
        let on_its_way =
            |record: &ComputerRecord| matches!(status(record), Status::Provisioning | Status::Starting);
        let settled = self.wait_until(computer, |record| !on_its_way(record));
        match tokio::time::timeout(START_PATIENCE, settled).await {
            Ok(record) => self.require_running(&record?),
            Err(_) => {
                let message = "the computer is still starting; try again in a moment";
                Err(ApiError::new(ErrorCode::ComputerStarting, message).retry_after_ms(2000).into())
            }
        }
    }
}

/// The only one that is exposed, else the usual one.
fn known_port(ports: &[PortRecord]) -> PortNumber {
    match ports {
        [only] => only.port,
        _ => PortNumber::new(USUAL_PORT).expect("it is not zero"),
    }
}

fn session(value: String, token: Token) -> Session {
    Session { value, seconds: (token.expires_at - Timestamp::now().as_seconds()).max(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_of_visibility_and_standing() {
        let place = Place { computer: ComputerId::new(), port: PortNumber::new(80).unwrap() };
        let (open, sign_in, ask) = (Decision::Open(place), Decision::SignIn, Decision::AskPassword(place));
        let lost = Decision::NotFound;
        use PortVisibility::{Private, Protected, Public};
        use Standing::{Guest, Member, Nobody};
        let table = [
            (Some(Public), [open, open, open]),
            (Some(Private), [open, sign_in, sign_in]),
            (Some(Protected), [open, open, ask]),
            (None, [open, lost, lost]),
        ];
        for (exposed, row) in table {
            for (standing, expected) in [Member, Guest, Nobody].into_iter().zip(row) {
                assert_eq!(decide(place, exposed, standing), expected, "{exposed:?} {standing:?}");
            }
        }
    }
}
