//! Tenants and their users; for which tenant a request is.

use roost_api::{
    ApiError, CreateTenant, CreateUser, ErrorCode, Identity, Role, Tenant, TenantId, UpdateTenant,
    UpdateUser, User, UserId,
};
use roost_store::{Caller, KeyForm, NewUser, TenantDeleted, TenantRecord, UserChanged, UserRecord};

use crate::access::{self, Denied};
use crate::computers::check_name;
use crate::places::{required_name, slug};
use crate::slug::slugify;
use crate::{Control, Failure};

const LONGEST_EMAIL: usize = 254;
/// Of every tenant: what there is on a server of one's own is limited by its operator only.
pub(crate) const PLAN: &str = "self-hosted";

impl Control {
    /// The caller in the tenant that a request names, by id or slug, once for each time it says so. A credential is of
    /// one tenant; only an operator acts in another, as its owner would.
    pub async fn act_in(&self, caller: Caller, named: &[&str]) -> Result<Caller, Failure> {
        let Some((first, others)) = named.split_first() else { return Ok(caller) };
        if first.is_empty() || others.iter().any(|other| other != first) {
            let message = "the header X-MIOSA-Tenant does not name one tenant";
            return Err(Failure::new(ErrorCode::TenantResolutionFailed, message));
        }
        if *first == caller.tenant.to_string() || *first == caller.tenant_slug {
            return Ok(caller);
        }
        if !caller.is_operator {
            // Whether there is such a tenant is not said.
            let message = "the credential may not act in the tenant that X-MIOSA-Tenant names";
            return Err(Failure::new(ErrorCode::InvalidTenantContext, message));
        }
        let found = self.inner.store.tenant(first).await?;
        let missing = || Failure::new(ErrorCode::OrgNotFound, "there is no tenant that X-MIOSA-Tenant names");
        let tenant = found.ok_or_else(missing)?;
        Ok(Caller { tenant: tenant.id, tenant_slug: tenant.slug, role: Role::Owner, ..caller })
    }

    pub async fn identity(&self, caller: &Caller) -> Result<Identity, Failure> {
        let store = &self.inner.store;
        let home = self.inner.home.tenant;
        let mut user = store.user(caller.tenant, caller.user).await?;
        if user.is_none() {
            user = store.user(home, caller.user).await?;
        }
        let workspace = match caller.confinement.workspace {
            Some(only) => only,
            None => store.default_workspace(caller.tenant).await?.id,
        };
        Ok(Identity {
            user_id: caller.user,
            email: user.as_ref().and_then(|user| user.email.clone()),
            name: user.map(|user| user.name).unwrap_or_default(),
            role: caller.role,
            tenant_id: caller.tenant,
            organization_slug: caller.tenant_slug.clone(),
            workspace_id: workspace,
            plan: PLAN.to_owned(),
            scopes: caller.scopes.clone(),
            kind: match caller.form {
                KeyForm::Key => "api_key",
                KeyForm::Token => "scoped_token",
            }
            .to_owned(),
            key_type: caller.kind,
            key_id: caller.key,
            is_operator: caller.is_operator,
        })
    }

    /// The tenants in which the caller may act.
    pub async fn tenants(&self, caller: &Caller) -> Result<Vec<Tenant>, Failure> {
        let all = self.inner.store.tenants().await?;
        let theirs = all.iter().filter(|tenant| caller.is_operator || tenant.id == caller.tenant);
        Ok(theirs.map(tenant_view).collect())
    }

    /// A tenant in which the caller may act.
    pub async fn tenant(&self, caller: &Caller, id: &str) -> Result<Tenant, Failure> {
        let found = self.inner.store.tenant(id).await?;
        let found = found.filter(|tenant| caller.is_operator || tenant.id == caller.tenant);
        found.as_ref().map(tenant_view).ok_or_else(|| Denied::NotFound.about("tenant"))
    }

    /// A tenant whose users and keys the caller may see and change.
    pub async fn administered(&self, caller: &Caller, id: &str) -> Result<TenantRecord, Failure> {
        let missing = || Denied::NotFound.about("tenant");
        let found = self.inner.store.tenant(id).await?.ok_or_else(missing)?;
        access::administers(caller, found.id)?;
        Ok(found)
    }

    pub async fn create_tenant(&self, caller: &Caller, request: CreateTenant) -> Result<Tenant, Failure> {
        access::require_operator(caller)?;
        let name = required_name(request.name.as_deref())?;
        let given = slug("slug", request.slug.as_deref())?;
        let owner = request.owner_name.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let owner = owner.unwrap_or("owner");
        check_name(owner)?;
        let email = email("owner_email", request.owner_email.as_deref())?;
        let wanted = given.clone().unwrap_or_else(|| slugify(&name));
        for number in 1.. {
            let slug = if number == 1 { wanted.clone() } else { format!("{wanted}-{number}") };
            let made = self.inner.store.create_tenant(&name, &slug, (owner, email.as_deref())).await?;
            match made {
                Some((tenant, _)) => {
                    tracing::info!(tenant = %tenant.id, slug = tenant.slug, "tenant created");
                    return Ok(tenant_view(&tenant));
                }
                None if given.is_some() => break,
                None => {}
            }
        }
        Err(Failure::new(ErrorCode::NameTaken, format!("another tenant has the slug {wanted:?}")))
    }

