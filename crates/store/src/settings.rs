//! What clients keep with a tenant.

use roost_api::{TenantId, TenantSettings};

use crate::computers::json as to_json;
use crate::record::json;
use crate::{Store, StoreError};

/// Which of the objects that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingsKind {
    Settings,
    Branding,
}

impl SettingsKind {
    fn as_str(self) -> &'static str {
        match self {
            SettingsKind::Settings => "settings",
            SettingsKind::Branding => "branding",
        }
    }
}

impl Store {
    /// Empty where nothing is kept.
    pub async fn tenant_settings(
        &self,
        tenant: TenantId,
        kind: SettingsKind,
    ) -> Result<TenantSettings, StoreError> {
        let row = sqlx::query("SELECT value FROM tenant_settings WHERE tenant_id = $1 AND kind = $2")
            .bind(tenant.to_string())
            .bind(kind.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(|row| json(row, "value")).transpose().map(Option::unwrap_or_default)
    }

    /// Keeps that and nothing else. False: the tenant is gone.
    pub async fn set_tenant_settings(
        &self,
        tenant: TenantId,
        kind: SettingsKind,
        value: &TenantSettings,
    ) -> Result<bool, StoreError> {
        let set = sqlx::query(
            "INSERT INTO tenant_settings (tenant_id, kind, value, updated_at)
             SELECT id, $2, $3, $4 FROM tenants WHERE id = $1
             ON CONFLICT (tenant_id, kind) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        )
        .bind(tenant.to_string())
        .bind(kind.as_str())
        .bind(to_json(value)?)
        .bind(self.clock.now().as_micros())
        .execute(&self.pool)
        .await?;
        Ok(set.rows_affected() > 0)
    }
}
