//! API keys: 256 random bits, shown once, kept as SHA-256; and scoped tokens, which are keys for a while.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_api::{
    AddressRange, ApiError, ApiKey, ApiKeyId, ApiKeyWithSecret, CreateApiKey, CreateScopedToken, ErrorCode,
    KeyKind, KeyStatus, ListKeys, ScopedToken, TenantId, Timestamp, UpdateApiKey, UserId, WorkspaceId,
    admits,
};
use roost_store::{Caller, Confinement, KeyActor, KeyChange, KeyForm, KeyRecord, NewKey, Store, UserRecord};
use sha2::{Digest, Sha256};

use crate::access::{self, Denied, Scope};
use crate::computers::{check_name, metadata};
use crate::places::external_id;
use crate::{Control, Failure};

const MOST_KEYS: usize = 1000;
const MOST_SCOPES: usize = 50;
const MOST_RANGES: usize = 100;
const LONGEST_DAYS: u32 = 3650;
const LONGEST_TOKEN: u32 = 86_400;
const DEFAULT_TOKEN: u32 = 3600;

/// A key that was just made. This is the only time its text exists outside the caller's hands.
pub struct AdminKey {
    pub text: String,
}

impl std::fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminKey(secret)")
    }
}

/// Makes the first key of a new server; `None` where there are keys already.
pub async fn first_key(store: &Store) -> Result<Option<AdminKey>, Failure> {
    if store.count_api_keys().await? > 0 {
        return Ok(None);
    }
    let home = store.home().await?;
    let text = secret(KeyForm::Key, KeyKind::Admin)?;
    let new = NewKey {
        tenant: home.tenant,
        user: home.user,
        name: "admin".to_owned(),
        prefix: prefix(&text),
        hash: hash(&text),
        kind: KeyKind::Admin,
        form: KeyForm::Key,
        scopes: every_scope(),
        confinement: Confinement::default(),
        allowed_ips: Vec::new(),
        expires_at: None,
        metadata: Default::default(),
    };
    let inserted = store.insert_key(&new, &KeyActor::default()).await?;
    Ok(inserted.map(|_| AdminKey { text }))
}

impl Control {
    /// Who an `Authorization` credential speaks for. Looking the hash up needs no constant-time compare:
    /// what a caller can time is the hash of a guess, not the key.
    pub async fn authenticate(
        &self,
        credential: Option<&str>,
        from: Option<IpAddr>,
    ) -> Result<Caller, Failure> {
        let Some(credential) = credential else {
            return Err(Failure::new(
                ErrorCode::InvalidToken,
                "no credential: send the header Authorization: Bearer <API key>",
            ));
        };
        let caller = self.inner.store.caller_by_key_hash(&hash(credential)).await?;
        let caller = caller.map(|caller| self.with_operator(caller)).ok_or_else(|| {
            Failure::new(ErrorCode::InvalidToken, "the credential is unknown or no longer valid")
        })?;
        if !admits(&caller.allowed_ips, from) {
            self.inner.store.record_refusal(caller.key, from).await?;
            let from = from.map_or("an unknown address".to_owned(), |address| address.to_string());
            let message = format!("the API key may not be used from {from}: its allowed_ips do not have it");
            return Err(Failure::new(ErrorCode::Forbidden, message));
        }
        Ok(Caller { address: from, ..caller })
    }

    pub(crate) fn with_operator(&self, caller: Caller) -> Caller {
        let is_operator = access::is_operator(&caller, self.inner.home.tenant);
        Caller { is_operator, ..caller }
    }

    /// 403 where the key is not good for that.
    pub fn require_scope(&self, caller: &Caller, scope: Scope) -> Result<(), Failure> {
        access::require_scope(caller, scope)
    }

    /// Makes a key for the caller's own user.
    pub async fn create_key(
        &self,
        caller: &Caller,
        request: CreateApiKey,
    ) -> Result<ApiKeyWithSecret, Failure> {
        if request.user_id.is_some() {
            let problem = "keys of others are made with POST /api/v1/admin/tenants/{tid}/keys";
            return Err(ApiError::field("user_id", problem).into());
        }
        let user = self.user_of(caller).await?;
        self.mint(caller, &user, request).await
    }

