//! Domains of tenants, workspaces and projects, under which the ports of their computers are reached. One counts once
//! it was seen to lead to this server, and belongs to one tenant then, with every name below it.

use roost_api::{ProjectId, TenantId, Timestamp, WorkspaceId};
use sqlx::Row;

use crate::query::QueryBuilder;
use crate::record::optional_time;
use crate::{ComputerRecord, DbRow, Store, StoreError};

/// Whose a domain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainOwner {
    Tenant(TenantId),
    Workspace(TenantId, WorkspaceId),
    Project(TenantId, ProjectId),
}

impl DomainOwner {
    fn tenant(self) -> TenantId {
        match self {
            DomainOwner::Tenant(tenant)
            | DomainOwner::Workspace(tenant, _)
            | DomainOwner::Project(tenant, _) => tenant,
        }
    }

    fn id(self) -> String {
        match self {
            DomainOwner::Tenant(id) => id.to_string(),
            DomainOwner::Workspace(_, id) => id.to_string(),
            DomainOwner::Project(_, id) => id.to_string(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainRecord {
    pub domain: String,
    pub verified_at: Option<Timestamp>,
}

/// How writing down that a domain leads here went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainVerified {
    Verified(DomainRecord),
    /// It, or one that it is below, is another tenant's.
    Taken,
    /// Meanwhile the owner has another domain, or none.
    Changed,
}

impl Store {
    pub async fn preview_domain(&self, owner: DomainOwner) -> Result<Option<DomainRecord>, StoreError> {
        let row = sqlx::query("SELECT domain, verified_at FROM preview_domains WHERE owner_id = $1")
            .bind(owner.id())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(DomainRecord::from_row).transpose()
    }

    /// Gives the owner a domain, which counts for nothing until it is verified; the same one stays as it is. `None`: the
    /// owner is gone.
    pub async fn set_preview_domain(
        &self,
        owner: DomainOwner,
        domain: &str,
    ) -> Result<Option<DomainRecord>, StoreError> {
        let mut tx = self.write().await?;
        let (known, workspace, project, distance) = match owner {
            DomainOwner::Tenant(_) => ("SELECT 1 FROM tenants WHERE id = $1", None, None, 2_i64),
            DomainOwner::Workspace(_, id) => {
                ("SELECT 1 FROM workspaces WHERE id = $1", Some(id.to_string()), None, 1)
            }
            DomainOwner::Project(_, id) => {
                ("SELECT 1 FROM projects WHERE id = $1", None, Some(id.to_string()), 0)
            }
        };
        if sqlx::query(known).bind(owner.id()).fetch_optional(&mut *tx).await?.is_none() {
            return Ok(None);
        }
        let row = sqlx::query(
            "INSERT INTO preview_domains
                 (owner_id, tenant_id, workspace_id, project_id, domain, verified_at, updated_at, distance)
             VALUES ($1, $2, $3, $4, $5, NULL, $6, $7)
             ON CONFLICT (owner_id) DO UPDATE SET domain = excluded.domain, updated_at = excluded.updated_at,
                 verified_at = CASE WHEN preview_domains.domain = excluded.domain
                     THEN preview_domains.verified_at ELSE NULL END
             RETURNING domain, verified_at",
        )
        .bind(owner.id())
        .bind(owner.tenant().to_string())
        .bind(workspace)
        .bind(project)
        .bind(domain)
        .bind(self.clock.now().as_micros())
        .bind(distance)
        .fetch_one(&mut *tx)
        .await?;
        let record = DomainRecord::from_row(&row)?;
        tx.commit().await?;
        Ok(Some(record))
    }

    pub async fn remove_preview_domain(&self, owner: DomainOwner) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM preview_domains WHERE owner_id = $1")
            .bind(owner.id())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Writes down that a domain of the owner was seen to lead here. Whoever has a domain has the names below it: an
    /// address that is given to all of them leads here whoever asks.
    pub async fn verify_preview_domain(
        &self,
        owner: DomainOwner,
        domain: &str,
    ) -> Result<DomainVerified, StoreError> {
        let mut tx = self.write().await?;
        let mut query = QueryBuilder::new(
            "SELECT 1 FROM preview_domains WHERE verified_at IS NOT NULL AND tenant_id <> ",
        );
        query.push_bind(owner.tenant().to_string());
        query.push(" AND domain").push_in(with_parents(domain));
        if query.build().fetch_optional(&mut *tx).await?.is_some() {
            return Ok(DomainVerified::Taken);
        }
        let row = sqlx::query(
            "UPDATE preview_domains SET verified_at = COALESCE(verified_at, $1)
             WHERE owner_id = $2 AND domain = $3 RETURNING domain, verified_at",
        )
        .bind(self.clock.now().as_micros())
        .bind(owner.id())
        .bind(domain)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(DomainVerified::Changed) };
        let record = DomainRecord::from_row(&row)?;
        tx.commit().await?;
        Ok(DomainVerified::Verified(record))
    }

    /// Whether somebody's computers are reached under a domain.
    pub async fn is_preview_domain(&self, domain: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 FROM preview_domains WHERE domain = $1 AND verified_at IS NOT NULL")
            .bind(domain)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.is_some())
    }

    /// Whether the computer is one of those that are reached under a domain.
    pub async fn is_preview_domain_of(
        &self,
        domain: &str,
        computer: &ComputerRecord,
    ) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT 1 FROM preview_domains WHERE domain = $1 AND verified_at IS NOT NULL
                 AND tenant_id = $2 AND owner_id IN ($2, $3, $4)",
        )
        .bind(domain)
        .bind(computer.tenant_id.to_string())
        .bind(computer.workspace_id.to_string())
        .bind(computer.project_id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.is_some())
    }
}

