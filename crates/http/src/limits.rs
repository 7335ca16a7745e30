//! How many requests an API key may make in a minute. Unused ones add up to a minute's worth.

use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use roost_api::{ApiError, ApiKeyId, ErrorCode};

/// Counts requests per API key, in this server.
#[derive(Debug)]
pub struct RateLimit {
    per_minute: NonZeroU32,
    keys: DefaultKeyedRateLimiter<ApiKeyId>,
    clock: DefaultClock,
}

impl RateLimit {
    pub fn per_minute(per_minute: NonZeroU32) -> Self {
        Self {
            per_minute,
            keys: RateLimiter::keyed(Quota::per_minute(per_minute)),
            clock: DefaultClock::default(),
        }
    }

    pub(crate) fn requests_per_minute(&self) -> u32 {
        self.per_minute.get()
    }

    /// Counts a request, or says when the next one is allowed.
    pub(crate) fn check(&self, key: ApiKeyId) -> Result<(), ApiError> {
        self.keys.check_key(&key).map_err(|refused| {
            let wait = refused.wait_time_from(self.clock.now());
            // A client that comes back on the dot must not be early.
            let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
            let message = format!(
                "more than {} requests in a minute; the next is allowed in {} s",
                self.per_minute,
                milliseconds.div_ceil(1000)
            );
            ApiError::new(ErrorCode::RateLimitExceeded, message).retry_after_ms(milliseconds)
        })
    }
}