    /// Makes a key of any user of a tenant that the caller administers; of its first owner by default.
    pub async fn create_key_of(
        &self,
        caller: &Caller,
        tenant: TenantId,
        request: CreateApiKey,
    ) -> Result<ApiKeyWithSecret, Failure> {
        access::administers(caller, tenant)?;
        let users = self.inner.store.users(tenant).await?;
        let user = match &request.user_id {
            Some(text) => users.into_iter().find(|user| user.id.to_string() == *text),
            None => users.into_iter().find(|user| user.role == roost_api::Role::Owner),
        };
        let user = user.ok_or_else(|| Failure::new(ErrorCode::NotFound, "user not found"))?;
        self.mint(caller, &user, request).await
    }

    async fn mint(
        &self,
        caller: &Caller,
        user: &UserRecord,
        request: CreateApiKey,
    ) -> Result<ApiKeyWithSecret, Failure> {
        let name = request.name.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let name = name.unwrap_or("API key");
        check_name(name)?;
        if request.purpose.as_deref().is_some_and(|purpose| purpose != "api") {
            return Err(ApiError::field("purpose", "this server has keys for its API only: api").into());
        }
        let allowed_ips = match request.allowed_ips {
            Some(ranges) => checked_ranges(ranges)?,
            None => caller.allowed_ips.clone(),
        };
        let kind = request.key_type.unwrap_or(KeyKind::User);
        let scopes = match (request.scopes, request.preset) {
            (Some(scopes), _) => checked_scopes(scopes)?,
            (None, Some(preset)) => self.preset(user.tenant, &preset).await?.scopes,
            (None, None) => every_scope().into_iter().filter(|scope| caller_grants(caller, scope)).collect(),
        };
        access::may_mint(caller, user, kind, &scopes, &allowed_ips)?;
        let workspace = match request.workspace_id.as_deref() {
            None => None,
            Some(text) => Some(self.workspace_for_key(caller, user, text).await?),
        };
        let confinement = Confinement {
            workspace,
            external_user: external_id("external_user_id", request.external_user_id)?,
        };
        if kind == KeyKind::Admin && !confinement.is_none() {
            return Err(ApiError::field("key_type", "an admin key is not confined").into());
        }
        let expires_at = expiry(&self.inner.store, request.expires_at, request.expires_in_days)?;
        let own = self.inner.store.keys(user.tenant, Some(user.id), KeyForm::Key).await?;
        if own.len() >= MOST_KEYS {
            let message = format!("the user has {MOST_KEYS} keys already; delete one first");
            return Err(Failure::new(ErrorCode::ResourceState, message));
        }
        let text = secret(KeyForm::Key, kind)?;
        let new = NewKey {
            tenant: user.tenant,
            user: user.id,
            name: name.to_owned(),
            prefix: prefix(&text),
            hash: hash(&text),
            kind,
            form: KeyForm::Key,
            scopes,
            confinement,
            allowed_ips,
            // A key that ends leaves none behind that goes on.
            expires_at: earliest(expires_at, caller.expires_at),
            metadata: metadata(request.metadata)?,
        };
        let record =
            self.inner.store.insert_key(&new, &caller.into()).await?.ok_or_else(user_or_workspace_gone)?;
        tracing::info!(key = %record.id, user = %record.user, kind = kind.as_str(), "API key created");
        Ok(ApiKeyWithSecret { details: key_view(&record), key: text })
    }

    /// A workspace to which a key may be confined, by its id.
    async fn workspace_for_key(
        &self,
        caller: &Caller,
        user: &UserRecord,
        text: &str,
    ) -> Result<WorkspaceId, Failure> {
        let missing = || Denied::NotFound.about("workspace");
        let id = text.parse().map_err(|_| missing())?;
        let found = self.inner.store.workspace(user.tenant, id).await?.ok_or_else(missing)?;
        if user.id == caller.user && !access::may_use(caller, &found) {
            return Err(Denied::NotMember.about("workspace"));
        }
        Ok(id)
    }

    async fn user_of(&self, caller: &Caller) -> Result<UserRecord, Failure> {
        if let Some(user) = self.inner.store.user(caller.tenant, caller.user).await? {
            return Ok(user);
        }
        // An operator who acts in another tenant acts there as its owner.
        let users = self.inner.store.users(caller.tenant).await?;
        let owner = users.into_iter().find(|user| user.role == roost_api::Role::Owner);
        owner.filter(|_| caller.is_operator).ok_or_else(user_or_workspace_gone)
    }

