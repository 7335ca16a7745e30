//! Requests that are to be carried out once: that they were begun, and what they were answered.

use roost_api::Timestamp;
use sqlx::Row;

use crate::record::time;
use crate::{Store, StoreError};

/// What is known of a request that somebody wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestState {
    /// Nothing; from now on it is begun.
    Begun,
    /// It was begun before, and is not known to have ended.
    Unfinished {
        since: Timestamp,
    },
    Answered {
        answer: String,
    },
    /// Another request has the same id.
    Different,
}

/// From when on requests count.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Those that began before are forgotten.
    pub any: Timestamp,
    /// Those that began before and have not ended are forgotten too.
    pub unfinished: Timestamp,
}

impl Store {
    /// Records that a request begins, unless one with its id counts already.
    pub async fn begin_request(
        &self,
        id: &str,
        fingerprint: &str,
        limits: RequestLimits,
    ) -> Result<RequestState, StoreError> {
        let mut tx = self.write().await?;
        sqlx::query(
            "DELETE FROM idempotent_requests
             WHERE id = $1 AND (created_at < $2 OR (answer IS NULL AND created_at < $3))",
        )
        .bind(id)
        .bind(limits.any.as_micros())
        .bind(limits.unfinished.as_micros())
        .execute(&mut *tx)
        .await?;
        let inserted = sqlx::query(
            "INSERT INTO idempotent_requests (id, fingerprint, created_at) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(id)
        .bind(fingerprint)
        .bind(Timestamp::now().as_micros())
        .execute(&mut *tx)
        .await?;
        let row = sqlx::query("SELECT * FROM idempotent_requests WHERE id = $1")
            .bind(id)
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(if inserted.rows_affected() > 0 {
            RequestState::Begun
        } else if row.try_get::<String, _>("fingerprint")? != fingerprint {
            RequestState::Different
        } else if let Some(answer) = row.try_get("answer")? {
            RequestState::Answered { answer }
        } else {
            RequestState::Unfinished { since: time(&row, "created_at")? }
        })
    }

    pub async fn answer_request(&self, id: &str, answer: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE idempotent_requests SET answer = $1 WHERE id = $2")
            .bind(answer)
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The request may begin anew.
    pub async fn forget_request(&self, id: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM idempotent_requests WHERE id = $1").bind(id).execute(&self.pool).await?;
        Ok(())
    }

    pub async fn remove_requests(&self, before: Timestamp) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM idempotent_requests WHERE created_at < $1")
            .bind(before.as_micros())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDatabase;

    #[tokio::test]
    async fn requests_are_forgotten_by_age() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let past = Timestamp::EPOCH;
        let future = || Timestamp::from_micros(Timestamp::now().as_micros() + 1_000_000).unwrap();
        let none = RequestLimits { any: past, unfinished: past };
        assert_eq!(store.begin_request("a", "1", none).await.unwrap(), RequestState::Begun);
        let again = store.begin_request("a", "1", none).await.unwrap();
        assert!(matches!(again, RequestState::Unfinished { .. }), "{again:?}");
        assert_eq!(store.begin_request("a", "2", none).await.unwrap(), RequestState::Different);
        let unfinished = RequestLimits { any: past, unfinished: future() };
        assert_eq!(store.begin_request("a", "2", unfinished).await.unwrap(), RequestState::Begun);
        store.answer_request("a", "answer").await.unwrap();
        let answered = RequestState::Answered { answer: "answer".to_owned() };
        assert_eq!(store.begin_request("a", "2", unfinished).await.unwrap(), answered);
        let any = RequestLimits { any: future(), unfinished: past };
        assert_eq!(store.begin_request("a", "2", any).await.unwrap(), RequestState::Begun);
        store.remove_requests(past).await.unwrap();
        let kept = store.begin_request("a", "2", none).await.unwrap();
        assert!(matches!(kept, RequestState::Unfinished { .. }), "{kept:?}");
        store.remove_requests(future()).await.unwrap();
        assert_eq!(store.begin_request("a", "2", none).await.unwrap(), RequestState::Begun);
        store.forget_request("a").await.unwrap();
        assert_eq!(store.begin_request("a", "2", none).await.unwrap(), RequestState::Begun);
    }
}
