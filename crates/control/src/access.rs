//! Who may do what. Every rule about access is here, and is a function of the caller and of whose a thing is.
//!
//! ```text
//!   another tenant's thing     does not exist                                        404
//!   outside of a confined key  (one workspace, or one end user's computers)          403
//!   administrators             reach everything in their tenant
//!   members                    what they made, and the workspaces they are in        else 403
//!   viewers of a workspace     see everything in it, change nothing                  403
//!   scopes of the key          computers:read, computers:write, usage:read           403 insufficient_scope
//! ```
//!
//! A key that is limited to addresses opens nothing from anywhere else (403), and makes none that does. They are asked
//! in this order. External ids of the caller's own never decide about access, except that a key can be
//! confined to one of them. An **operator** is an administrator of the server's first tenant, with a key of the kind
//! `admin`: the only one who sees other tenants.

use roost_api::{AddressRange, ErrorCode, KeyKind, Role, TenantId, UserId, WorkspaceId, WorkspaceRole};
use roost_store::{
    Caller, ComputerRecord, KeyRecord, Reach, SnapshotRecord, UserRecord, WebhookRecord, WorkspaceRecord,
};

use crate::Failure;

/// What a request does to a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Looks at it.
    Read,
    /// Changes it, or uses it.
    Write,
}

/// What a key must be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    ComputersRead,
    ComputersWrite,
    UsageRead,
}

impl Scope {
    pub(crate) const ALL: [Scope; 3] = [Scope::ComputersRead, Scope::ComputersWrite, Scope::UsageRead];

    pub fn as_str(self) -> &'static str {
        match self {
            Scope::ComputersRead => "computers:read",
            Scope::ComputersWrite => "computers:write",
            Scope::UsageRead => "usage:read",
        }
    }

    fn is_granted_by(self, granted: &str) -> bool {
        let (area, _) = self.as_str().split_once(':').unwrap_or_default();
        granted == "*" || granted == self.as_str() || granted.strip_suffix(":*") == Some(area)
    }
}

impl From<Act> for Scope {
    fn from(act: Act) -> Self {
        match act {
            Act::Read => Scope::ComputersRead,
            Act::Write => Scope::ComputersWrite,
        }
    }
}

/// Whose a thing is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whose<'a> {
    pub tenant: TenantId,
    pub workspace: Option<WorkspaceId>,
    pub owner: Option<UserId>,
    pub external_user: Option<&'a str>,
}

impl<'a> From<&'a ComputerRecord> for Whose<'a> {
    fn from(computer: &'a ComputerRecord) -> Self {
        Self {
            tenant: computer.tenant_id,
            workspace: Some(computer.workspace_id),
            owner: Some(computer.owner_user_id),
            external_user: computer.external_user_id.as_deref(),
        }
    }
}

impl<'a> From<&'a SnapshotRecord> for Whose<'a> {
    fn from(snapshot: &'a SnapshotRecord) -> Self {
        Self {
            tenant: snapshot.tenant_id,
            workspace: Some(snapshot.workspace_id),
            owner: Some(snapshot.attributes.owner_user_id),
            external_user: snapshot.attributes.external_user_id.as_deref(),
        }
    }
}

/// Why something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It is another tenant's.
    NotFound,
    NotMember,
    OnlyViewer,
    Scope(Scope),
}

impl Denied {
    /// In words about a `computer`, a `snapshot` and so on.
    pub(crate) fn about(self, thing: &str) -> Failure {
        match self {
            Denied::NotFound => Failure::new(ErrorCode::NotFound, format!("{thing} not found")),
            Denied::NotMember => Failure::new(ErrorCode::Forbidden, format!("not a member of this {thing}")),
            Denied::OnlyViewer => Failure::new(
                ErrorCode::Forbidden,
                format!("you are a viewer of the workspace of this {thing}, which changes nothing"),
            ),
            Denied::Scope(scope) => missing_scope(scope),
        }
    }
}

