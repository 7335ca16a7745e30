//! What clients keep with a tenant: settings, and how its pages look. The server keeps it and does nothing with it.

use roost_api::{ApiError, TenantSettings};
use roost_store::{Caller, SettingsKind};

use crate::access::{self, Denied};
use crate::places::MOST_SETTINGS;
use crate::{Control, Failure};

impl Control {
    pub async fn tenant_settings(
        &self,
        caller: &Caller,
        kind: SettingsKind,
    ) -> Result<TenantSettings, Failure> {
        access::sees_accounts(caller)?;
        Ok(self.inner.store.tenant_settings(caller.tenant, kind).await?)
    }

    /// Replaces them.
    pub async fn set_tenant_settings(
        &self,
        caller: &Caller,
        kind: SettingsKind,
        value: TenantSettings,
    ) -> Result<TenantSettings, Failure> {
        access::administers(caller, caller.tenant)?;
        if serde_json::to_string(&value).map_err(Failure::internal)?.len() > MOST_SETTINGS {
            return Err(ApiError::field("body", format!("larger than {MOST_SETTINGS} bytes")).into());
        }
        match self.inner.store.set_tenant_settings(caller.tenant, kind, &value).await? {
            true => Ok(value),
            false => Err(Denied::NotFound.about("tenant")),
        }
    }
}
