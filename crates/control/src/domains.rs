//! Domains of tenants, workspaces and projects. A computer's ports are reached under the nearest one, once that was seen
//! to lead to this server.
//!
//! Nothing of it is kept in memory: whether a host is one of ours, and whose, is asked of the database with each request
//! that names it, so a domain that is taken away is gone at every server.

use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use roost_api::{ApiError, ErrorCode, PreviewDomain, SetPreviewDomain, domain_name};
use roost_store::{Caller, ComputerRecord, DomainOwner, DomainRecord, DomainVerified};

use crate::access::{self, Act, Denied};
use crate::{Control, Failure};

/// How long a name may take to be looked up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says where names lead.
#[async_trait]
pub trait Resolver: Debug + Send + Sync + 'static {
    /// An error, or nothing, where there is no such name.
    async fn addresses(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// As this host's programs look names up.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn addresses(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        // The port is of no interest, and has to be there.
        let found = tokio::net::lookup_host((name, 443)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

impl Control {
    /// Whose domain that of the tenant is, if the caller may look at it, or change it.
    pub fn domain_of_tenant(&self, caller: &Caller, act: Act) -> Result<DomainOwner, Failure> {
        match act {
            Act::Read => access::sees_accounts(caller)?,
            Act::Write => access::administers(caller, caller.tenant)?,
        }
        Ok(DomainOwner::Tenant(caller.tenant))
    }

    pub async fn domain_of_workspace(
        &self,
        caller: &Caller,
        id: &str,
        act: Act,
    ) -> Result<DomainOwner, Failure> {
        let found = match act {
            Act::Read => self.workspace(caller, id).await?,
            Act::Write => self.managed_workspace(caller, id).await?,
        };
        Ok(DomainOwner::Workspace(found.tenant, found.id))
    }

    /// Whoever administers the workspace of a project changes its domain.
    pub async fn domain_of_project(
        &self,
        caller: &Caller,
        id: &str,
        act: Act,
    ) -> Result<DomainOwner, Failure> {
        let found = self.project(caller, id).await?;
        match act {
            Act::Read => {}
            Act::Write => drop(self.managed_workspace(caller, &found.workspace.to_string()).await?),
        }
        Ok(DomainOwner::Project(found.tenant, found.id))
    }

    pub async fn preview_domain(&self, owner: DomainOwner) -> Result<PreviewDomain, Failure> {
        let found = self.inner.store.preview_domain(owner).await?;
        Ok(self.domain_view(found, None))
    }

    pub async fn set_preview_domain(
        &self,
        owner: DomainOwner,
        request: SetPreviewDomain,
    ) -> Result<PreviewDomain, Failure> {
        let asked = request.domain.or(request.preview_domain).or(request.hostname);
        let asked =
            asked.ok_or_else(|| ApiError::new(ErrorCode::MissingParam, "domain is required: a host name"))?;
        let domain = domain_name(&asked).map_err(|error| ApiError::field("domain", error.to_string()))?;
        let own = self.own_domain().trim_end_matches('.').to_ascii_lowercase();
        if domain == own || domain.strip_suffix(&own).is_some_and(|rest| rest.ends_with('.')) {
            let problem =
                format!("{own} is the server's own domain: every computer has a name under it already");
            return Err(ApiError::field("domain", problem).into());
        }
        let set = self.inner.store.set_preview_domain(owner, &domain).await?;
        let set = set.ok_or_else(|| owner_gone(owner))?;
        Ok(self.domain_view(Some(set), None))
    }

    /// From now on the computers have names under it no more, at any server.
    pub async fn remove_preview_domain(&self, owner: DomainOwner) -> Result<PreviewDomain, Failure> {
        self.inner.store.remove_preview_domain(owner).await?;
        Ok(self.domain_view(None, None))
    }

    /// Looks whether the domain leads here, and counts it from now on if it does. One that was seen to lead here before
    /// goes on to count.
    pub async fn verify_preview_domain(&self, owner: DomainOwner) -> Result<PreviewDomain, Failure> {
        let store = &self.inner.store;
        let Some(found) = store.preview_domain(owner).await? else {
            let message = "no preview domain is set; set one with PUT first";
            return Err(Failure::new(ErrorCode::NotFound, message));
        };
        if let Some(problem) = self.leads_elsewhere(&found.domain).await? {
            return Ok(self.domain_view(Some(found), Some(problem)));
        }
        match store.verify_preview_domain(owner, &found.domain).await? {
            DomainVerified::Verified(record) => {
                tracing::info!(domain = %record.domain, "a preview domain is verified");
                Ok(self.domain_view(Some(record), None))
            }
            DomainVerified::Taken => {
                let message = format!("{} belongs to another tenant of this server", found.domain);
                Err(ApiError::new(ErrorCode::NameTaken, message).into())
            }
            // Somebody has changed it meanwhile: what they set is to be verified by itself.
            DomainVerified::Changed => {
                let message = "the preview domain was changed meanwhile; verify it again";
                Err(Failure::new(ErrorCode::ResourceState, message))
            }
        }
    }

    /// Why a domain is not one whose computers are reached here; `None` where it is.
    async fn leads_elsewhere(&self, domain: &str) -> Result<Option<String>, Failure> {
        // A name that nobody has asked for before, and that only an entry for all names has.
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
        let name = format!("check-{:016x}.sandbox.{domain}", u64::from_be_bytes(bytes));
        let target = self.own_domain();
        let ours = self.addresses(target).await;
        if ours.is_empty() {
            tracing::error!(domain = target, "the server's own domain has no address: no domain is verified");
            let message =
                format!("the server's own domain {target} has no address; its operator has to see to it");
            return Err(Failure::new(ErrorCode::Unavailable, message));
        }
        let theirs = self.addresses(&name).await;
        let entry = format!("make *.sandbox.{domain} a CNAME of {target} and verify it again");
        Ok(if theirs.is_empty() {
            Some(format!("{name} has no address; {entry}"))
        } else if !theirs.iter().all(|address| ours.contains(address)) {
            Some(format!("{name} does not lead to {target} alone; {entry}"))
        } else {
            None
        })
    }

    async fn addresses(&self, name: &str) -> Vec<IpAddr> {
        match tokio::time::timeout(PATIENCE, self.inner.config.resolver.addresses(name)).await {
            Ok(Ok(found)) => found.into_iter().map(|address| address.to_canonical()).collect(),
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "a name was not found");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Whether somebody's computers are reached under this domain, which is not the server's.
    pub async fn is_preview_domain(&self, domain: &str) -> Result<bool, Failure> {
        // What cannot be one is not looked for.
        let Ok(domain) = domain_name(domain) else { return Ok(false) };
        Ok(self.inner.store.is_preview_domain(&domain).await?)
    }

    /// Under which domain the ports of a computer are, with the port of the server's where that has one.
    pub(crate) fn preview_domain_of(&self, record: &ComputerRecord) -> String {
        let default = &self.inner.config.urls.domain;
        match (&record.preview_domain, port_of(default)) {
            (None, _) => default.clone(),
            (Some(domain), Some(port)) => format!("{domain}:{port}"),
            (Some(domain), None) => domain.clone(),
        }
    }

    /// The server's domain without its port.
    fn own_domain(&self) -> &str {
        let domain = self.inner.config.urls.domain.as_str();
        port_of(domain).map_or(domain, |port| &domain[..domain.len() - port.len() - 1])
    }

    fn domain_view(&self, record: Option<DomainRecord>, problem: Option<String>) -> PreviewDomain {
        let verified_at = record.as_ref().and_then(|record| record.verified_at);
        PreviewDomain {
            domain: record.map(|record| record.domain),
            cname_target: self.own_domain().to_owned(),
            verified_at,
            problem,
        }
    }
}

fn port_of(domain: &str) -> Option<&str> {
    let (_, port) = domain.rsplit_once(':')?;
    port.bytes().all(|byte| byte.is_ascii_digit()).then_some(port)
}

fn owner_gone(owner: DomainOwner) -> Failure {
    Denied::NotFound.about(match owner {
        DomainOwner::Tenant(_) => "tenant",
        DomainOwner::Workspace(..) => "workspace",
        DomainOwner::Project(..) => "project",
    })
}
