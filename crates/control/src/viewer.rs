//! The viewer password of a computer: for people without an account. It is made here and shown once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use roost_api::{
    ApiError, ComputerId, Embed, ErrorCode, Status, ViewerPassword, ViewerPasswordState, ViewerSessionRequest,
};
use roost_store::ComputerRecord;
use tokio::sync::Semaphore;

use crate::connection::{DEFAULT_MODE, checked_ttl};
use crate::status::status;
use crate::token::StreamRights;
use crate::{Control, Failure};

/// Five bits a character, none that could be taken for another: 75 bits.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
const GROUPS: usize = 3;
const GROUP: usize = 5;
/// Longer is certainly wrong.
const LONGEST: usize = 128;

/// Guesses a computer takes in a minute from each server, right ones included.
const MOST_ATTEMPTS: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// One hash takes 19 MiB and some ten milliseconds; a flood of guesses takes no more than this many at once.
const AT_ONCE: usize = 2;

#[derive(Debug)]
pub(crate) struct Viewers {
    /// When the minute began, and how many attempts it has seen.
    attempts: Mutex<HashMap<ComputerId, (Instant, u32)>>,
    hashing: Semaphore,
}

impl Default for Viewers {
    fn default() -> Self {
        Self { attempts: Mutex::default(), hashing: Semaphore::new(AT_ONCE) }
    }
}

impl Viewers {
    fn admit(&self, computer: ComputerId, now: Instant) -> Result<(), Failure> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.retain(|_, (begun, _)| now.duration_since(*begun) < WINDOW);
        let (begun, count) = attempts.entry(computer).or_insert((now, 0));
        if *count >= MOST_ATTEMPTS {
            let left = WINDOW.saturating_sub(now.duration_since(*begun)).as_millis();
            let message = "too many attempts with the viewer password of this computer; wait a minute";
            let error = ApiError::new(ErrorCode::RateLimited, message);
            return Err(error.retry_after_ms(u64::try_from(left).unwrap_or(u64::MAX)).into());
        }
        *count += 1;
        Ok(())
    }
}

impl Control {
    pub async fn viewer_password_state(
        &self,
        record: &ComputerRecord,
    ) -> Result<ViewerPasswordState, Failure> {
        let set_at = self.inner.store.viewer_password(record.id).await?.map(|password| password.set_at);
        Ok(ViewerPasswordState {
            computer_id: record.id,
            viewer_password_set: set_at.is_some(),
            viewer_password_set_at: set_at,
            password_set: set_at.is_some(),
            password_set_at: set_at,
        })
    }

    /// Gives the computer a new viewer password. Sessions that the old one began go on until they expire.
    pub async fn rotate_viewer_password(&self, record: &ComputerRecord) -> Result<ViewerPassword, Failure> {
        let password = new_password()?;
        let text = password.clone();
        let hash = self.hash(move || {
            let hash = Argon2::default().hash_password(text.as_bytes())?;
            Ok(hash.to_string())
        });
        let hash = hash.await?.map_err(|error: argon2::password_hash::Error| {
            Failure::internal(std::io::Error::other(error.to_string()))
        })?;
        let set_at = self.inner.store.set_viewer_password(record.id, &hash).await?;
        let set_at = set_at.ok_or_else(Failure::computer_not_found)?;
        Ok(ViewerPassword {
            computer_id: record.id,
            viewer_password: password.clone(),
            password,
            viewer_password_set_at: set_at,
            rotated_at: set_at,
        })
    }

    /// What the holder of the viewer password gets: the live desktop, for a while.
    pub async fn viewer_session(
        &self,
        id: ComputerId,
        request: &ViewerSessionRequest,
    ) -> Result<Embed, Failure> {
        let password = request.password.as_deref().filter(|password| !password.is_empty());
        let password =
            password.ok_or_else(|| ApiError::new(ErrorCode::MissingParam, "password is required"))?;
        let ttl = checked_ttl(request.ttl_seconds)?;
        let record = self.record(id).await?;
        self.check_viewer_password(id, password).await?;
        self.require_desktop(&record)?;
        self.embed(&record, StreamRights::Control, ttl, DEFAULT_MODE)
    }

    /// The same by the computer's name; a name that no computer has looks like a wrong password.
    pub async fn viewer_session_by_slug(
        &self,
        slug: &str,
        request: &ViewerSessionRequest,
    ) -> Result<Embed, Failure> {
        match self.inner.store.computer_by_slug(slug).await? {
            Some(record) => self.viewer_session(record.id, request).await,
            None => Err(wrong()),
        }
    }

    pub(crate) async fn check_viewer_password(&self, id: ComputerId, password: &str) -> Result<(), Failure> {
        self.inner.viewers.admit(id, Instant::now())?;
        let kept = self.inner.store.viewer_password(id).await?.ok_or_else(wrong)?;
        if password.len() > LONGEST {
            return Err(wrong());
        }
        let password = password.to_owned();
        let is_right = self.hash(move || {
            let hash = PasswordHash::new(&kept.hash)?;
            Ok(Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        let is_right = is_right.await?.map_err(|error: argon2::password_hash::phc::Error| {
            Failure::internal(std::io::Error::other(error.to_string()))
        })?;
        if is_right { Ok(()) } else { Err(wrong()) }
    }

    /// Runs a hash where it holds nobody up.
    async fn hash<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        let _permit = self.inner.viewers.hashing.acquire().await.map_err(Failure::internal)?;
        tokio::task::spawn_blocking(work).await.map_err(Failure::internal)
    }

    /// 409 in the words of the viewer's routes.
    pub(crate) fn require_desktop(&self, record: &ComputerRecord) -> Result<(), Failure> {
        match status(record) {
            Status::Running => Ok(()),
            other => Err(Failure::new(
                ErrorCode::DesktopNotRunning,
                format!(
                    "computer_not_running: the desktop needs a running computer and it is {other}; start it first"
                ),
            )),
        }
    }
}

fn wrong() -> Failure {
    Failure::new(ErrorCode::WrongPassword, "the viewer password is wrong, or the computer has none")
}

fn new_password() -> Result<String, Failure> {
    let mut bytes = [0; GROUPS * GROUP];
    getrandom::fill(&mut bytes).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
    let characters: Vec<char> =
        bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    let groups: Vec<String> = characters.chunks(GROUP).map(|group| group.iter().collect()).collect();
    Ok(groups.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_per_computer_and_minute() {
        let viewers = Viewers::default();
        let (one, other) = (ComputerId::new(), ComputerId::new());
        let now = Instant::now();
        for _ in 0..MOST_ATTEMPTS {
            viewers.admit(one, now).unwrap();
        }
        let refused = viewers.admit(one, now + WINDOW / 2).unwrap_err().public;
        assert_eq!((refused.code, refused.retry_after_ms), (ErrorCode::RateLimited, Some(30_000)));
        viewers.admit(other, now).unwrap();
        viewers.admit(one, now + WINDOW).unwrap();
    }

    #[test]
    fn passwords_are_long_and_differ() {
        let (one, other) = (new_password().unwrap(), new_password().unwrap());
        assert_eq!(one.len(), GROUPS * GROUP + GROUPS - 1);
        assert_ne!(one, other);
        assert_eq!(ALPHABET.iter().collect::<std::collections::HashSet<_>>().len(), ALPHABET.len());
    }
}
