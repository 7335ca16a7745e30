//! Tickets for event streams: a browser cannot send a header with one, and a key does not belong in an address.
//! They hold for a minute and open one stream, at any server.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_api::{ApiError, ErrorCode, SseTicket, Timestamp};
use roost_store::Caller;

use crate::keys::hash;
use crate::{Control, Failure};

const HOLDS: Duration = Duration::from_secs(60);
/// Nobody needs more at once; it bounds what they take.
const MOST: u32 = 10_000;

impl Control {
    pub async fn sse_ticket(&self, caller: &Caller) -> Result<SseTicket, Failure> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
        let ticket = format!("sse_{}", URL_SAFE_NO_PAD.encode(bytes));
        let until = Timestamp::now().as_micros() + i64::try_from(HOLDS.as_micros()).unwrap_or(i64::MAX);
        let until = Timestamp::from_micros(until).unwrap_or_else(Timestamp::now);
        if !self.inner.store.insert_ticket(&hash(&ticket), caller.key, until, MOST).await? {
            let message = "too many tickets are open; try again in a minute";
            return Err(ApiError::new(ErrorCode::Unavailable, message).retry_after_ms(60_000).into());
        }
        Ok(SseTicket { ticket, expires_in: HOLDS.as_secs() })
    }

    /// Whom a ticket speaks for. It is used up.
    pub async fn redeem(&self, ticket: &str) -> Result<Caller, Failure> {
        let refused = "the ticket is unknown, used or older than a minute; get a new one";
        let key = self.inner.store.take_ticket(&hash(ticket)).await?;
        let key = key.ok_or_else(|| Failure::new(ErrorCode::InvalidToken, refused))?;
        let caller = self.inner.store.caller_by_key_hash(&key).await?;
        let caller = caller.map(|caller| self.with_operator(caller));
        caller.ok_or_else(|| Failure::new(ErrorCode::InvalidToken, refused))
    }
}