    /// The caller's own keys; those of the tenant, for administrators.
    pub async fn keys(
        &self,
        caller: &Caller,
        form: KeyForm,
        query: ListKeys,
    ) -> Result<Vec<ApiKey>, Failure> {
        if !caller.confinement.is_none() {
            return Err(access::confined());
        }
        let user = (!caller.role.is_administrator()).then_some(caller.user);
        let keys = self.inner.store.keys(caller.tenant, user, form).await?;
        let most = query.limit.map_or(usize::MAX, |limit| limit.clamp(1, 200) as usize);
        Ok(keys.iter().take(most).map(key_view).collect())
    }

    pub async fn keys_of(&self, caller: &Caller, tenant: TenantId) -> Result<Vec<ApiKey>, Failure> {
        access::administers(caller, tenant)?;
        let keys = self.inner.store.keys(tenant, None, KeyForm::Key).await?;
        Ok(keys.iter().map(key_view).collect())
    }

    pub async fn key(&self, caller: &Caller, id: &str, form: KeyForm) -> Result<KeyRecord, Failure> {
        let missing = || Denied::NotFound.about("API key");
        let id: ApiKeyId = id.parse().map_err(|_| missing())?;
        let found = self.inner.store.key(caller.tenant, id).await?;
        let found = found.filter(|key| key.form == form).ok_or_else(missing)?;
        access::may_manage_key(caller, &found)?;
        Ok(found)
    }

    pub async fn change_key(
        &self,
        caller: &Caller,
        key: &KeyRecord,
        request: UpdateApiKey,
    ) -> Result<ApiKey, Failure> {
        let name = request.name.as_deref().map(str::trim);
        if let Some(name) = name {
            check_name(name)?;
        }
        let scopes = request.scopes.map(checked_scopes).transpose()?;
        let allowed_ips = request.allowed_ips.map(checked_ranges).transpose()?;
        if scopes.is_some() || allowed_ips.is_some() {
            let scopes = scopes.as_ref().unwrap_or(&key.scopes);
            let ranges = allowed_ips.as_ref().unwrap_or(&key.allowed_ips);
            self.may_hold(caller, key, scopes, ranges).await?;
        }
        if key.id == caller.key && !allowed_ips.as_ref().is_none_or(|ranges| admits(ranges, caller.address)) {
            let problem =
                "does not have the address that this request comes from, which the key would shut out";
            return Err(ApiError::field("allowed_ips", problem).into());
        }
        if request.status == Some(KeyStatus::Disabled) {
            self.leaves_an_operator(key).await?;
        }
        let change = KeyChange {
            name: name.map(str::to_owned),
            scopes,
            status: request.status,
            allowed_ips,
            secret: None,
        };
        let changed = self.inner.store.change_key(key.tenant, key.id, &change, &caller.into()).await?;
        self.inner.callers.changed();
        Ok(key_view(&changed.ok_or_else(|| Denied::NotFound.about("API key"))?))
    }

    /// Gives a key another secret; the one before ends at once.
    pub async fn rotate_key(&self, caller: &Caller, key: &KeyRecord) -> Result<ApiKeyWithSecret, Failure> {
        self.may_hold(caller, key, &key.scopes, &key.allowed_ips).await?;
        let text = secret(key.form, key.kind)?;
        let change = KeyChange { secret: Some((prefix(&text), hash(&text))), ..KeyChange::default() };
        let changed = self.inner.store.change_key(key.tenant, key.id, &change, &caller.into()).await?;
        self.inner.callers.changed();
        let changed = changed.ok_or_else(|| Denied::NotFound.about("API key"))?;
        tracing::info!(key = %key.id, "API key rotated");
        Ok(ApiKeyWithSecret { details: key_view(&changed), key: text })
    }

