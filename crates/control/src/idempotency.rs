//! Requests that are carried out once, however often they are sent.
//!
//! That a request begins is recorded before it does anything, its answer afterwards, sealed. A repeat gets the answer;
//! one that comes while the first is at work here waits for it. A server that crashes between the two leaves a request
//! of which nobody knows how far it came: it is refused for [`UNKNOWN_FOR`], after which the key counts as unused.
//!
//! What an answer is made of is not known here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use roost_api::{ApiError, ErrorCode, Timestamp};
use roost_store::{Caller, RequestLimits, RequestState};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::keys::hex;
use crate::{Control, Failure};

/// How long a key means the same request.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long a request that was begun, and whose end nobody saw, keeps its key. No request takes as long.
const UNKNOWN_FOR: Duration = Duration::from_secs(3600);
const LONGEST_KEY: usize = 255;

/// What a caller asks for, with a key that makes it the same thing each time.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    pub key: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub body: &'a [u8],
}

/// What to do with a request that has a key.
#[derive(Debug)]
pub enum Admission {
    /// Carry it out, then say how it ended.
    Begun(Running),
    /// It was carried out; this was the answer.
    Answered(Vec<u8>),
}

/// The requests at work in this process, each with a channel that closes when it ends.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    running: Mutex<HashMap<String, watch::Receiver<()>>>,
}

/// The one who carries a request out. Dropped without a word, its end stays unknown.
#[derive(Debug)]
pub struct Running {
    control: Control,
    id: String,
    /// Closes when this is dropped.
    _ends: watch::Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let running = &self.control.inner.requests.running;
        running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Running {
    /// Records the answer.
    pub async fn answered(self, answer: &[u8]) -> Result<(), Failure> {
        let inner = &self.control.inner;
        let sealed = inner.config.seal_key.seal(&context(&self.id), answer)?;
        Ok(inner.store.answer_request(&self.id, &sealed).await?)
    }

    /// It came to nothing that a repeat should get; the next one is carried out.
    pub async fn forget(self) -> Result<(), Failure> {
        Ok(self.control.inner.store.forget_request(&self.id).await?)
    }
}

impl Control {
    /// Begins a request, or says what became of it.
    pub async fn begin_request(
        &self,
        caller: &Caller,
        operation: Operation<'_>,
    ) -> Result<Admission, Failure> {
        let Operation { key, method, path, query, body } = operation;
        if key.is_empty() || key.len() > LONGEST_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = format!("not 1 to {LONGEST_KEY} visible ASCII characters; a UUID is a good one");
            return Err(ApiError::field("Idempotency-Key", problem).into());
        }
        // The answer may hold a secret, so it is for the API key that asked first and for nobody else.
        let (tenant, caller) = (caller.tenant.to_string(), caller.key.to_string());
        let parts =
            [tenant.as_bytes(), caller.as_bytes(), method.as_bytes(), path.as_bytes(), key.as_bytes()];
        let id = digest(&parts);
        let fingerprint = digest(&[query.as_bytes(), body]);
        loop {
            let running = match self.occupy(&id) {
                Ok(running) => running,
                Err(mut other) => {
                    // It only ever closes.
                    drop(other.changed().await);
                    continue;
                }
            };
            let now = Timestamp::now();
            let limits = RequestLimits { any: earlier(now, KEPT_FOR), unfinished: earlier(now, UNKNOWN_FOR) };
            return match self.inner.store.begin_request(&id, &fingerprint, limits).await? {
                RequestState::Begun => Ok(Admission::Begun(running)),
                RequestState::Answered { answer } => {
                    let answer = self.inner.config.seal_key.open(&context(&id), &answer);
                    answer.map(Admission::Answered).ok_or_else(answer_lost)
                }
                RequestState::Unfinished { since } => Err(unfinished(now, since)),
                RequestState::Different => Err(Failure::new(
                    ErrorCode::IdempotencyKeyReused,
                    "the Idempotency-Key was used for another request before; use a new one for each request",
                )),
            };
        }
    }

    /// The place of a request in this process, or what tells when whoever has it ends.
    fn occupy(&self, id: &str) -> Result<Running, watch::Receiver<()>> {
        let mut running = self.inner.requests.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.entry(id.to_owned()) {
            Entry::Occupied(other) => Err(other.get().clone()),
            Entry::Vacant(place) => {
                let (ends, end) = watch::channel(());
                place.insert(end);
                Ok(Running { control: self.clone(), id: id.to_owned(), _ends: ends })
            }
        }
    }
}

/// The answer to a repeat whose answer cannot be given again.
pub fn answer_lost() -> Failure {
    Failure::new(
        ErrorCode::IdempotencyAnswerLost,
        "the request was carried out, but its answer was not kept: look at what it changed, or use a new \
         Idempotency-Key to carry it out again",
    )
}

fn unfinished(now: Timestamp, since: Timestamp) -> Failure {
    let age = now.as_seconds().saturating_sub(since.as_seconds());
    let limit = UNKNOWN_FOR.as_secs() / 60;
    let message = format!(
        "a request with this Idempotency-Key was begun {age} seconds ago, and whether it took effect is not known: \
         another server is at work on it, or the server was interrupted. Look whether it took effect before you send \
         it with a new key; this one counts as unused {limit} minutes after it was begun"
    );
    ApiError::new(ErrorCode::IdempotencyInProgress, message).retry_after_ms(2000).into()
}

pub(crate) fn context(id: &str) -> String {
    format!("idempotent request {id}")
}

pub(crate) fn earlier(now: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_sub(by)).unwrap_or(Timestamp::EPOCH)
}

/// Of the parts one by one: where one ends and the next begins counts.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}