    pub async fn change_tenant(
        &self,
        record: &TenantRecord,
        request: UpdateTenant,
    ) -> Result<Tenant, Failure> {
        let Some(name) = request.name else { return Ok(tenant_view(record)) };
        let name = required_name(Some(&name))?;
        self.inner.store.rename_tenant(record.id, &name).await?;
        Ok(Tenant { name, ..tenant_view(record) })
    }

    /// Removes a tenant that has no computers and no snapshots any more.
    pub async fn delete_tenant(&self, caller: &Caller, id: &str) -> Result<TenantId, Failure> {
        let record = self.administered(caller, id).await?;
        access::require_operator(caller)?;
        if record.id == self.inner.home.tenant {
            let message = "the first tenant is the one of the server's operator, and stays";
            return Err(Failure::new(ErrorCode::ResourceState, message));
        }
        let deleted = self.inner.store.delete_tenant(record.id).await?;
        self.inner.callers.changed();
        match deleted {
            TenantDeleted::Deleted => {
                tracing::info!(tenant = %record.id, slug = record.slug, "tenant deleted");
                Ok(record.id)
            }
            TenantDeleted::Missing => Err(Denied::NotFound.about("tenant")),
            TenantDeleted::InUse { computers, snapshots } => Err(Failure::new(
                ErrorCode::ResourceState,
                format!("the tenant has {computers} computers and {snapshots} snapshots; delete them first"),
            )),
        }
    }

    pub async fn users(&self, tenant: &TenantRecord) -> Result<Vec<User>, Failure> {
        Ok(self.inner.store.users(tenant.id).await?.iter().map(user_view).collect())
    }

    pub async fn create_user(
        &self,
        caller: &Caller,
        tenant: &TenantRecord,
        request: CreateUser,
    ) -> Result<User, Failure> {
        let name = required_name(request.name.as_deref())?;
        let email = email("email", request.email.as_deref())?;
        let role = request.role.unwrap_or(Role::Member);
        require_owner(caller, role)?;
        user_changed(self.inner.store.create_user(&NewUser { tenant: tenant.id, name, email, role }).await?)
    }

    pub async fn user(&self, tenant: &TenantRecord, id: &str) -> Result<UserRecord, Failure> {
        let missing = || Denied::NotFound.about("user");
        let id: UserId = id.parse().map_err(|_| missing())?;
        self.inner.store.user(tenant.id, id).await?.ok_or_else(missing)
    }

    pub async fn change_user(
        &self,
        caller: &Caller,
        user: &UserRecord,
        request: UpdateUser,
    ) -> Result<User, Failure> {
        let name = request.name.as_deref().map(|name| required_name(Some(name))).transpose()?;
        let email = email("email", request.email.as_deref())?;
        require_owner(caller, user.role)?;
        require_owner(caller, request.role.unwrap_or(Role::Member))?;
        let changed = self.inner.store.change_user(user.tenant, user.id, |user| {
            user.name = name.unwrap_or_else(|| user.name.clone());
            user.email = email.or_else(|| user.email.clone());
            user.role = request.role.unwrap_or(user.role);
        });
        let changed = changed.await?;
        self.inner.callers.changed();
        user_changed(changed)
    }

    /// Ends their keys, memberships and webhooks. Their computers stay.
    pub async fn remove_user(&self, caller: &Caller, user: &UserRecord) -> Result<(), Failure> {
        require_owner(caller, user.role)?;
        let removed = self.inner.store.remove_user(user.tenant, user.id).await?;
        self.inner.callers.changed();
        user_changed(removed).map(drop)
    }
}

/// Only owners make and unmake owners.
fn require_owner(caller: &Caller, role: Role) -> Result<(), Failure> {
    match role {
        Role::Owner if caller.role != Role::Owner && !caller.is_operator => {
            Err(Failure::new(ErrorCode::Forbidden, "only an owner of the tenant may change who is an owner"))
        }
        Role::Owner | Role::Admin | Role::Member => Ok(()),
    }
}

fn user_changed(changed: UserChanged) -> Result<User, Failure> {
    match changed {
        UserChanged::Changed(user) => Ok(user_view(&user)),
        UserChanged::Missing => Err(Denied::NotFound.about("user")),
        UserChanged::LastOwner => Err(Failure::new(
            ErrorCode::ResourceState,
            "this is the last owner of the tenant; make somebody else an owner first",
        )),
        UserChanged::EmailTaken => {
            Err(Failure::new(ErrorCode::NameTaken, "another user of the tenant has this e-mail address"))
        }
    }
}

fn email(field: &str, text: Option<&str>) -> Result<Option<String>, ApiError> {
    let Some(email) = text.map(str::trim).filter(|email| !email.is_empty()) else { return Ok(None) };
    let is_plain =
        email.len() <= LONGEST_EMAIL && !email.chars().any(|c| c.is_whitespace() || c.is_control());
    let has_parts = email.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    if !is_plain || !has_parts {
        return Err(ApiError::field(field, "not an address of the form name@example.org"));
    }
    Ok(Some(email.to_owned()))
}

pub fn tenant_view(record: &TenantRecord) -> Tenant {
    Tenant {
        id: record.id,
        name: record.name.clone(),
        slug: record.slug.clone(),
        created_at: record.created_at,
    }
}

fn user_view(record: &UserRecord) -> User {
    User {
        id: record.id,
        tenant_id: record.tenant,
        name: record.name.clone(),
        email: record.email.clone(),
        role: record.role,
        created_at: record.created_at,
    }
}
