//! Webhooks and their deliveries. An event becomes a delivery in the transaction that moves the webhook's place
//! behind it: once, whatever crashes and however many servers there are.

use std::collections::{BTreeMap, HashSet};

use roost_api::{DeliveryId, EventId, TenantId, Timestamp, UserId, WebhookId};
use sqlx::{Row, Transaction};

use crate::computers::json;
use crate::events::EventRecord;
use crate::query::QueryBuilder;
use crate::reach::Confinement;
use crate::record::{self, DeliveryState, number, optional, optional_number, optional_time, parsed};
use crate::{Db, DbRow, Store, StoreError};

/// How many events are looked at for one webhook at once.
const BATCH: u16 = 200;

#[derive(Debug, Clone)]
pub struct WebhookRecord {
    pub id: WebhookId,
    pub tenant: TenantId,
    /// Who made it; `None`: from before that was written down.
    pub user: Option<UserId>,
    /// It is told of nothing outside of this.
    pub confinement: Confinement,
    pub url: String,
    /// Patterns of types.
    pub events: Vec<String>,
    pub name: Option<String>,
    /// Sealed.
    pub headers: String,
    /// Sealed.
    pub secret: String,
    pub secret_preview: String,
    pub retry_count: u32,
    pub active: bool,
    pub metadata: BTreeMap<String, String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct DeliveryRecord {
    pub id: DeliveryId,
    pub webhook: WebhookId,
    pub event_type: String,
    pub payload: String,
    pub state: DeliveryState,
    pub attempts: u32,
    pub attempted_at: Option<Timestamp>,
    pub duration_ms: Option<u64>,
    pub status_code: Option<u16>,
    pub response_body: Option<String>,
    pub error: Option<String>,
    pub created_at: Timestamp,
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub state: DeliveryState,
    /// For one that is to be tried again.
    pub next_at: Timestamp,
    pub duration_ms: u64,
    pub status_code: Option<u16>,
    pub response_body: Option<String>,
    pub error: Option<String>,
}

impl Store {
    /// It is told of what happens from now on.
    pub async fn insert_webhook(&self, new: &WebhookRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO webhooks (id, tenant_id, url, events, name, headers, secret, secret_preview, retry_count,
                 active, metadata, user_id, workspace_id, external_user_id, place, created_at, updated_at)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, CAST($9 AS BIGINT), CAST($10 AS BIGINT), $11, $12, $13,
                 $14, last_id, CAST($15 AS BIGINT), CAST($15 AS BIGINT) FROM event_log WHERE id = 1",
        )
        .bind(new.id.to_string())
        .bind(new.tenant.to_string())
        .bind(&new.url)
        .bind(json(&new.events)?)
        .bind(&new.name)
        .bind(&new.headers)
        .bind(&new.secret)
        .bind(&new.secret_preview)
        .bind(i64::from(new.retry_count))
        .bind(i64::from(new.active))
        .bind(json(&new.metadata)?)
        .bind(new.user.map(|id| id.to_string()))
        .bind(new.confinement.workspace.map(|id| id.to_string()))
        .bind(&new.confinement.external_user)
        .bind(new.created_at.as_micros())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub async fn webhooks(&self, tenant: TenantId) -> Result<Vec<WebhookRecord>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM webhooks WHERE tenant_id = $1 ORDER BY created_at DESC, id DESC")
                .bind(tenant.to_string())
                .fetch_all(&self.pool)
                .await?;
        rows.iter().map(WebhookRecord::from_row).collect()
    }