/// The things the caller may see at all.
pub(crate) fn reach(caller: &Caller) -> Reach {
    let workspaces = || caller.memberships.iter().map(|(workspace, _)| *workspace).collect();
    Reach {
        tenant: caller.tenant,
        member: (!caller.role.is_administrator()).then(|| (caller.user, workspaces())),
        confinement: caller.confinement.clone(),
    }
}

/// Whether the caller may do that to a thing.
pub(crate) fn check<'a>(caller: &Caller, whose: impl Into<Whose<'a>>, act: Act) -> Result<(), Denied> {
    let Whose { tenant, workspace, owner, external_user } = whose.into();
    if tenant != caller.tenant {
        return Err(Denied::NotFound);
    }
    if !reach(caller).includes(tenant, workspace, owner, external_user) {
        return Err(Denied::NotMember);
    }
    let is_theirs = caller.role.is_administrator() || owner == Some(caller.user);
    let is_viewer = membership(caller, workspace) == Some(WorkspaceRole::Viewer);
    if act == Act::Write && is_viewer && !is_theirs {
        return Err(Denied::OnlyViewer);
    }
    has_scope(caller, act.into()).then_some(()).ok_or(Denied::Scope(act.into()))
}

fn membership(caller: &Caller, workspace: Option<WorkspaceId>) -> Option<WorkspaceRole> {
    let found = caller.memberships.iter().find(|(of, _)| Some(*of) == workspace);
    found.map(|(_, role)| *role)
}

pub(crate) fn has_scope(caller: &Caller, scope: Scope) -> bool {
    caller.scopes.iter().any(|granted| scope.is_granted_by(granted))
}

pub(crate) fn require_scope(caller: &Caller, scope: Scope) -> Result<(), Failure> {
    if has_scope(caller, scope) { Ok(()) } else { Err(missing_scope(scope)) }
}

fn missing_scope(scope: Scope) -> Failure {
    let message = format!("the API key lacks the scope {}", scope.as_str());
    Failure::new(ErrorCode::InsufficientScope, message)
}

pub(crate) fn is_operator(caller: &Caller, first_tenant: TenantId) -> bool {
    caller.tenant == first_tenant && is_admin_key(caller)
}

/// A key that opens the routes of administrators. A confined one does not.
fn is_admin_key(caller: &Caller) -> bool {
    caller.kind == KeyKind::Admin && caller.role.is_administrator() && caller.confinement.is_none()
}

pub(crate) fn require_operator(caller: &Caller) -> Result<(), Failure> {
    if caller.is_operator {
        return Ok(());
    }
    let message =
        "only the operator of this server may: an administrator of its first tenant, with an admin key";
    Err(Failure::new(ErrorCode::Forbidden, message))
}

/// Users and keys of a tenant are for its administrators, and for operators.
pub(crate) fn administers(caller: &Caller, tenant: TenantId) -> Result<(), Failure> {
    match (caller.is_operator, tenant == caller.tenant) {
        (true, _) => Ok(()),
        (false, true) if is_admin_key(caller) => Ok(()),
        (false, true) => Err(Failure::new(
            ErrorCode::Forbidden,
            "only administrators of the tenant may, with a key of the type admin that is not confined",
        )),
        (false, false) => Err(Failure::new(ErrorCode::NotFound, "tenant not found")),
    }
}

/// What the caller is in a workspace. A confined key is never more than a member; the default workspace takes
/// computers of everybody, which does not show them each other's.
pub(crate) fn standing(caller: &Caller, workspace: &WorkspaceRecord) -> Result<WorkspaceRole, Denied> {
    if workspace.tenant != caller.tenant {
        return Err(Denied::NotFound);
    }
    let confined_to = caller.confinement.workspace;
    if confined_to.is_some_and(|only| only != workspace.id) {
        return Err(Denied::NotMember);
    }
    let role = match membership(caller, Some(workspace.id)) {
        _ if caller.role.is_administrator() => Some(WorkspaceRole::Owner),
        None if workspace.is_default => Some(WorkspaceRole::Member),
        role => role,
    };
    match role.ok_or(Denied::NotMember)? {
        WorkspaceRole::Owner | WorkspaceRole::Admin if !caller.confinement.is_none() => {
            Ok(WorkspaceRole::Member)
        }
        role => Ok(role),
    }
}

