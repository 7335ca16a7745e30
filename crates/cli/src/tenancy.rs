//! `roost tenant`, `roost user`, `roost key` and `roost workspace`: who there is, and what they may do.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use reqwest::Method;
use roost_api::{
    AddressRange, ApiKey, ApiKeyWithSecret, Data, Identity, KeyEvent, Removed, Tenant, TransferredComputers,
    User, Workspace, WorkspaceMember, WorkspacePolicy,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::client::Client;
use crate::output::{print_json, print_line, table};

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// List the tenants you may act in
    #[command(alias = "ls")]
    List,
    /// Make a tenant, and print the key of its owner
    Create {
        /// Display name
        name: String,
        /// Its name in addresses and commands [default: from the name]
        #[arg(long)]
        slug: Option<String>,
        /// E-mail address of its owner
        #[arg(long, value_name = "EMAIL")]
        owner: Option<String>,
    },
    /// Delete a tenant that has no computers and no snapshots
    #[command(alias = "rm")]
    Delete {
        /// Slug or id
        tenant: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OfTenant {
    /// Slug or id of the tenant [default: your own]
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// List the users of a tenant
    #[command(alias = "ls")]
    List(OfTenant),
    /// Make a user, and print a key for them
    Create {
        /// Display name
        name: String,
        #[arg(long)]
        email: Option<String>,
        /// owner, admin or member
        #[arg(long, default_value = "member")]
        role: String,
        #[command(flatten)]
        of: OfTenant,
    },
    /// Give a user another role
    Role {
        /// Name, e-mail address or id
        user: String,
        /// owner, admin or member
        role: String,
        #[command(flatten)]
        of: OfTenant,
    },
    /// Remove a user with their keys; their computers stay
    #[command(alias = "rm")]
    Delete {
        /// Name, e-mail address or id
        user: String,
        #[command(flatten)]
        of: OfTenant,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Show whom your own key speaks for
    Whoami,
    /// List API keys
    #[command(alias = "ls")]
    List,
    /// Make an API key, which is printed this once
    Create(KeyCreateArgs),
    /// Give a key another secret; the one before ends at once
    Rotate {
        /// Id, name or first characters
        key: String,
    },
    /// Say from which addresses a key may be used
    Allow {
        /// Id, name or first characters
        key: String,
        /// Addresses and networks, such as 203.0.113.7 and 10.0.0.0/8 [default: every address]
        ranges: Vec<AddressRange>,
    },
    /// Show what happened to a key, newest first
    Events {
        /// Id, name or first characters
        key: String,
    },
    /// End API keys
    #[command(alias = "rm")]
    Delete {
        /// Ids, names or first characters
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct KeyCreateArgs {
    /// What it is for
    name: String,
    /// user, admin or platform
    #[arg(long = "type", default_value = "user", value_name = "TYPE")]
    kind: String,
    /// What it may do, such as computers:read; may be repeated [default: everything you may]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Scopes under a name, such as read-only
    #[arg(long, value_name = "PRESET", conflicts_with = "scopes")]
    preset: Option<String>,
    /// Address or network from which it may be used; may be repeated [default: as your own key]
    #[arg(long = "from", value_name = "CIDR")]
    ranges: Vec<AddressRange>,
    /// Slug or id of a workspace outside of which it reaches nothing
    #[arg(long, value_name = "WORKSPACE")]
    workspace: Option<String>,
    /// Your own id of an end user whose computers are all it reaches
    #[arg(long, value_name = "ID")]
    external_user: Option<String>,
    /// Ends by itself after so many days
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkspaceCommand {
    /// List workspaces
    #[command(alias = "ls")]
    List,
    /// Make a workspace
    Create {
        /// Display name
        name: String,
        /// Its name in addresses and commands [default: from the name]
        #[arg(long)]
        slug: Option<String>,
    },
    /// List the members of a workspace
    Members {
        /// Slug or id
        workspace: String,
    },
    /// Let a user of the tenant into a workspace
    Add {
        /// Slug or id of the workspace
        workspace: String,
        /// E-mail address or id of the user
        user: String,
        /// owner, admin, member or viewer
        #[arg(long, default_value = "member")]
        role: String,
    },
    /// Take a user out of a workspace
    Remove {
        /// Slug or id of the workspace
        workspace: String,
        /// E-mail address, name or id of the user
        user: String,
    },
    /// Show what may be in a workspace, or say it with the options
    Policy(PolicyArgs),
    /// Bring computers of a workspace to another one, all or none
    Transfer {
        /// Slug or id of the workspace they are in
        workspace: String,
        /// Slug or id of the one they go to
        target: String,
        /// Ids of the computers
        #[arg(required = true)]
        computers: Vec<String>,
    },
    /// Delete a workspace; its computers go to the default one
    #[command(alias = "rm")]
    Delete {
        /// Slug or id
        workspace: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// Slug or id
    workspace: String,
    /// Let everything be in it again
    #[arg(long, conflicts_with_all = ["sizes", "regions", "computers", "running", "storage", "auto_stop"])]
    clear: bool,
    /// A size that computers may have; may be repeated
    #[arg(long = "size", value_name = "SIZE")]
    sizes: Vec<String>,
    /// A region that computers may be in; may be repeated
    #[arg(long = "region", value_name = "REGION")]
    regions: Vec<String>,
    /// How many computers
    #[arg(long, value_name = "N")]
    computers: Option<u32>,
    /// How many of them at a time
    #[arg(long, value_name = "N")]
    running: Option<u32>,
    /// How many GiB their disks may grow to together
    #[arg(long, value_name = "GIB")]
    storage: Option<u32>,
    /// Idle seconds after which computers stop that are made without a limit
    #[arg(long, value_name = "SECONDS")]
    auto_stop: Option<u32>,
}

pub(crate) async fn tenant(client: &Client, command: &TenantCommand, json: bool) -> anyhow::Result<()> {
    match command {
        TenantCommand::List => {
            let tenants: Vec<Tenant> = data(client, Method::GET, "/platform/tenants", None).await?;
            let rows = |tenant: &Tenant| {
                vec![
                    tenant.slug.clone(),
                    tenant.name.clone(),
                    tenant.id.to_string(),
                    tenant.created_at.to_string(),
                ]
            };
            print_list(&tenants, &["SLUG", "NAME", "ID", "CREATED (UTC)"], rows, "no tenants", json)
        }
        TenantCommand::Create { name, slug, owner } => {
            let body = json!({ "name": name, "slug": slug, "owner_email": owner });
            let tenant: Tenant = data(client, Method::POST, "/admin/tenants", Some(&body)).await?;
            let key = json!({ "name": "first", "key_type": "admin" });
            let path = format!("/admin/tenants/{}/keys", tenant.id);
            let key: ApiKeyWithSecret = data(client, Method::POST, &path, Some(&key)).await?;
            if json {
                return print_json(&json!({ "tenant": tenant, "key": key }));
            }
            print_line(&format!("{}: made ({})", tenant.slug, tenant.id))?;
            print_secret("key of its owner", &key)
        }
        TenantCommand::Delete { tenant } => {
            let removed: Removed =
                client.call(Method::DELETE, &format!("/admin/tenants/{tenant}"), None).await?;
            print_removed(tenant, &removed, json)
        }
    }
}

pub(crate) async fn user(client: &Client, command: &UserCommand, json: bool) -> anyhow::Result<()> {
    match command {
        UserCommand::List(of) => {
            let path = format!("{}/users", of.path(client).await?);
            let users: Vec<User> = data(client, Method::GET, &path, None).await?;
            let rows = |user: &User| {
                let email = user.email.clone().unwrap_or_default();
                vec![user.name.clone(), user.role.as_str().to_owned(), email, user.id.to_string()]
            };
            print_list(&users, &["NAME", "ROLE", "EMAIL", "ID"], rows, "no users", json)
        }
        UserCommand::Create { name, email, role, of } => {
            let tenant = of.path(client).await?;
            let body = json!({ "name": name, "email": email, "role": role });
            let user: User = data(client, Method::POST, &format!("{tenant}/users"), Some(&body)).await?;
            let body = json!({ "name": name, "user_id": user.id });
            let key: ApiKeyWithSecret =
                data(client, Method::POST, &format!("{tenant}/keys"), Some(&body)).await?;
            if json {
                return print_json(&json!({ "user": user, "key": key }));
            }
            print_line(&format!("{} ({}): made ({})", user.name, user.role.as_str(), user.id))?;
            print_secret("their key", &key)
        }
        UserCommand::Role { user, role, of } => {
            let path = format!("{}/users", of.path(client).await?);
            let found = find_user(client, &path, user).await?;
            let body = json!({ "role": role });
            let changed: User =
                data(client, Method::PATCH, &format!("{path}/{}", found.id), Some(&body)).await?;
            if json {
                return print_json(&changed);
            }
            print_line(&format!("{}: {} now", changed.name, changed.role.as_str()))
        }
        UserCommand::Delete { user, of } => {
            let path = format!("{}/users", of.path(client).await?);
            let found = find_user(client, &path, user).await?;
            let removed: Removed = client.call(Method::DELETE, &format!("{path}/{}", found.id), None).await?;
            print_removed(&found.name, &removed, json)
        }
    }
}

pub(crate) async fn key(client: &Client, command: &KeyCommand, json: bool) -> anyhow::Result<()> {
    match command {
        KeyCommand::Whoami => {
            let identity: Identity = data(client, Method::GET, "/whoami", None).await?;
            if json {
                return print_json(&identity);
            }
            let operator = if identity.is_operator { ", operator of this server" } else { "" };
            print_line(&format!(
                "{} ({} of {}{operator})\nkey type {}, scopes {}",
                identity.name,
                identity.role.as_str(),
                identity.organization_slug,
                identity.key_type.as_str(),
                identity.scopes.join(" ")
            ))
        }
        KeyCommand::List => {
            let keys: Vec<ApiKey> = data(client, Method::GET, "/api-keys", None).await?;
            let header = ["NAME", "KEY", "TYPE", "SCOPES", "EXPIRES", "LAST USED", "ID"];
            print_list(&keys, &header, key_row, "no keys", json)
        }
        KeyCommand::Create(args) => create_key(client, args, json).await,
        KeyCommand::Rotate { key } => {
            let found = find_key(client, key).await?;
            let path = format!("/api-keys/{}/rotate", found.id);
            let made: ApiKeyWithSecret = data(client, Method::POST, &path, None).await?;
            if json {
                return print_json(&made);
            }
            print_secret(&found.name, &made)
        }
        KeyCommand::Allow { key, ranges } => {
            let found = find_key(client, key).await?;
            let body = json!({ "allowed_ips": ranges });
            let path = format!("/api-keys/{}", found.id);
            let changed: ApiKey = data(client, Method::PATCH, &path, Some(&body)).await?;
            if json {
                return print_json(&changed);
            }
            let ranges: Vec<String> = changed.allowed_ips.iter().map(AddressRange::to_string).collect();
            let ranges = if ranges.is_empty() { "anywhere".to_owned() } else { ranges.join(", ") };
            print_line(&format!("{}: may be used from {ranges}", changed.name))
        }
        KeyCommand::Events { key } => {
            let found = find_key(client, key).await?;
            let path = format!("/api-keys/{}/events?limit=200", found.id);
            let events: Vec<KeyEvent> = data(client, Method::GET, &path, None).await?;
            let row = |event: &KeyEvent| {
                let details =
                    if event.details.is_empty() { String::new() } else { json!(event.details).to_string() };
                let from = event.ip_address.map(|address| address.to_string()).unwrap_or_default();
                vec![event.created_at.to_string(), event.kind.as_str().to_owned(), from, details]
            };
            print_list(&events, &["TIME (UTC)", "WHAT", "FROM", "NOW"], row, "nothing happened yet", json)
        }
        KeyCommand::Delete { keys } => {
            for name in keys {
                let found = find_key(client, name).await?;
                let removed: Removed =
                    client.call(Method::DELETE, &format!("/api-keys/{}", found.id), None).await?;
                print_removed(&found.name, &removed, json)?;
            }
            Ok(())
        }
    }
}

async fn create_key(client: &Client, args: &KeyCreateArgs, json: bool) -> anyhow::Result<()> {
    let workspace = match &args.workspace {
        Some(name) => Some(find_workspace(client, name).await?.id),
        None => None,
    };
    let mut body = json!({
        "name": args.name, "key_type": args.kind, "workspace_id": workspace,
        "external_user_id": args.external_user, "expires_in_days": args.days, "preset": args.preset,
    });
    if !args.ranges.is_empty() {
        body["allowed_ips"] = json!(args.ranges);
    }
    if !args.scopes.is_empty() {
        body["scopes"] = json!(args.scopes);
    }
    let made: ApiKeyWithSecret = data(client, Method::POST, "/api-keys", Some(&body)).await?;
    if json {
        return print_json(&made);
    }
    print_secret(&args.name, &made)
}

pub(crate) async fn workspace(client: &Client, command: &WorkspaceCommand, json: bool) -> anyhow::Result<()> {
    match command {
        WorkspaceCommand::List => {
            let found = workspaces(client).await?;
            let rows = |workspace: &Workspace| {
                let external = workspace.external_workspace_id.clone().unwrap_or_default();
                let name = match workspace.is_default {
                    true => format!("{} (default)", workspace.name),
                    false => workspace.name.clone(),
                };
                vec![workspace.slug.clone(), name, external, workspace.id.to_string()]
            };
            print_list(&found, &["SLUG", "NAME", "EXTERNAL ID", "ID"], rows, "no workspaces", json)
        }
        WorkspaceCommand::Create { name, slug } => {
            let body = json!({ "name": name, "slug": slug });
            let made: Workspace = client.call(Method::POST, "/workspaces", Some(&body)).await?;
            if json {
                return print_json(&made);
            }
            print_line(&format!("{}: made ({})", made.slug, made.id))
        }
        WorkspaceCommand::Members { workspace } => {
            let found = members(client, workspace).await?.1;
            let rows = |member: &WorkspaceMember| {
                let email = member.email.clone().unwrap_or_default();
                vec![member.name.clone(), member.role.as_str().to_owned(), email, member.user_id.to_string()]
            };
            let none = "no members: only the tenant's administrators reach it";
            print_list(&found, &["NAME", "ROLE", "EMAIL", "ID"], rows, none, json)
        }
        WorkspaceCommand::Add { workspace, user, role } => {
            let workspace = find_workspace(client, workspace).await?;
            let field = if user.contains('@') { "email" } else { "user_id" };
            let body = json!({ field: user, "role": role });
            let path = format!("/workspaces/{}/members", workspace.id);
            let member: WorkspaceMember = data(client, Method::POST, &path, Some(&body)).await?;
            if json {
                return print_json(&member);
            }
            print_line(&format!("{}: {} of {}", member.name, member.role.as_str(), workspace.slug))
        }
        WorkspaceCommand::Remove { workspace, user } => {
            let (workspace, members) = members(client, workspace).await?;
            let found = members.iter().find(|member| {
                member.name == *user
                    || member.email.as_ref() == Some(user)
                    || member.user_id.to_string() == *user
            });
            let found = found.with_context(|| format!("{user:?} is no member of {}", workspace.slug))?;
            let path = format!("/workspaces/{}/members/{}", workspace.id, found.user_id);
            let removed: Removed = client.call(Method::DELETE, &path, None).await?;
            print_removed(&found.name, &removed, json)
        }
        WorkspaceCommand::Policy(args) => policy(client, args, json).await,
        WorkspaceCommand::Transfer { workspace, target, computers } => {
            let (source, target) =
                (find_workspace(client, workspace).await?, find_workspace(client, target).await?);
            let body = json!({ "resource_ids": computers, "target_workspace_id": target.id });
            let path = format!("/workspaces/{}/transfer", source.id);
            let done: TransferredComputers = data(client, Method::POST, &path, Some(&body)).await?;
            if json {
                return print_json(&done);
            }
            print_line(&format!("{} computers are in {} now", done.transferred.len(), target.slug))
        }
        WorkspaceCommand::Delete { workspace } => {
            let found = find_workspace(client, workspace).await?;
            let removed: Removed =
                client.call(Method::DELETE, &format!("/workspaces/{}", found.id), None).await?;
            print_removed(&found.slug, &removed, json)
        }
    }
}

async fn policy(client: &Client, args: &PolicyArgs, json: bool) -> anyhow::Result<()> {
    let path = format!("/workspaces/{}/policy", find_workspace(client, &args.workspace).await?.id);
    // What is not named stays as it is: the route takes a policy as a whole.
    let mut set: WorkspacePolicy = data(client, Method::GET, &path, None).await?;
    let before = set.clone();
    set.allowed_sizes = parsed_or(&args.sizes, set.allowed_sizes)?;
    set.allowed_regions = parsed_or(&args.regions, set.allowed_regions)?;
    set.max_computers = args.computers.or(set.max_computers);
    set.max_concurrent = args.running.or(set.max_concurrent);
    set.max_storage_gb = args.storage.or(set.max_storage_gb);
    set.default_auto_stop_seconds = args.auto_stop.or(set.default_auto_stop_seconds);
    let now: WorkspacePolicy = match () {
        () if args.clear => data(client, Method::DELETE, &path, None).await?,
        () if set != before => data(client, Method::PUT, &path, Some(&json!(set))).await?,
        () => set,
    };
    if json {
        return print_json(&now);
    }
    let now = json!(now);
    let rows: Vec<Vec<String>> = now
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| vec![name.clone(), value.to_string()])
        .collect();
    if rows.is_empty() {
        return print_line("everything may be in it");
    }
    print_line(&table(&["LIMIT", "IS"], &rows))
}

/// What the command line names, else what there is.
fn parsed_or<T: DeserializeOwned>(
    named: &[String],
    otherwise: Option<Vec<T>>,
) -> anyhow::Result<Option<Vec<T>>> {
    if named.is_empty() {
        return Ok(otherwise);
    }
    Ok(Some(serde_json::from_value(json!(named))?))
}

impl OfTenant {
    /// The path of the tenant's administration.
    async fn path(&self, client: &Client) -> anyhow::Result<String> {
        let tenant = match &self.tenant {
            Some(tenant) => tenant.clone(),
            None => data::<Identity>(client, Method::GET, "/whoami", None).await?.tenant_id.to_string(),
        };
        Ok(format!("/admin/tenants/{tenant}"))
    }
}

async fn data<T: DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<T> {
    Ok(client.call::<Data<T>>(method, path, body).await?.data)
}

async fn find_user(client: &Client, users: &str, name: &str) -> anyhow::Result<User> {
    let all: Vec<User> = data(client, Method::GET, users, None).await?;
    let is_meant = |user: &&User| {
        user.name == name || user.email.as_deref() == Some(name) || user.id.to_string() == name
    };
    only(all.iter().filter(is_meant).cloned().collect(), "user", name)
}

async fn find_key(client: &Client, name: &str) -> anyhow::Result<ApiKey> {
    let all: Vec<ApiKey> = data(client, Method::GET, "/api-keys", None).await?;
    let is_meant = |key: &&ApiKey| key.name == name || key.prefix == name || key.id.to_string() == name;
    only(all.iter().filter(is_meant).cloned().collect(), "key", name)
}

async fn workspaces(client: &Client) -> anyhow::Result<Vec<Workspace>> {
    let mut all = Vec::new();
    for page in 1.. {
        let path = format!("/workspaces?page={page}&per_page=100");
        let found: Vec<Workspace> = data(client, Method::GET, &path, None).await?;
        let is_last = found.len() < 100;
        all.extend(found);
        if is_last {
            break;
        }
    }
    Ok(all)
}

async fn find_workspace(client: &Client, name: &str) -> anyhow::Result<Workspace> {
    let is_meant = |workspace: &Workspace| workspace.slug == name || workspace.id.to_string() == name;
    let found = workspaces(client).await?.into_iter().filter(is_meant).collect();
    only(found, "workspace", name)
}

async fn members(client: &Client, name: &str) -> anyhow::Result<(Workspace, Vec<WorkspaceMember>)> {
    let workspace = find_workspace(client, name).await?;
    let path = format!("/workspaces/{}/members", workspace.id);
    let members = data(client, Method::GET, &path, None).await?;
    Ok((workspace, members))
}

fn only<T>(mut found: Vec<T>, thing: &str, name: &str) -> anyhow::Result<T> {
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => bail!("several have the name {name:?}; use the id from `roost {thing} list`"),
        (None, _) => bail!("there is no {thing} {name:?}; `roost {thing} list` shows what there is"),
    }
}

fn key_row(key: &ApiKey) -> Vec<String> {
    let time =
        |time: Option<roost_api::Timestamp>| time.map_or_else(|| "never".to_owned(), |at| at.to_string());
    let mut kind = key.key_type.as_str().to_owned();
    if key.workspace_id.is_some() || key.external_user_id.is_some() {
        kind += " (confined)";
    }
    if !key.active {
        kind += " (disabled)";
    }
    vec![
        key.name.clone(),
        format!("{}…", key.prefix),
        kind,
        key.scopes.join(" "),
        time(key.expires_at),
        time(key.last_used_at),
        key.id.to_string(),
    ]
}

fn print_list<T: Serialize>(
    all: &[T],
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
    none: &str,
    json: bool,
) -> anyhow::Result<()> {
    if json {
        return print_json(&all);
    }
    if all.is_empty() {
        return print_line(none);
    }
    print_line(&table(header, &all.iter().map(row).collect::<Vec<_>>()))
}

/// The one time that a secret is shown.
fn print_secret(what: &str, made: &ApiKeyWithSecret) -> anyhow::Result<()> {
    print_line(&format!("{what}, shown this once:\n  {}", made.key))
}

fn print_removed(name: &str, removed: &Removed, json: bool) -> anyhow::Result<()> {
    if json { print_json(removed) } else { print_line(&format!("{name}: deleted")) }
}