    pub async fn webhook(
        &self,
        tenant: TenantId,
        id: WebhookId,
    ) -> Result<Option<WebhookRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM webhooks WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(WebhookRecord::from_row).transpose()
    }

    /// Changes a webhook as `change` says of its row as it is now. One that was not active is told of what happens
    /// from now on.
    pub async fn change_webhook(
        &self,
        tenant: TenantId,
        id: WebhookId,
        change: impl FnOnce(&mut WebhookRecord),
    ) -> Result<Option<WebhookRecord>, StoreError> {
        let mut tx = self.write().await?;
        let row = sqlx::query("SELECT * FROM webhooks WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        let Some(mut webhook) = row.as_ref().map(WebhookRecord::from_row).transpose()? else {
            return Ok(None);
        };
        change(&mut webhook);
        webhook.updated_at = Timestamp::now();
        sqlx::query(
            "UPDATE webhooks SET url = $1, events = $2, name = $3, headers = $4, secret = $5, secret_preview = $6,
                 retry_count = $7, metadata = $8, updated_at = $9, active = $10,
                 place = CASE active WHEN 1 THEN place ELSE (SELECT last_id FROM event_log WHERE id = 1) END
             WHERE id = $11",
        )
        .bind(&webhook.url)
        .bind(json(&webhook.events)?)
        .bind(&webhook.name)
        .bind(&webhook.headers)
        .bind(&webhook.secret)
        .bind(&webhook.secret_preview)
        .bind(i64::from(webhook.retry_count))
        .bind(json(&webhook.metadata)?)
        .bind(webhook.updated_at.as_micros())
        .bind(i64::from(webhook.active))
        .bind(id.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Some(webhook))
    }

    /// Its deliveries go with it.
    pub async fn delete_webhook(&self, tenant: TenantId, id: WebhookId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM webhooks WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Makes deliveries of new events, with the payload that `payload` gives for what a webhook wants to know. True:
    /// there may be more.
    pub async fn make_deliveries(
        &self,
        payload: impl Fn(&WebhookRecord, &EventRecord) -> Option<String>,
    ) -> Result<bool, StoreError> {
        const BEHIND: &str = "SELECT w.* FROM webhooks w JOIN event_log l ON l.id = 1
             WHERE w.active = 1 AND w.place < l.last_id ORDER BY w.id LIMIT 20";
        if sqlx::query(BEHIND).fetch_optional(&self.pool).await?.is_none() {
            return Ok(false);
        }
        let mut tx = self.write().await?;
        for row in sqlx::query(BEHIND).fetch_all(&mut *tx).await? {
            let webhook = WebhookRecord::from_row(&row)?;
            let place: i64 = row.try_get("place")?;
            let rows =
                sqlx::query("SELECT * FROM events WHERE tenant_id = $1 AND id > $2 ORDER BY id LIMIT $3")
                    .bind(webhook.tenant.to_string())
                    .bind(place)
                    .bind(i64::from(BATCH))
                    .fetch_all(&mut *tx)
                    .await?;
            let events = rows.iter().map(EventRecord::from_row).collect::<Result<Vec<_>, _>>()?;
            for event in &events {
                if let Some(payload) = payload(&webhook, event) {
                    insert_delivery(&mut tx, webhook.id, &event.kind, &payload, None, Timestamp::now())
                        .await?;
                }
            }
            let last = events.last().map(|event| event.id).filter(|_| rows.len() == usize::from(BATCH));
            let EventId(last) = match last {
                Some(last) => last,
                None => self.last_event(&mut tx).await?,
            };
            sqlx::query("UPDATE webhooks SET place = $1 WHERE id = $2")
                .bind(last)
                .bind(webhook.id.to_string())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn last_event(&self, tx: &mut Transaction<'static, Db>) -> Result<EventId, StoreError> {
        let row = sqlx::query("SELECT last_id FROM event_log WHERE id = 1").fetch_one(&mut **tx).await?;
        Ok(EventId(row.try_get("last_id")?))
    }

    /// One delivery more, due at once. With a `replay_id` that was used before: that one.
    pub async fn insert_delivery(
        &self,
        webhook: WebhookId,
        event_type: &str,
        payload: &str,
        replay_id: Option<&str>,
    ) -> Result<DeliveryRecord, StoreError> {
        let mut tx = self.write().await?;
        let found = sqlx::query("SELECT * FROM webhook_deliveries WHERE webhook_id = $1 AND replay_id = $2")
            .bind(webhook.to_string())
            .bind(replay_id)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(found) = found {
            return DeliveryRecord::from_row(&found);
        }
        let now = Timestamp::now();
        let id = insert_delivery(&mut tx, webhook, event_type, payload, replay_id, now).await?;
        let row = sqlx::query("SELECT * FROM webhook_deliveries WHERE id = $1")
            .bind(id.to_string())
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        DeliveryRecord::from_row(&row)
    }

    /// The newest deliveries of a webhook.
    pub async fn deliveries(&self, webhook: WebhookId) -> Result<Vec<DeliveryRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM webhook_deliveries WHERE webhook_id = $1 ORDER BY created_at DESC, id DESC LIMIT 100",
        )
        .bind(webhook.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(DeliveryRecord::from_row).collect()
    }

    pub async fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM webhook_deliveries WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(DeliveryRecord::from_row).transpose()
    }

    /// Takes up to `most` deliveries that are due, at most one of each webhook, and none of one that is being spoken
    /// to. They count as lost at `lost_at`.
    pub async fn claim_deliveries(
        &self,
        now: Timestamp,
        lost_at: Timestamp,
        most: usize,
    ) -> Result<Vec<(WebhookRecord, DeliveryRecord)>, StoreError> {
        let mut tx = self.write().await?;
        let rows = sqlx::query(
            "SELECT d.* FROM webhook_deliveries d WHERE d.state = 'pending' AND d.next_at <= $1
                 AND NOT EXISTS (SELECT 1 FROM webhook_deliveries o
                     WHERE o.webhook_id = d.webhook_id AND o.state = 'pending' AND o.claimed = 1 AND o.next_at > $1)
             ORDER BY d.next_at, d.created_at LIMIT 200",
        )
        .bind(now.as_micros())
        .fetch_all(&mut *tx)
        .await?;
        let mut busy = HashSet::new();
        let mut claimed = Vec::new();
        for row in &rows {
            let mut delivery = DeliveryRecord::from_row(row)?;
            if claimed.len() == most || !busy.insert(delivery.webhook) {
                continue;
            }
            sqlx::query(
                "UPDATE webhook_deliveries SET claimed = 1, next_at = $1, attempts = attempts + 1,
                     attempted_at = $2 WHERE id = $3",
            )
            .bind(lost_at.as_micros())
            .bind(now.as_micros())
            .bind(delivery.id.to_string())
            .execute(&mut *tx)
            .await?;
            delivery.attempts += 1;
            let webhook = sqlx::query("SELECT * FROM webhooks WHERE id = $1")
                .bind(delivery.webhook.to_string())
                .fetch_one(&mut *tx)
                .await?;
            claimed.push((WebhookRecord::from_row(&webhook)?, delivery));
        }
        tx.commit().await?;
        Ok(claimed)
    }

    /// When the next delivery is due that nothing stands before.
    pub async fn next_delivery(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let row = sqlx::query(
            "SELECT MIN(d.next_at) AS at FROM webhook_deliveries d WHERE d.state = 'pending'
                 AND NOT EXISTS (SELECT 1 FROM webhook_deliveries o WHERE o.webhook_id = d.webhook_id
                     AND o.id <> d.id AND o.state = 'pending' AND o.claimed = 1 AND o.next_at > $1)",
        )
        .bind(now.as_micros())
        .fetch_one(&self.pool)
        .await?;
        optional_time(&row, "at")
    }

    /// Records how an attempt ended, unless it counts as lost and another has begun.
    pub async fn finish_attempt(
        &self,
        delivery: &DeliveryRecord,
        attempt: &Attempt,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE webhook_deliveries SET state = $1, claimed = 0, next_at = $2, duration_ms = $3,
                 status_code = $4, response_body = $5, error = $6
             WHERE id = $7 AND attempts = $8 AND state = 'pending'",
        )
        .bind(attempt.state.as_str())
        .bind(attempt.next_at.as_micros())
        .bind(crate::computers::signed(attempt.duration_ms)?)
        .bind(attempt.status_code.map(i64::from))
        .bind(&attempt.response_body)
        .bind(&attempt.error)
        .bind(delivery.id.to_string())
        .bind(i64::from(delivery.attempts))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Removes deliveries that have ended and were made before.
    pub async fn remove_deliveries(&self, before: Timestamp) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM webhook_deliveries WHERE state <> 'pending' AND created_at < $1")
            .bind(before.as_micros())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

async fn insert_delivery(
    tx: &mut Transaction<'static, Db>,
    webhook: WebhookId,
    event_type: &str,
    payload: &str,
    replay_id: Option<&str>,
    now: Timestamp,
) -> Result<DeliveryId, StoreError> {
    let id = DeliveryId::new();
    let mut query = QueryBuilder::new(
        "INSERT INTO webhook_deliveries (id, webhook_id, event_type, payload, replay_id, state, attempts, next_at,
             claimed, created_at) VALUES (",
    );
    query.push_bind(id.to_string()).push(", ").push_bind(webhook.to_string());
    query.push(", ").push_bind(event_type.to_owned()).push(", ").push_bind(payload.to_owned());
    query.push(", ").push_bind(replay_id.map(str::to_owned)).push(", 'pending', 0, ");
    query.push_bind(now.as_micros()).push(", 0, ").push_bind(now.as_micros()).push(")");
    query.build().execute(&mut **tx).await?;
    Ok(id)
}

impl WebhookRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant: parsed(row, "tenant_id")?,
            user: optional(row, "user_id")?,
            confinement: Confinement {
                workspace: optional(row, "workspace_id")?,
                external_user: row.try_get("external_user_id")?,
            },
            url: row.try_get("url")?,
            events: record::json(row, "events")?,
            name: row.try_get("name")?,
            headers: row.try_get("headers")?,
            secret: row.try_get("secret")?,
            secret_preview: row.try_get("secret_preview")?,
            retry_count: number(row, "retry_count")?,
            active: row.try_get::<i64, _>("active")? != 0,
            metadata: record::json(row, "metadata")?,
            created_at: record::time(row, "created_at")?,
            updated_at: record::time(row, "updated_at")?,
        })
    }
}