/// Whether the caller may put a computer into a workspace.
pub(crate) fn may_use(caller: &Caller, workspace: &WorkspaceRecord) -> bool {
    standing(caller, workspace).is_ok_and(|role| role != WorkspaceRole::Viewer)
}

pub(crate) fn may_make_workspaces(caller: &Caller) -> bool {
    caller.confinement.is_none()
}

/// The workspaces the caller may look at; `None`: all of the tenant. Names of an organization's customers are none of
/// an end user's business.
pub(crate) fn workspaces(caller: &Caller, default: WorkspaceId) -> Result<Option<Vec<WorkspaceId>>, Failure> {
    if caller.confinement.external_user.is_some() {
        return Err(confined());
    }
    if let Some(only) = caller.confinement.workspace {
        return Ok(Some(vec![only]));
    }
    if caller.role.is_administrator() {
        return Ok(None);
    }
    let memberships = caller.memberships.iter().map(|(workspace, _)| *workspace);
    Ok(Some(memberships.chain([default]).collect()))
}

/// The credits of a tenant and what they went to, its domain and its settings are not for keys that are given to its
/// customers.
pub(crate) fn sees_accounts(caller: &Caller) -> Result<(), Failure> {
    if caller.confinement.is_none() { Ok(()) } else { Err(confined()) }
}

/// What end users may have is set by administrators of the tenant; a key that is confined to one shows them theirs.
pub(crate) fn check_quota(caller: &Caller, external_user: &str, act: Act) -> Result<(), Failure> {
    let confinement = &caller.confinement;
    if caller.role.is_administrator() && confinement.is_none() {
        return Ok(());
    }
    let is_their_own =
        confinement.workspace.is_none() && confinement.external_user.as_deref() == Some(external_user);
    if act == Act::Read && is_their_own {
        return Ok(());
    }
    let message = "quotas are for administrators of the tenant, with a key that is not confined";
    Err(Failure::new(ErrorCode::Forbidden, message))
}

/// A webhook is told of what its maker may see. Memberships change, so a member listens to one workspace, with a key
/// that is confined to it.
pub(crate) fn may_make_webhooks(caller: &Caller) -> Result<(), Failure> {
    let is_member_there = membership(caller, caller.confinement.workspace).is_some();
    if caller.role.is_administrator() || is_member_there {
        return Ok(());
    }
    let message = "webhooks of a whole tenant are for its administrators; members make them with a key that is \
                   confined to a workspace of theirs";
    Err(Failure::new(ErrorCode::Forbidden, message))
}

/// Whether the caller may look at and change a webhook.
pub(crate) fn check_webhook(caller: &Caller, webhook: &WebhookRecord) -> Result<(), Denied> {
    if webhook.tenant != caller.tenant {
        return Err(Denied::NotFound);
    }
    let is_inside = caller.confinement.is_none() || webhook.confinement == caller.confinement;
    let is_theirs = caller.role.is_administrator() || webhook.user == Some(caller.user);
    if is_inside && is_theirs { Ok(()) } else { Err(Denied::NotMember) }
}

/// Presets are everybody's in the tenant.
pub(crate) fn may_make_presets(caller: &Caller) -> Result<(), Failure> {
    if caller.role.is_administrator() && caller.confinement.is_none() {
        return Ok(());
    }
    let message = "presets are made by administrators of the tenant, with a key that is not confined";
    Err(Failure::new(ErrorCode::Forbidden, message))
}

pub(crate) fn confined() -> Failure {
    Failure::new(
        ErrorCode::Forbidden,
        "the API key is confined, and this is outside of what it is confined to",
    )
}

/// Whether the caller may look at, end and rename a key.
pub(crate) fn may_manage_key(caller: &Caller, key: &KeyRecord) -> Result<(), Failure> {
    if key.tenant != caller.tenant {
        return Err(Denied::NotFound.about("API key"));
    }
    if !caller.confinement.is_none() {
        return Err(confined());
    }
    if caller.role.is_administrator() || key.user == caller.user {
        return Ok(());
    }
    Err(Failure::new(ErrorCode::Forbidden, "the API key is another user's"))
}