    /// Whether the caller could have made this key with these scopes and addresses.
    async fn may_hold(
        &self,
        caller: &Caller,
        key: &KeyRecord,
        scopes: &[String],
        allowed_ips: &[AddressRange],
    ) -> Result<(), Failure> {
        let user = self.inner.store.user(key.tenant, key.user).await?.ok_or_else(user_or_workspace_gone)?;
        access::may_mint(caller, &user, key.kind, scopes, allowed_ips)?;
        let outlives = match (key.expires_at, caller.expires_at) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(key), Some(own)) => key > own,
        };
        if outlives && key.id != caller.key {
            let message = "the API key would hold longer than the one this was asked with";
            return Err(Failure::new(ErrorCode::Forbidden, message));
        }
        Ok(())
    }

    pub async fn delete_key(&self, key: &KeyRecord) -> Result<(), Failure> {
        self.leaves_an_operator(key).await?;
        let deleted = self.inner.store.delete_key(key.tenant, key.id).await?;
        self.inner.callers.changed();
        tracing::info!(key = %key.id, "API key deleted");
        if deleted { Ok(()) } else { Err(Denied::NotFound.about("API key")) }
    }

    /// 409 for the last key with which the server can be operated: nobody could make another.
    async fn leaves_an_operator(&self, key: &KeyRecord) -> Result<(), Failure> {
        let home = self.inner.home.tenant;
        if key.tenant != home || key.kind != KeyKind::Admin || key.status == KeyStatus::Disabled {
            return Ok(());
        }
        let keys = self.inner.store.keys(home, None, KeyForm::Key).await?;
        let lasts = |other: &KeyRecord| {
            other.id != key.id
                && other.kind == KeyKind::Admin
                && other.status == KeyStatus::Active
                && other.expires_at.is_none()
        };
        if keys.iter().any(lasts) || key.expires_at.is_some() {
            return Ok(());
        }
        let message = "this is the last admin key of the server that does not expire; make another one first";
        Err(Failure::new(ErrorCode::ResourceState, message))
    }

    pub async fn delete_key_of(
        &self,
        caller: &Caller,
        tenant: TenantId,
        id: &str,
    ) -> Result<ApiKeyId, Failure> {
        access::administers(caller, tenant)?;
        let missing = || Denied::NotFound.about("API key");
        let id: ApiKeyId = id.parse().map_err(|_| missing())?;
        let found = self.inner.store.key(tenant, id).await?.ok_or_else(missing)?;
        self.delete_key(&found).await?;
        Ok(id)
    }

    /// Makes a token for a while, confined to a workspace.
    pub async fn create_token(
        &self,
        caller: &Caller,
        request: CreateScopedToken,
    ) -> Result<ScopedToken, Failure> {
        let user = request.user_id.as_deref().ok_or_else(|| ApiError::field("user_id", "is required"))?;
        let workspace = request.workspace_id.as_deref();
        let workspace = workspace.ok_or_else(|| ApiError::field("workspace_id", "is required"))?;
        let seconds = request.expires_in_seconds.unwrap_or(DEFAULT_TOKEN);
        if !(1..=LONGEST_TOKEN).contains(&seconds) {
            let problem = format!("must be 1 to {LONGEST_TOKEN}, not {seconds}");
            return Err(ApiError::field("expires_in_seconds", problem).into());
        }
        let missing = || Failure::new(ErrorCode::NotFound, "user not found");
        let user: UserId = user.parse().map_err(|_| missing())?;
        let user = self.inner.store.user(caller.tenant, user).await?.ok_or_else(missing)?;
        let scopes = match request.scopes {
            Some(scopes) => checked_scopes(scopes)?,
            None => caller.scopes.clone(),
        };
        let allowed_ips = caller.allowed_ips.clone();
        access::may_mint(caller, &user, KeyKind::User, &scopes, &allowed_ips)?;
        let workspace = self.workspace_for_key(caller, &user, workspace).await?;
        self.inner.store.remove_ended_tokens().await?;
        let text = secret(KeyForm::Token, KeyKind::User)?;
        let until = after(self.inner.store.now(), Duration::from_secs(seconds.into()));
        let new = NewKey {
            tenant: user.tenant,
            user: user.id,
            name: "scoped token".to_owned(),
            prefix: prefix(&text),
            hash: hash(&text),
            kind: KeyKind::User,
            form: KeyForm::Token,
            scopes,
            confinement: Confinement { workspace: Some(workspace), external_user: None },
            allowed_ips,
            expires_at: earliest(Some(until), caller.expires_at),
            metadata: Default::default(),
        };
        let record =
            self.inner.store.insert_key(&new, &caller.into()).await?.ok_or_else(user_or_workspace_gone)?;
        Ok(ScopedToken { id: record.id, token: text, expires_at: record.expires_at, scopes: record.scopes })
    }
}

