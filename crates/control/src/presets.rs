//! What happened to API keys, and scopes under a name to make keys with.

use roost_api::{
    ApiError, ErrorCode, KeyEvent, KeyEventKind, KeyEventsQuery, KeyPreset, MakeKeyPreset, TenantId,
};
use roost_store::{Caller, KeyEventRecord, KeyRecord, PresetRecord};

use crate::access::{self, Denied, Scope};
use crate::keys::{checked_scopes, every_scope};
use crate::places::{description, required_name, slug};
use crate::{Control, Failure};

const MOST_PRESETS: usize = 200;

impl Control {
    /// Of a key that the caller manages, newest first.
    pub async fn key_events(&self, key: &KeyRecord, query: KeyEventsQuery) -> Result<Vec<KeyEvent>, Failure> {
        let most = query.limit.unwrap_or(50).clamp(1, 200);
        let parse = |text: &str| {
            text.parse::<KeyEventKind>().map_err(|_| {
                let known: Vec<&str> = KeyEventKind::ALL.iter().map(|kind| kind.as_str()).collect();
                ApiError::field("type", format!("{text:?} is none of {}", known.join(", ")))
            })
        };
        let kind = query.kind.as_deref().filter(|text| !text.is_empty()).map(parse).transpose()?;
        let found = self.inner.store.key_events(key.id, kind, most).await?;
        Ok(found.into_iter().map(event_view).collect())
    }

    /// Those of the server, then the tenant's own by name.
    pub async fn presets(&self, caller: &Caller) -> Result<Vec<KeyPreset>, Failure> {
        if !caller.confinement.is_none() {
            return Err(access::confined());
        }
        let own = self.inner.store.presets(caller.tenant).await?;
        Ok(builtin().into_iter().chain(own.into_iter().map(preset_view)).collect())
    }

    pub async fn create_preset(&self, caller: &Caller, request: MakeKeyPreset) -> Result<KeyPreset, Failure> {
        access::may_make_presets(caller)?;
        let name = required_name(request.name.as_deref())?;
        let name = slug("name", Some(&name))?.unwrap_or(name);
        let scopes = request.scopes.ok_or_else(|| ApiError::field("scopes", "is required"))?;
        let new = PresetRecord {
            name,
            scopes: checked_scopes(scopes)?,
            description: description(request.description)?,
            created_at: self.inner.store.now(),
        };
        let is_taken = |name: &str| builtin().iter().any(|preset| preset.name == name);
        if is_taken(&new.name) || !self.inner.store.create_preset(caller.tenant, &new, MOST_PRESETS).await? {
            let all = self.inner.store.presets(caller.tenant).await?;
            if !is_taken(&new.name) && all.iter().all(|preset| preset.name != new.name) {
                let message = format!("there are {MOST_PRESETS} presets already; delete one first");
                return Err(Failure::new(ErrorCode::ResourceState, message));
            }
            let message = format!("there is a preset {:?} already; delete it first", new.name);
            return Err(Failure::new(ErrorCode::NameTaken, message));
        }
        Ok(preset_view(new))
    }

    /// Keys that were made with it stay as they are.
    pub async fn delete_preset(&self, caller: &Caller, name: &str) -> Result<(), Failure> {
        access::may_make_presets(caller)?;
        if builtin().iter().any(|preset| preset.name == name) {
            let message = format!("the preset {name:?} comes with the server, and stays");
            return Err(Failure::new(ErrorCode::ResourceState, message));
        }
        let deleted = self.inner.store.delete_preset(caller.tenant, name).await?;
        if deleted { Ok(()) } else { Err(Denied::NotFound.about("preset")) }
    }

    /// The one that a new key names.
    pub(crate) async fn preset(&self, tenant: TenantId, name: &str) -> Result<KeyPreset, Failure> {
        let own = self.inner.store.presets(tenant).await?;
        let mut all = builtin().into_iter().chain(own.into_iter().map(preset_view));
        let found = all.find(|preset| preset.name == name);
        found.ok_or_else(|| ApiError::field("preset", format!("there is no preset {name:?}")).into())
    }
}

fn builtin() -> [KeyPreset; 3] {
    let read = [Scope::ComputersRead, Scope::UsageRead].map(|scope| scope.as_str().to_owned());
    let operate = [Scope::ComputersRead, Scope::ComputersWrite].map(|scope| scope.as_str().to_owned());
    [
        ("read-only", read.to_vec(), "Looks at everything, and changes nothing"),
        ("computers", operate.to_vec(), "Makes and uses computers"),
        ("full", every_scope(), "Everything"),
    ]
    .map(|(name, scopes, description)| KeyPreset {
        name: name.to_owned(),
        scopes,
        description: Some(description.to_owned()),
        builtin: true,
        created_at: None,
    })
}

fn preset_view(record: PresetRecord) -> KeyPreset {
    let PresetRecord { name, scopes, description, created_at } = record;
    KeyPreset { name, scopes, description, builtin: false, created_at: Some(created_at) }
}

fn event_view(record: KeyEventRecord) -> KeyEvent {
    KeyEvent {
        id: record.id,
        api_key_id: record.key,
        kind: record.kind,
        user_id: record.user,
        actor_key_id: record.actor_key,
        ip_address: record.address,
        details: record.details,
        created_at: record.created_at,
    }
}