/// Whether the caller may hold a key of `user` in hand that can do that much: nobody gets more than they have.
pub(crate) fn may_mint(
    caller: &Caller,
    user: &UserRecord,
    kind: KeyKind,
    scopes: &[String],
    allowed_ips: &[AddressRange],
) -> Result<(), Failure> {
    let forbidden = |message: &str| Err(Failure::new(ErrorCode::Forbidden, message));
    if !caller.confinement.is_none() {
        return Err(confined());
    }
    if user.id != caller.user {
        administers(caller, user.tenant)?;
        if user.role == Role::Owner && caller.role != Role::Owner && !caller.is_operator {
            return forbidden("only an owner makes keys for an owner");
        }
    }
    if kind != KeyKind::User && (caller.kind == KeyKind::User || !user.role.is_administrator()) {
        return forbidden(
            "keys of the types admin and platform are made with such a key, for administrators",
        );
    }
    for scope in Scope::ALL {
        if scopes.iter().any(|wanted| scope.is_granted_by(wanted)) {
            require_scope(caller, scope)?;
        }
    }
    let is_inside = |range: &AddressRange| caller.allowed_ips.iter().any(|own| own.includes(range));
    if !caller.allowed_ips.is_empty() && (allowed_ips.is_empty() || !allowed_ips.iter().all(is_inside)) {
        return forbidden("the key would be good from more addresses than the one this was asked with");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use roost_api::ApiKeyId;
    use roost_store::{Confinement, KeyForm};

    use super::*;

    fn caller(tenant: TenantId, role: Role) -> Caller {
        Caller {
            key: ApiKeyId::new(),
            form: KeyForm::Key,
            tenant,
            tenant_slug: "t".to_owned(),
            key_hash: String::new(),
            user: UserId::new(),
            role,
            kind: KeyKind::User,
            scopes: Scope::ALL.map(|scope| scope.as_str().to_owned()).to_vec(),
            memberships: Vec::new(),
            confinement: Confinement::default(),
            allowed_ips: Vec::new(),
            address: None,
            expires_at: None,
            is_operator: false,
            default_workspace: None,
        }
    }

    #[test]
    fn the_whole_table_of_standing_and_act() {
        let (tenant, workspace, owner) = (TenantId::new(), WorkspaceId::new(), UserId::new());
        let whose =
            Whose { tenant, workspace: Some(workspace), owner: Some(owner), external_user: Some("ann") };
        let is = |change: &dyn Fn(&mut Caller)| {
            let mut caller = caller(tenant, Role::Member);
            change(&mut caller);
            [check(&caller, whose, Act::Read), check(&caller, whose, Act::Write)]
        };
        let confined =
            |workspace, user: Option<&str>| Confinement { workspace, external_user: user.map(str::to_owned) };
        let member = |role| move |caller: &mut Caller| caller.memberships = vec![(workspace, role)];
        let (yes, stranger) = (Ok(()), Err(Denied::NotMember));

        assert_eq!(is(&|caller| caller.tenant = TenantId::new()), [Err(Denied::NotFound); 2]);
        assert_eq!(is(&|_| {}), [stranger; 2]);
        assert_eq!(is(&|caller| caller.user = owner), [yes; 2]);
        for role in [Role::Owner, Role::Admin] {
            assert_eq!(is(&|caller| caller.role = role), [yes; 2]);
        }
        for role in [WorkspaceRole::Owner, WorkspaceRole::Admin, WorkspaceRole::Member] {
            assert_eq!(is(&member(role)), [yes; 2]);
        }
        assert_eq!(is(&member(WorkspaceRole::Viewer)), [yes, Err(Denied::OnlyViewer)]);
        // What one made oneself is not only to be looked at.
        assert_eq!(
            is(&|caller| {
                member(WorkspaceRole::Viewer)(caller);
                caller.user = owner;
            }),
            [yes; 2]
        );
        // A confined key reaches nothing else, whoever it is of.
        for (confinement, expected) in [
            (confined(Some(workspace), None), yes),
            (confined(Some(WorkspaceId::new()), None), stranger),
            (confined(None, Some("ann")), yes),
            (confined(None, Some("bob")), stranger),
            (confined(Some(workspace), Some("bob")), stranger),
        ] {
            let answer = is(&|caller| {
                caller.role = Role::Owner;
                caller.confinement = confinement.clone();
            });
            assert_eq!(answer, [expected; 2], "{confinement:?}");
        }
        // Confinement takes away and gives nothing.
        assert_eq!(is(&|caller| caller.confinement = confined(None, Some("ann"))), [stranger; 2]);
        let scoped = |scopes: &[&str]| {
            is(&|caller| {
                caller.user = owner;
                caller.scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
            })
        };
        let (read, write) =
            (Err(Denied::Scope(Scope::ComputersRead)), Err(Denied::Scope(Scope::ComputersWrite)));
        assert_eq!(scoped(&[]), [read, write]);
        assert_eq!(scoped(&["computers:read"]), [yes, write]);
        assert_eq!(scoped(&["computers:write"]), [read, yes]);
        assert_eq!(scoped(&["computers:*"]), [yes; 2]);
        assert_eq!(scoped(&["*"]), [yes; 2]);
        assert_eq!(scoped(&["usage:*", "sandboxes:read", "computers"]), [read, write]);
    }

    #[test]
    fn nobody_makes_a_key_that_can_do_more() {
        let tenant = TenantId::new();
        let user = |caller: &Caller, role| UserRecord {
            id: caller.user,
            tenant,
            name: String::new(),
            email: None,
            role,
            created_at: roost_api::Timestamp::EPOCH,
        };
        let all = ["*".to_owned()];
        let may = |caller: &Caller, user: &UserRecord, kind| may_mint(caller, user, kind, &all, &[]).is_ok();

        let member = caller(tenant, Role::Member);
        let himself = user(&member, Role::Member);
        assert!(may(&member, &himself, KeyKind::User));
        assert!(!may(&member, &himself, KeyKind::Admin) && !may(&member, &himself, KeyKind::Platform));
        let narrow = Caller { scopes: vec!["computers:read".to_owned()], ..member.clone() };
        assert!(!may(&narrow, &himself, KeyKind::User));
        assert!(may_mint(&narrow, &himself, KeyKind::User, &["computers:read".to_owned()], &[]).is_ok());
        let ranges = |text: &str| vec![text.parse::<AddressRange>().unwrap()];
        let limited = Caller { allowed_ips: ranges("10.0.0.0/8"), ..member.clone() };
        let from =
            |ranges: &[AddressRange]| may_mint(&limited, &himself, KeyKind::User, &all, ranges).is_ok();
        assert!(from(&ranges("10.1.0.0/16")) && !from(&ranges("0.0.0.0/0")) && !from(&[]));
        let only = Confinement { workspace: None, external_user: Some("ann".to_owned()) };
        assert!(!may(&Caller { confinement: only, ..member.clone() }, &himself, KeyKind::User));

        // A user key of an owner is no admin key; an admin key makes every kind, for administrators only.
        let owner = caller(tenant, Role::Owner);
        assert!(!may(&owner, &user(&owner, Role::Owner), KeyKind::Admin));
        let admin = Caller { kind: KeyKind::Admin, ..caller(tenant, Role::Admin) };
        assert!(may(&admin, &user(&admin, Role::Admin), KeyKind::Platform));
        assert!(may(&admin, &himself, KeyKind::User) && !may(&admin, &himself, KeyKind::Admin));
        assert!(!may(&member, &user(&admin, Role::Admin), KeyKind::User));
        assert!(!may(&admin, &user(&owner, Role::Owner), KeyKind::User), "an owner is more than an admin");
        let stranger = Caller { kind: KeyKind::Admin, ..caller(TenantId::new(), Role::Owner) };
        assert!(!may(&stranger, &himself, KeyKind::User));
        assert!(may(&Caller { is_operator: true, ..stranger }, &himself, KeyKind::User));
    }
}