/// The key as callers see it.
pub fn key_view(record: &KeyRecord) -> ApiKey {
    ApiKey {
        id: record.id,
        tenant_id: record.tenant,
        user_id: record.user,
        name: record.name.clone(),
        key_prefix: record.prefix.clone(),
        prefix: record.prefix.clone(),
        key_type: record.kind,
        key_purpose: "api".to_owned(),
        scopes: record.scopes.clone(),
        allowed_ips: record.allowed_ips.clone(),
        rate_limit_rpm: None,
        status: record.status,
        active: record.status == KeyStatus::Active,
        workspace_id: record.confinement.workspace,
        external_user_id: record.confinement.external_user.clone(),
        metadata: record.metadata.clone(),
        expires_at: record.expires_at,
        last_used_at: record.last_used_at,
        created_at: record.created_at,
    }
}

pub(crate) fn every_scope() -> Vec<String> {
    Scope::ALL.iter().map(|scope| scope.as_str().to_owned()).collect()
}

fn caller_grants(caller: &Caller, scope: &str) -> bool {
    Scope::ALL.into_iter().any(|known| known.as_str() == scope && access::has_scope(caller, known))
}

/// Well-formed scopes, each once. Those of things that this server does not have are kept, and open nothing.
pub(crate) fn checked_scopes(scopes: Vec<String>) -> Result<Vec<String>, ApiError> {
    let is_word = |word: &str| {
        !word.is_empty()
            && word.len() <= 64
            && word.bytes().all(|b| b.is_ascii_lowercase() || b"_-".contains(&b))
    };
    let fits = |scope: &String| match scope.split_once(':') {
        None => scope == "*",
        Some((area, act)) => is_word(area) && (act == "*" || is_word(act)),
    };
    if scopes.len() > MOST_SCOPES {
        return Err(ApiError::field("scopes", format!("more than {MOST_SCOPES}")));
    }
    if let Some(wrong) = scopes.iter().find(|scope| !fits(scope)) {
        let problem = format!("{wrong:?} is not a scope; this server has {}", every_scope().join(", "));
        return Err(ApiError::field("scopes", problem));
    }
    let mut seen = BTreeSet::new();
    Ok(scopes.into_iter().filter(|scope| seen.insert(scope.clone())).collect())
}

fn checked_ranges(ranges: Vec<AddressRange>) -> Result<Vec<AddressRange>, ApiError> {
    if ranges.len() > MOST_RANGES {
        return Err(ApiError::field("allowed_ips", format!("more than {MOST_RANGES}")));
    }
    Ok(ranges)
}

fn expiry(store: &Store, at: Option<Timestamp>, in_days: Option<u32>) -> Result<Option<Timestamp>, ApiError> {
    let now = store.now();
    match (at, in_days) {
        (Some(at), _) if at <= now => Err(ApiError::field("expires_at", "is in the past")),
        (Some(at), _) => Ok(Some(at)),
        (None, Some(days)) if (1..=LONGEST_DAYS).contains(&days) => {
            Ok(Some(after(now, Duration::from_secs(u64::from(days) * 86_400))))
        }
        (None, Some(days)) => {
            Err(ApiError::field("expires_in_days", format!("must be 1 to {LONGEST_DAYS}, not {days}")))
        }
        (None, None) => Ok(None),
    }
}

fn after(now: Timestamp, time: Duration) -> Timestamp {
    let micros = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_add(micros)).unwrap_or(now)
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn user_or_workspace_gone() -> Failure {
    Failure::new(ErrorCode::NotFound, "the user or the workspace does not exist any more")
}

fn secret(form: KeyForm, kind: KeyKind) -> Result<String, Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Failure::internal)?;
    let prefix = match (form, kind) {
        (KeyForm::Key, KeyKind::User) => "msk_u_",
        (KeyForm::Key, KeyKind::Admin) => "msk_a_",
        (KeyForm::Key, KeyKind::Platform) => "msk_p_",
        (KeyForm::Token, _) => "mst_",
    };
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn prefix(text: &str) -> String {
    text.chars().take(12).collect()
}

pub(crate) fn hash(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

/// Lower-case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
