//! Which things of a tenant somebody may see, as a condition of queries. Whoever decides it is the control plane; a
//! single thing is looked at by [`Reach::includes`], which says the same.

use roost_api::{TenantId, UserId, WorkspaceId};

use crate::query::QueryBuilder;

/// What a key is confined to; nothing outside of it is reached. Empty: no confinement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    pub workspace: Option<WorkspaceId>,
    /// The caller's own id of an end user.
    pub external_user: Option<String>,
}

impl Confinement {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub fn includes(&self, workspace: Option<WorkspaceId>, external_user: Option<&str>) -> bool {
        self.workspace.is_none_or(|only| workspace == Some(only))
            && self.external_user.as_deref().is_none_or(|only| external_user == Some(only))
    }
}

#[derive(Debug, Clone)]
pub struct Reach {
    pub tenant: TenantId,
    /// `None`: all of the tenant. Otherwise what the user made, and what is in these workspaces.
    pub member: Option<(UserId, Vec<WorkspaceId>)>,
    pub confinement: Confinement,
}

/// Whose columns a condition is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of {
    /// `computers c`
    Computers,
    /// `snapshots s`
    Snapshots,
    /// `runs r`, in which nobody is named who made the computer.
    Runs,
}

impl Reach {
    pub fn whole(tenant: TenantId) -> Self {
        Self { tenant, member: None, confinement: Confinement::default() }
    }

    pub fn includes(
        &self,
        tenant: TenantId,
        workspace: Option<WorkspaceId>,
        owner: Option<UserId>,
        external_user: Option<&str>,
    ) -> bool {
        let is_theirs = self.member.as_ref().is_none_or(|(user, workspaces)| {
            owner == Some(*user) || workspace.is_some_and(|workspace| workspaces.contains(&workspace))
        });
        tenant == self.tenant && self.confinement.includes(workspace, external_user) && is_theirs
    }

    /// Adds conditions to a query that has some already.
    pub(crate) fn push(&self, query: &mut QueryBuilder, of: Of) {
        let [tenant, workspace, external_user, owner, among] = match of {
            Of::Computers => [
                " AND c.tenant_id = ",
                " AND c.workspace_id = ",
                " AND c.external_user_id = ",
                " AND (c.owner_user_id = ",
                " OR c.workspace_id",
            ],
            Of::Snapshots => [
                " AND s.tenant_id = ",
                " AND s.workspace_id = ",
                " AND s.external_user_id = ",
                " AND (s.owner_user_id = ",
                " OR s.workspace_id",
            ],
            Of::Runs => [
                " AND r.tenant_id = ",
                " AND r.workspace_id = ",
                " AND r.external_user_id = ",
                " AND (EXISTS (SELECT 1 FROM computers c WHERE c.id = r.computer_id AND c.owner_user_id = ",
                ") OR r.workspace_id",
            ],
        };
        query.push(tenant).push_bind(self.tenant.to_string());
        if let Some(only) = self.confinement.workspace {
            query.push(workspace).push_bind(only.to_string());
        }
        if let Some(only) = &self.confinement.external_user {
            query.push(external_user).push_bind(only.clone());
        }
        if let Some((user, workspaces)) = &self.member {
            query.push(owner).push_bind(user.to_string()).push(among).push_in(workspaces).push(")");
        }
    }
}
