//! Webhooks: who is told of events, and the telling.
//!
//! The teller makes deliveries of new events, sends what is due, and tries again what failed, later each time. A
//! delivery is sent at least once: a server that ends while it waits for an answer does not know what became of it, and
//! the next one sends again. A webhook is told one thing at a time, so a slow one holds up nobody else.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use roost_api::{
    ApiError, CreatedWebhook, DeliveryId, ErrorCode, Event, EventId, Timestamp, Webhook, WebhookDelivery,
    WebhookId, WebhookRequest,
};
use roost_store::{Attempt, Caller, DeliveryRecord, DeliveryState, EventRecord, EventScope, WebhookRecord};
use sha2::Sha256;
use tokio::sync::{Notify, Semaphore};

use crate::access;
use crate::computers::metadata;
use crate::events::{self, matches};
use crate::keys::hex;
use crate::{Control, Failure};

/// How many are spoken to at once.
const AT_ONCE: usize = 16;
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// After this an attempt whose end nobody recorded counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// How long to wait for a database that does not answer.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Before the second attempt, the third, and so on.
const PAUSES: [Duration; 10] = [
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(3600),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(4 * 3600),
    Duration::from_secs(8 * 3600),
    Duration::from_secs(8 * 3600),
];
const DEFAULT_RETRIES: u32 = 3;
const MOST_WEBHOOKS: usize = 100;
const MOST_TEXT: usize = 4096;

/// Speaks to addresses of others.
#[async_trait]
pub trait Outbound: Debug + Send + Sync + 'static {
    /// Why this server would not speak to `url`, as far as the address itself tells.
    fn check(&self, url: &str) -> Result<(), String>;
    /// Why these headers cannot be sent.
    fn check_headers(&self, headers: &BTreeMap<String, String>) -> Result<(), String>;
    /// Sends a JSON body; the status of the answer and the beginning of its text.
    async fn post(
        &self,
        url: &str,
        headers: &BTreeMap<String, String>,
        body: &str,
    ) -> Result<(u16, String), String>;
}

#[derive(Debug, Default)]
pub(crate) struct Teller {
    /// Something may be due.
    due: Arc<Notify>,
}

