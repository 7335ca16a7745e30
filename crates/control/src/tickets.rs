//! Tickets for event streams: a browser cannot send a header with one, and a key does not belong in an address.
//! They are kept in memory, hold for a minute and open one stream.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_api::{ApiError, ErrorCode, SseTicket};
use roost_store::Caller;

use crate::{Control, Failure};

const HOLDS: Duration = Duration::from_secs(60);
/// Nobody needs more at once; it bounds what they take.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Tickets {
    open: Mutex<HashMap<String, (Caller, Instant)>>,
}

impl Control {
    pub fn sse_ticket(&self, caller: &Caller) -> Result<SseTicket, Failure> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
        let ticket = format!("sse_{}", URL_SAFE_NO_PAD.encode(bytes));
        let now = Instant::now();
        let mut open = self.inner.tickets.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (_, until)| now < *until);
        if open.len() >= MOST {
            let message = "too many tickets are open; try again in a minute";
            return Err(ApiError::new(ErrorCode::Unavailable, message).retry_after_ms(60_000).into());
        }
        open.insert(ticket.clone(), (*caller, now + HOLDS));
        Ok(SseTicket { ticket, expires_in: HOLDS.as_secs() })
    }

    /// Whom a ticket speaks for. It is used up.
    pub fn redeem(&self, ticket: &str) -> Result<Caller, Failure> {
        let mut open = self.inner.tickets.open.lock().unwrap_or_else(PoisonError::into_inner);
        let found = open.remove(ticket).filter(|(_, until)| Instant::now() < *until);
        let refused = "the ticket is unknown, used or older than a minute; get a new one";
        found.map(|(caller, _)| caller).ok_or_else(|| Failure::new(ErrorCode::InvalidToken, refused))
    }
}
