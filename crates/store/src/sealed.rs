//! Everything in the database that is sealed, for whoever seals it with another key.

use roost_api::{ComputerId, TenantId, WebhookId};
use sqlx::Row;

use crate::record::parsed;
use crate::{Store, StoreError};

/// Where a sealed value is. It says what the value is bound to, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealedPlace {
    Variable {
        tenant: TenantId,
        computer: ComputerId,
        name: String,
    },
    /// A variable that was given with a start.
    StartVariable {
        tenant: TenantId,
        computer: ComputerId,
        name: String,
    },
    /// The script of a computer.
    SetupScript {
        tenant: TenantId,
        computer: ComputerId,
    },
    /// What it said.
    SetupOutput {
        tenant: TenantId,
        computer: ComputerId,
    },
    WebhookSecret(WebhookId),
    WebhookHeaders(WebhookId),
    /// The answer of a request with this id.
    Answer(String),
}

/// The statements that read a value, and that replace it where it is still the same.
struct Statements {
    read: &'static str,
    replace: &'static str,
}

impl SealedPlace {
    fn statements(&self) -> Statements {
        match self {
            SealedPlace::Variable { .. } => Statements {
                read: "SELECT value AS sealed FROM env WHERE computer_id = $1 AND name = $2",
                replace: "UPDATE env SET value = $3 WHERE computer_id = $1 AND name = $2 AND value = $4",
            },
            SealedPlace::StartVariable { .. } => Statements {
                read: "SELECT value AS sealed FROM start_env WHERE computer_id = $1 AND name = $2",
                replace: "UPDATE start_env SET value = $3 WHERE computer_id = $1 AND name = $2 AND value = $4",
            },
            SealedPlace::SetupScript { .. } => Statements {
                read: "SELECT script AS sealed FROM setups WHERE computer_id = $1 AND computer_id = $2",
                replace: "UPDATE setups SET script = $3 WHERE computer_id = $1 AND computer_id = $2 AND script = $4",
            },
            SealedPlace::SetupOutput { .. } => Statements {
                read: "SELECT output AS sealed FROM setups WHERE computer_id = $1 AND computer_id = $2",
                replace: "UPDATE setups SET output = $3 WHERE computer_id = $1 AND computer_id = $2 AND output = $4",
            },
            SealedPlace::WebhookSecret(_) => Statements {
                read: "SELECT secret AS sealed FROM webhooks WHERE id = $1 AND id = $2",
                replace: "UPDATE webhooks SET secret = $3 WHERE id = $1 AND id = $2 AND secret = $4",
            },
            SealedPlace::WebhookHeaders(_) => Statements {
                read: "SELECT headers AS sealed FROM webhooks WHERE id = $1 AND id = $2",
                replace: "UPDATE webhooks SET headers = $3 WHERE id = $1 AND id = $2 AND headers = $4",
            },
            SealedPlace::Answer(_) => Statements {
                read: "SELECT answer AS sealed FROM idempotent_requests WHERE id = $1 AND id = $2",
                replace: "UPDATE idempotent_requests SET answer = $3 WHERE id = $1 AND id = $2 AND answer = $4",
            },
        }
    }

    /// The key of the row: an id, and what tells rows of the same id apart.
    fn key(&self) -> (String, String) {
        match self {
            SealedPlace::Variable { computer, name, .. }
            | SealedPlace::StartVariable { computer, name, .. } => (computer.to_string(), name.clone()),
            SealedPlace::SetupScript { computer, .. } | SealedPlace::SetupOutput { computer, .. } => {
                (computer.to_string(), computer.to_string())
            }
            SealedPlace::WebhookSecret(id) | SealedPlace::WebhookHeaders(id) => {
                (id.to_string(), id.to_string())
            }
            SealedPlace::Answer(id) => (id.clone(), id.clone()),
        }
    }
}

impl Store {
    /// Every place of a sealed value.
    pub async fn sealed_places(&self) -> Result<Vec<SealedPlace>, StoreError> {
        let mut places = Vec::new();
        for (query, is_of_start) in [
            (
                "SELECT c.tenant_id, e.computer_id, e.name FROM env e JOIN computers c ON c.id = e.computer_id",
                false,
            ),
            (
                "SELECT c.tenant_id, e.computer_id, e.name FROM start_env e
                 JOIN computers c ON c.id = e.computer_id",
                true,
            ),
        ] {
            for row in sqlx::query(query).fetch_all(&self.pool).await? {
                let tenant = parsed(&row, "tenant_id")?;
                let (computer, name) = (parsed(&row, "computer_id")?, row.try_get("name")?);
                places.push(match is_of_start {
                    false => SealedPlace::Variable { tenant, computer, name },
                    true => SealedPlace::StartVariable { tenant, computer, name },
                });
            }
        }
        let setups =
            "SELECT c.tenant_id, s.computer_id FROM setups s JOIN computers c ON c.id = s.computer_id";
        for row in sqlx::query(setups).fetch_all(&self.pool).await? {
            let (tenant, computer) = (parsed(&row, "tenant_id")?, parsed(&row, "computer_id")?);
            places.push(SealedPlace::SetupScript { tenant, computer });
            places.push(SealedPlace::SetupOutput { tenant, computer });
        }
        for row in sqlx::query("SELECT id FROM webhooks").fetch_all(&self.pool).await? {
            let id = parsed(&row, "id")?;
            places.extend([SealedPlace::WebhookSecret(id), SealedPlace::WebhookHeaders(id)]);
        }
        let answers = sqlx::query("SELECT id FROM idempotent_requests WHERE answer IS NOT NULL");
        for row in answers.fetch_all(&self.pool).await? {
            places.push(SealedPlace::Answer(row.try_get("id")?));
        }
        Ok(places)
    }

    /// `None`: there is none any more.
    pub async fn sealed_value(&self, place: &SealedPlace) -> Result<Option<String>, StoreError> {
        let (id, name) = place.key();
        let row = sqlx::query(place.statements().read).bind(id).bind(name).fetch_optional(&self.pool).await?;
        Ok(row.map(|row| row.try_get("sealed")).transpose()?.flatten())
    }

    /// Replaces a value that is still `from`: whether it was.
    pub async fn replace_sealed(
        &self,
        place: &SealedPlace,
        from: &str,
        to: &str,
    ) -> Result<bool, StoreError> {
        let (id, name) = place.key();
        let replaced = sqlx::query(place.statements().replace)
            .bind(id)
            .bind(name)
            .bind(to)
            .bind(from)
            .execute(&self.pool)
            .await?;
        Ok(replaced.rows_affected() > 0)
    }
}