impl Control {
    pub async fn create_webhook(
        &self,
        caller: &Caller,
        request: WebhookRequest,
    ) -> Result<CreatedWebhook, Failure> {
        access::may_make_webhooks(caller)?;
        let url = request.url.clone().ok_or_else(|| ApiError::field("url", "is required"))?;
        let events = request.events.clone().ok_or_else(|| ApiError::field("events", "is required"))?;
        self.check_webhook(&request)?;
        if self.inner.store.webhooks(caller.tenant).await?.len() >= MOST_WEBHOOKS {
            let message = format!("there are {MOST_WEBHOOKS} webhooks already; delete one first");
            return Err(Failure::new(ErrorCode::ResourceState, message));
        }
        let secret = match request.secret {
            Some(secret) => secret,
            None => {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes)
                    .map_err(|error| Failure::internal(std::io::Error::other(error)))?;
                format!("whsec_{}", URL_SAFE_NO_PAD.encode(bytes))
            }
        };
        let id = WebhookId::new();
        let now = Timestamp::now();
        let record = WebhookRecord {
            id,
            tenant: caller.tenant,
            user: Some(caller.user),
            confinement: caller.confinement.clone(),
            url,
            events,
            name: request.name,
            headers: self.seal_headers(id, &request.headers.unwrap_or_default())?,
            secret: self.inner.config.seal_key.seal(&context("secret", id), secret.as_bytes())?,
            secret_preview: preview(&secret),
            retry_count: request.retry_count.unwrap_or(DEFAULT_RETRIES),
            active: request.active.unwrap_or(true),
            metadata: metadata(request.metadata)?,
            created_at: now,
            updated_at: now,
        };
        self.inner.store.insert_webhook(&record).await?;
        let mut data = self.webhook_view(&record)?;
        data.secret = Some(secret.clone());
        Ok(CreatedWebhook { data, secret })
    }

    pub async fn webhooks(&self, caller: &Caller, active: Option<bool>) -> Result<Vec<Webhook>, Failure> {
        let found = self.inner.store.webhooks(caller.tenant).await?;
        let wanted = found.iter().filter(|webhook| {
            access::check_webhook(caller, webhook).is_ok()
                && active.is_none_or(|active| webhook.active == active)
        });
        wanted.map(|webhook| self.webhook_view(webhook)).collect()
    }

    pub async fn webhook(&self, caller: &Caller, id: &str) -> Result<WebhookRecord, Failure> {
        let id = id.parse().map_err(|_| webhook_not_found())?;
        let found = self.inner.store.webhook(caller.tenant, id).await?.ok_or_else(webhook_not_found)?;
        access::check_webhook(caller, &found).map_err(|denied| denied.about("webhook"))?;
        Ok(found)
    }

    pub async fn change_webhook(
        &self,
        record: &WebhookRecord,
        request: WebhookRequest,
    ) -> Result<Webhook, Failure> {
        self.check_webhook(&request)?;
        let headers =
            request.headers.as_ref().map(|headers| self.seal_headers(record.id, headers)).transpose()?;
        let seal_key = &self.inner.config.seal_key;
        let seal = |secret: &String| seal_key.seal(&context("secret", record.id), secret.as_bytes());
        let secret = request.secret.as_ref().map(seal).transpose()?;
        let metadata = request.metadata.map(|map| metadata(Some(map))).transpose()?;
        let changed = self.inner.store.change_webhook(record.tenant, record.id, |webhook| {
            replace(&mut webhook.url, request.url);
            replace(&mut webhook.events, request.events);
            replace(&mut webhook.headers, headers);
            replace(&mut webhook.retry_count, request.retry_count);
            replace(&mut webhook.active, request.active);
            replace(&mut webhook.metadata, metadata);
            replace(&mut webhook.secret_preview, request.secret.as_deref().map(preview));
            replace(&mut webhook.secret, secret);
            if request.name.is_some() {
                webhook.name = request.name;
            }
        });
        self.webhook_view(&changed.await?.ok_or_else(webhook_not_found)?)
    }

    pub async fn delete_webhook(&self, record: &WebhookRecord) -> Result<(), Failure> {
        let deleted = self.inner.store.delete_webhook(record.tenant, record.id).await?;
        deleted.then_some(()).ok_or_else(webhook_not_found)
    }

    /// Tells the webhook something that means nothing, and waits for how it goes. It is not tried again.
    pub async fn test_webhook(&self, record: &WebhookRecord) -> Result<WebhookDelivery, Failure> {
        let event = EventRecord {
            id: EventId::default(),
            scope: EventScope::tenant(record.tenant),
            kind: "webhook.test".to_owned(),
            data: serde_json::Map::new(),
            created_at: Timestamp::now(),
        };
        let attempt = self.attempt(record, DeliveryId::new(), &event.kind, &events::payload(&event)).await;
        Ok(WebhookDelivery {
            id: DeliveryId::new(),
            webhook_id: record.id,
            event_type: event.kind,
            status_code: attempt.status_code,
            success: attempt.state == DeliveryState::Delivered,
            state: attempt.state.as_str().to_owned(),
            attempts: 1,
            attempted_at: Some(event.created_at),
            duration_ms: Some(attempt.duration_ms),
            response_body: attempt.response_body,
            error: attempt.error,
            created_at: event.created_at,
        })
    }

    pub async fn deliveries(&self, record: &WebhookRecord) -> Result<Vec<WebhookDelivery>, Failure> {
        let found = self.inner.store.deliveries(record.id).await?;
        Ok(found.into_iter().map(delivery_view).collect())
    }

    /// Sends again what was sent before, whether it arrived or not.
    pub async fn replay_delivery(
        &self,
        record: &WebhookRecord,
        id: &str,
        replay_id: Option<&str>,
    ) -> Result<WebhookDelivery, Failure> {
        let missing = || Failure::new(ErrorCode::DeliveryNotFound, "delivery not found");
        let id: DeliveryId = id.parse().map_err(|_| missing())?;
        let found = self.inner.store.delivery(id).await?;
        let found = found.filter(|found| found.webhook == record.id).ok_or_else(missing)?;
        if found.state == DeliveryState::Pending {
            let message = "the delivery is still under way; it can be replayed when it has arrived or failed";
            return Err(Failure::new(ErrorCode::NotRedeliverable, message));
        }
        if replay_id.is_some_and(|id| id.is_empty() || id.len() > 255) {
            return Err(ApiError::field("replay_id", "not 1 to 255 bytes").into());
        }
        let store = &self.inner.store;
        let replay = store.insert_delivery(record.id, &found.event_type, &found.payload, replay_id).await?;
        self.inner.teller.due.notify_one();
        Ok(delivery_view(replay))
    }

    fn check_webhook(&self, request: &WebhookRequest) -> Result<(), ApiError> {
        let outbound = &self.inner.config.outbound;
        if let Some(url) = &request.url {
            let fits = if url.len() > MOST_TEXT { Err("too long".to_owned()) } else { outbound.check(url) };
            fits.map_err(|problem| ApiError::field("url", problem))?;
        }
        if let Some(events) = &request.events {
            if events.is_empty() || events.len() > 50 {
                return Err(ApiError::field("events", "not 1 to 50 types; `*` is every type"));
            }
            for pattern in events {
                if !Event::KINDS.iter().any(|kind| matches(pattern, kind)) {
                    let problem =
                        format!("{pattern:?} fits no type of event; GET /api/v1/webhooks/events lists them");
                    return Err(ApiError::field("events", problem));
                }
            }
        }
        if let Some(headers) = &request.headers {
            outbound.check_headers(headers).map_err(|problem| ApiError::field("headers", problem))?;
        }
        if request.retry_count.is_some_and(|count| count > 10) {
            return Err(ApiError::field("retry_count", "not 0 to 10"));
        }
        if request.secret.as_ref().is_some_and(|secret| secret.len() < 8 || secret.len() > 256) {
            return Err(ApiError::field("secret", "not 8 to 256 bytes"));
        }
        if request.name.as_ref().is_some_and(|name| name.chars().count() > 200) {
            return Err(ApiError::field("name", "longer than 200 characters"));
        }
        Ok(())
    }

    fn seal_headers(&self, id: WebhookId, headers: &BTreeMap<String, String>) -> Result<String, Failure> {
        let text = serde_json::to_vec(headers).map_err(Failure::internal)?;
        self.inner.config.seal_key.seal(&context("headers", id), &text)
    }

    fn open_headers(&self, record: &WebhookRecord) -> Result<BTreeMap<String, String>, Failure> {
        let text = self.inner.config.seal_key.open(&context("headers", record.id), &record.headers);
        serde_json::from_slice(&text.ok_or_else(unreadable)?).map_err(Failure::internal)
    }

    pub fn webhook_view(&self, record: &WebhookRecord) -> Result<Webhook, Failure> {
        Ok(Webhook {
            id: record.id,
            tenant_id: record.tenant,
            url: record.url.clone(),
            events: record.events.clone(),
            name: record.name.clone(),
            headers: self.open_headers(record)?,
            retry_count: record.retry_count,
            active: record.active,
            secret_preview: record.secret_preview.clone(),
            metadata: record.metadata.clone(),
            created_at: record.created_at,
            updated_at: record.updated_at,
            secret: None,
        })
    }

    /// Tells webhooks of events from now on, for as long as this control plane lives.
    pub(crate) fn keep_telling(&self) {
        let mut changes = self.inner.hub.subscribe_to_all();
        let due = self.inner.teller.due.clone();
        let control = Arc::downgrade(&self.inner);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        tokio::spawn(async move {
            loop {
                changes.mark_unchanged();
                let Some(inner) = control.upgrade() else { return };
                let next = match (Control { inner }).tell_what_is_due(&places).await {
                    Ok(next) => next,
                    Err(failure) => {
                        let failure = &failure as &dyn std::error::Error;
                        tracing::error!(failure, "failed to look for what webhooks are to be told");
                        Some(AFTER_FAILURE)
                    }
                };
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = due.notified() => {}
                    () = sleep(next) => {}
                }
            }
        });
    }

    /// Returns how long nothing else is due.
    async fn tell_what_is_due(&self, places: &Arc<Semaphore>) -> Result<Option<Duration>, Failure> {
        let store = &self.inner.store;
        let payload = |webhook: &WebhookRecord, event: &EventRecord| {
            let wanted = webhook.events.iter().any(|pattern| matches(pattern, &event.kind));
            let EventScope { workspace, external_user, .. } = &event.scope;
            let is_inside = webhook.confinement.includes(*workspace, external_user.as_deref());
            (wanted && is_inside).then(|| events::payload(event))
        };
        while store.make_deliveries(payload).await? {}
        let free = places.available_permits();
        if free == 0 {
            return Ok(None); // whoever ends says so
        }
        let now = Timestamp::now();
        if store.next_delivery(now).await?.is_some_and(|at| at <= now) {
            for (webhook, delivery) in store.claim_deliveries(now, later(now, LOST_AFTER), free).await? {
                // There are as many as were asked for; nobody else takes them.
                let place = places.clone().try_acquire_owned().map_err(Failure::internal)?;
                let control = self.clone();
                tokio::spawn(async move {
                    control.deliver(&webhook, &delivery).await;
                    drop(place);
                    control.inner.teller.due.notify_one();
                });
            }
        }
        let now = Timestamp::now();
        let next = store.next_delivery(now).await?;
        Ok(next.map(|at| {
            let micros = u64::try_from(at.as_micros().saturating_sub(now.as_micros())).unwrap_or(0);
            Duration::from_micros(micros)
        }))
    }

    async fn deliver(&self, webhook: &WebhookRecord, delivery: &DeliveryRecord) {
        let mut attempt = self.attempt(webhook, delivery.id, &delivery.event_type, &delivery.payload).await;
        if attempt.state == DeliveryState::Failed && delivery.attempts <= webhook.retry_count {
            let index = usize::try_from(delivery.attempts.saturating_sub(1)).unwrap_or(usize::MAX);
            let pause = PAUSES.get(index).or(PAUSES.last()).copied().unwrap_or(LOST_AFTER);
            attempt.state = DeliveryState::Pending;
            attempt.next_at = later(Timestamp::now(), pause);
        }
        if let Err(error) = self.inner.store.finish_attempt(delivery, &attempt).await {
            // It counts as lost and is sent again.
            let error = &error as &dyn std::error::Error;
            tracing::error!(delivery = %delivery.id, error, "failed to record how a delivery went");
        }
    }

    /// Sends once.
    async fn attempt(&self, webhook: &WebhookRecord, id: DeliveryId, kind: &str, payload: &str) -> Attempt {
        let begun = Instant::now();
        let sent = match self.signed(webhook, id, kind, payload) {
            Ok(headers) => {
                let sending = self.inner.config.outbound.post(&webhook.url, &headers, payload);
                match tokio::time::timeout(PATIENCE, sending).await {
                    Ok(sent) => sent,
                    Err(_) => Err(format!("no answer within {} seconds", PATIENCE.as_secs())),
                }
            }
            Err(failure) => Err(failure.public.message),
        };
        let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = Timestamp::now();
        let (state, status_code, response_body, error) = match sent {
            Ok((status @ 200..=299, text)) => (DeliveryState::Delivered, Some(status), Some(text), None),
            Ok((status, text)) => {
                let error = format!("the address answered {status}");
                (DeliveryState::Failed, Some(status), Some(text), Some(error))
            }
            Err(error) => (DeliveryState::Failed, None, None, Some(error)),
        };
        Attempt { state, next_at: now, duration_ms, status_code, response_body, error }
    }

    fn signed(
        &self,
        webhook: &WebhookRecord,
        id: DeliveryId,
        kind: &str,
        payload: &str,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let secret = self.inner.config.seal_key.open(&context("secret", webhook.id), &webhook.secret);
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&secret.ok_or_else(unreadable)?).map_err(Failure::internal)?;
        mac.update(payload.as_bytes());
        let mut headers = self.open_headers(webhook)?;
        let signature = format!("sha256={}", hex(&mac.finalize().into_bytes()));
        headers.insert("x-miosa-signature".to_owned(), signature);
        headers.insert("x-miosa-event".to_owned(), kind.to_owned());
        headers.insert("x-miosa-delivery".to_owned(), id.to_string());
        Ok(headers)
    }
}

/// `None`: for ever.
async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

fn replace<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_add(by)).unwrap_or(now)
}

pub(crate) fn context(what: &str, id: WebhookId) -> String {
    format!("webhook {what} {id}")
}

fn preview(secret: &str) -> String {
    let end: String = secret.chars().rev().take(4).collect::<Vec<_>>().into_iter().rev().collect();
    format!("...{end}")
}

fn webhook_not_found() -> Failure {
    Failure::new(ErrorCode::NotFound, "webhook not found")
}

fn unreadable() -> Failure {
    Failure::new(
        ErrorCode::Internal,
        "the webhook was sealed with another key than this server has; delete it and make it anew",
    )
}

fn delivery_view(record: DeliveryRecord) -> WebhookDelivery {
    WebhookDelivery {
        id: record.id,
        webhook_id: record.webhook,
        event_type: record.event_type,
        status_code: record.status_code,
        success: record.state == DeliveryState::Delivered,
        state: record.state.as_str().to_owned(),
        attempts: record.attempts,
        attempted_at: record.attempted_at,
        duration_ms: record.duration_ms,
        response_body: record.response_body,
        error: record.error,
        created_at: record.created_at,
    }
}