/// The domain, and those that it is below.
fn with_parents(domain: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(domain), |domain| domain.split_once('.').map(|(_, parent)| parent))
}

impl DomainRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self { domain: row.try_get("domain")?, verified_at: optional_time(row, "verified_at")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewWorkspace;
    use crate::testing::{TestDatabase, computer};

    #[tokio::test]
    async fn a_domain_counts_once_it_is_verified_for_what_is_its_owners() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let home = store.home().await.unwrap();
        let id = computer(&store).await.computer;
        let of = async || store.computer(id).await.unwrap().unwrap();
        let owners = [
            (DomainOwner::Tenant(home.tenant), "tenant.example"),
            (DomainOwner::Workspace(home.tenant, home.workspace), "workspace.example"),
            (DomainOwner::Project(home.tenant, home.project), "project.example"),
        ];
        // The nearest one counts, whichever came first.
        for (owner, domain) in owners {
            assert_eq!(store.set_preview_domain(owner, domain).await.unwrap().unwrap().verified_at, None);
            assert_ne!(of().await.preview_domain.as_deref(), Some(domain));
            assert!(!store.is_preview_domain(domain).await.unwrap());
            let verified = store.verify_preview_domain(owner, domain).await.unwrap();
            let DomainVerified::Verified(record) = verified else { panic!("{verified:?}") };
            assert_eq!(of().await.preview_domain.as_deref(), Some(domain));
            assert!(store.is_preview_domain_of(domain, &of().await).await.unwrap());
            // The same again changes nothing.
            assert_eq!(store.set_preview_domain(owner, domain).await.unwrap(), Some(record));
        }
        for ((owner, domain), next) in
            owners.into_iter().rev().zip([Some("workspace.example"), Some("tenant.example"), None])
        {
            store.remove_preview_domain(owner).await.unwrap();
            assert_eq!(of().await.preview_domain.as_deref(), next);
            assert!(!store.is_preview_domain_of(domain, &of().await).await.unwrap());
            let verified = store.verify_preview_domain(owner, domain).await.unwrap();
            assert_eq!(verified, DomainVerified::Changed);
        }
        // Another domain begins anew.
        let (owner, domain) = owners[0];
        store.set_preview_domain(owner, domain).await.unwrap();
        store.verify_preview_domain(owner, domain).await.unwrap();
        assert_eq!(store.set_preview_domain(owner, "b.example").await.unwrap().unwrap().verified_at, None);
        assert_eq!(store.verify_preview_domain(owner, domain).await.unwrap(), DomainVerified::Changed);
        let gone = DomainOwner::Workspace(home.tenant, roost_api::WorkspaceId::new());
        assert_eq!(store.set_preview_domain(gone, domain).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_domain_is_one_tenants_with_the_names_below_it() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let home = store.home().await.unwrap();
        let (other, _) = store.create_tenant("other", "other", ("o", None)).await.unwrap().unwrap();
        let (ours, theirs) = (DomainOwner::Tenant(home.tenant), DomainOwner::Tenant(other.id));
        store.set_preview_domain(ours, "shop.example").await.unwrap();
        let verify = async |owner, domain: &str| {
            store.set_preview_domain(owner, domain).await.unwrap();
            store.verify_preview_domain(owner, domain).await.unwrap()
        };
        assert!(matches!(verify(ours, "shop.example").await, DomainVerified::Verified(_)));
        for taken in ["shop.example", "a.sandbox.shop.example"] {
            assert_eq!(verify(theirs, taken).await, DomainVerified::Taken, "{taken}");
        }
        for free in ["workshop.example", "example", "shop.example.org"] {
            assert!(matches!(verify(theirs, free).await, DomainVerified::Verified(_)), "{free}");
        }
        // What goes takes its domain with it.
        let new = NewWorkspace::named(home.tenant, "w", "w");
        let crate::PlaceInserted::New(workspace) = store.create_workspace(&new, true, true).await.unwrap()
        else {
            panic!("not made")
        };
        let place = DomainOwner::Workspace(home.tenant, workspace.id);
        verify(place, "w.test").await;
        store.delete_workspace(home.tenant, workspace.id).await.unwrap();
        assert!(!store.is_preview_domain("w.test").await.unwrap());
    }
}