impl DeliveryRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            webhook: parsed(row, "webhook_id")?,
            event_type: row.try_get("event_type")?,
            payload: row.try_get("payload")?,
            state: parsed(row, "state")?,
            attempts: number(row, "attempts")?,
            attempted_at: optional_time(row, "attempted_at")?,
            duration_ms: optional_number(row, "duration_ms")?,
            status_code: optional_number(row, "status_code")?,
            response_body: row.try_get("response_body")?,
            error: row.try_get("error")?,
            created_at: record::time(row, "created_at")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDatabase;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(Timestamp::now().as_micros() + seconds * 1_000_000).unwrap()
    }

    fn webhook(tenant: TenantId) -> WebhookRecord {
        WebhookRecord {
            id: WebhookId::new(),
            tenant,
            user: None,
            confinement: Confinement::default(),
            url: "https://example.org/".to_owned(),
            events: vec!["*".to_owned()],
            name: None,
            headers: String::new(),
            secret: String::new(),
            secret_preview: String::new(),
            retry_count: 3,
            active: true,
            metadata: BTreeMap::new(),
            created_at: at(0),
            updated_at: at(0),
        }
    }

    #[tokio::test]
    async fn one_delivery_of_a_webhook_is_claimed_at_a_time_and_a_lost_one_again() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let tenant = store.home().await.unwrap().tenant;
        let (one, two) = (webhook(tenant), webhook(tenant));
        for webhook in [&one, &two] {
            store.insert_webhook(webhook).await.unwrap();
            for payload in ["1", "2"] {
                store.insert_delivery(webhook.id, "error", payload, None).await.unwrap();
            }
        }
        assert_eq!(store.claim_deliveries(at(0), at(60), 1).await.unwrap().len(), 1);
        let claimed = store.claim_deliveries(at(0), at(60), 10).await.unwrap();
        assert_eq!(claimed.len(), 1, "the other webhook's first");
        assert!(store.claim_deliveries(at(0), at(60), 10).await.unwrap().is_empty());
        assert!(
            store.next_delivery(at(0)).await.unwrap().unwrap() > at(30),
            "nothing before one counts as lost"
        );

        // It failed and is due again later; what waited behind it is due now.
        let (webhook, delivery) = &claimed[0];
        assert_eq!((delivery.payload.as_str(), delivery.attempts), ("1", 1));
        let attempt = Attempt {
            state: DeliveryState::Pending,
            next_at: at(10),
            duration_ms: 1,
            status_code: Some(500),
            response_body: None,
            error: None,
        };
        store.finish_attempt(delivery, &attempt).await.unwrap();
        let next = store.claim_deliveries(at(0), at(60), 10).await.unwrap();
        assert_eq!(next.len(), 1);
        assert_eq!((next[0].0.id, next[0].1.payload.as_str()), (webhook.id, "2"));
        // Everything counts as lost: each webhook's turn comes again, and a late answer to the first changes nothing.
        let again = store.claim_deliveries(at(120), at(180), 10).await.unwrap();
        assert_eq!(again.len(), 2);
        let (_, late) = &next[0];
        let delivered = Attempt { state: DeliveryState::Delivered, ..attempt };
        let taken_over = again.iter().any(|(_, delivery)| delivery.id == late.id);
        store.finish_attempt(late, &delivered).await.unwrap();
        let state = store.delivery(late.id).await.unwrap().unwrap().state;
        assert_eq!(state == DeliveryState::Pending, taken_over);

        store.remove_deliveries(at(1)).await.unwrap();
        let left = store.deliveries(webhook.id).await.unwrap();
        assert!(left.iter().all(|delivery| delivery.state == DeliveryState::Pending));
        assert!(store.delete_webhook(tenant, webhook.id).await.unwrap());
        assert!(store.deliveries(webhook.id).await.unwrap().is_empty());
    }
}
