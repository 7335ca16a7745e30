//! Event streams: one reader of the log per server, any number of subscribers.
//!
//! ```text
//!   whoever changes something --hub--> tail --reads new rows once--> broadcast --> subscriber
//!                                                                                  | too slow, or just begun:
//!                                                                                  +-- reads the log from its place
//! ```
//!
//! Events are written by the store in the transaction that makes them true ([`roost_store::EventRecord`]). The tail
//! is woken through the hub and nothing else; it never polls. A subscriber that falls behind the broadcast loses its
//! place there and nobody waits for it: it reads the log like one that begins with `Last-Event-ID`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use roost_api::{
    ApiError, ComputerId, Event, EventFrame, EventGap, EventId, EventStatus, Timestamp, Transition,
    WorkspaceId,
};
use roost_store::{Caller, EventBounds, EventRecord, EventScope, EventsOf, Reach};
use tokio::sync::broadcast;

use crate::access;
use crate::status::status;
use crate::{Control, Failure};

/// How many events a subscriber may be behind before it has to read them from the log.
const BUFFERED: usize = 1024;
/// How many are read at once.
const BATCH: u16 = 500;
const MOST_PATTERNS: usize = 32;
const LONGEST_PATTERN: usize = 100;

/// One frame of a stream. Its data is made once, however many read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where a client continues that has seen it.
    pub id: EventId,
    pub kind: String,
    /// JSON.
    pub data: String,
}

/// An event as it is handed on to subscribers.
#[derive(Debug)]
struct Told {
    scope: EventScope,
    frame: Frame,
}

/// Which events of a tenant a stream carries.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    All,
    Workspace(WorkspaceId),
    ExternalUser(String),
}

/// Patterns of types; none: every type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Types(Vec<String>);

/// Whose events a stream carries.
#[derive(Debug, Clone)]
enum Whose {
    Tenant(Box<Reach>, Scope),
    Computer(ComputerId),
}

#[derive(Debug)]
pub(crate) struct Log {
    live: broadcast::Sender<Arc<Told>>,
}

impl Default for Log {
    fn default() -> Self {
        Self { live: broadcast::Sender::new(BUFFERED) }
    }
}

impl Control {
    /// Records an event that no other change belongs to.
    pub async fn emit(&self, scope: &EventScope, event: &Event) -> Result<(), Failure> {
        self.inner.store.insert_event(scope, event).await?;
        self.inner.hub.wake();
        Ok(())
    }

    /// The events of the caller's tenant that they may see, from now on, or from `after` on.
    pub async fn tenant_events(
        &self,
        caller: &Caller,
        types: Option<&str>,
        scope: Option<&str>,
        after: Option<&str>,
    ) -> Result<impl Stream<Item = Frame> + Send + use<>, Failure> {
        let types = parse_types(types)?;
        let whose = Whose::Tenant(Box::new(access::reach(caller)), parse_scope(scope)?);
        let after = parse_id(after)?;
        let live = self.inner.log.live.subscribe();
        let place = match after {
            Some(after) => after,
            None => self.inner.store.event_bounds().await?.last,
        };
        Ok(Subscriber::new(self, live, whose, types, place, after.is_some()).stream())
    }

    /// What its status is and how it changes, up to the computer's end; or its events from `after` on.
    pub async fn computer_events(
        &self,
        id: ComputerId,
        types: Option<&str>,
        after: Option<&str>,
    ) -> Result<impl Stream<Item = Frame> + Send + use<>, Failure> {
        let types = parse_types(types)?;
        let after = parse_id(after)?;
        let live = self.inner.log.live.subscribe();
        let mut subscriber = match after {
            Some(after) => Subscriber::new(self, live, Whose::Computer(id), types, after, true),
            None => Subscriber::new(self, live, Whose::Computer(id), types, EventId::default(), false),
        };
        if after.is_none() {
            subscriber.greet(id).await?;
        }
        Ok(subscriber.stream())
    }

    /// Reads new events once and hands them to every subscriber, for as long as this control plane lives.
    pub(crate) async fn tail_events(&self) -> Result<(), Failure> {
        let mut changes = self.inner.hub.subscribe_to_all();
        let mut place = self.inner.store.event_bounds().await?.last;
        let control = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let Some(inner) = control.upgrade() else { return };
                place = Control { inner }.tell(place).await;
            }
        });
        Ok(())
    }

    /// Hands on what came after `place`; returns how far that was.
    async fn tell(&self, mut place: EventId) -> EventId {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.inner.store.events_after(place, EventsOf::Everybody, BATCH).await {
                Ok(batch) => {
                    let is_full = batch.is_full;
                    for record in batch.events {
                        place = record.id;
                        // Without subscribers it goes nowhere, and that is fine.
                        drop(self.inner.log.live.send(Arc::new(told(record))));
                    }
                    if !is_full {
                        return place;
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "failed to read new events; trying again"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }
}

/// One stream: what it waits for, and how far it is.
struct Subscriber {
    control: Control,
    live: broadcast::Receiver<Arc<Told>>,
    whose: Whose,
    types: Types,
    /// Everything up to here was sent, or does not belong to this stream.
    place: EventId,
    /// Whether what follows `place` is to be read from the log, because the broadcast may have passed it.
    behind: bool,
    ready: VecDeque<Frame>,
    is_over: bool,
}

impl Subscriber {
    fn new(
        control: &Control,
        live: broadcast::Receiver<Arc<Told>>,
        whose: Whose,
        types: Types,
        place: EventId,
        behind: bool,
    ) -> Self {
        let control = control.clone();
        Self { control, live, whose, types, place, behind, ready: VecDeque::new(), is_over: false }
    }

    /// Begins with the status as it is now.
    async fn greet(&mut self, id: ComputerId) -> Result<(), Failure> {
        let found = self.control.inner.store.computer_and_last_event(id).await?;
        let (computer, last) = found.ok_or_else(Failure::computer_not_found)?;
        self.place = last;
        let now = Transition { status: EventStatus::Is(status(&computer)), previous_status: None };
        let event = Event::StatusChanged(now);
        let data = serde_json::to_value(&event).map_err(Failure::internal)?;
        let record = EventRecord {
            id: last,
            scope: EventScope::of(&computer),
            kind: event.kind().to_owned(),
            data: data.as_object().cloned().unwrap_or_default(),
            created_at: computer.updated_at,
        };
        self.take_in(&told(record));
        Ok(())
    }

    fn stream(self) -> impl Stream<Item = Frame> + Send + use<> {
        futures_util::stream::unfold(self, |mut subscriber| async move {
            let frame = subscriber.next().await?;
            Some((frame, subscriber))
        })
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            if self.is_over {
                return None;
            }
            if self.behind {
                self.catch_up().await?;
                continue;
            }
            match self.live.recv().await {
                Ok(told) if told.frame.id > self.place => {
                    self.place = told.frame.id;
                    self.take_in(&told);
                }
                Ok(_) => {} // read from the log already
                Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Reads the next events from the log. `None`: the database does not answer, and the client will come again.
    async fn catch_up(&mut self) -> Option<()> {
        let of = match &self.whose {
            Whose::Tenant(reach, _) => EventsOf::Tenant(reach.tenant),
            Whose::Computer(computer) => EventsOf::Computer(*computer),
        };
        let batch = match self.control.inner.store.events_after(self.place, of, BATCH).await {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "failed to read events; a stream ends"
                );
                return None;
            }
        };
        let EventBounds { removed, last } = batch.bounds;
        if self.place < removed || self.place > last {
            // Beyond the end: the client has seen another database, or a later state of this one.
            let until = if self.place < removed { removed } else { last };
            self.ready.push_back(gap(self.place, until));
            self.place = until;
            if let Whose::Computer(id) = self.whose
                && self.greet(id).await.is_err()
            {
                self.is_over = true; // it is gone, or the database is: the client finds out which
                return Some(());
            }
            return Some(());
        }
        self.behind = batch.is_full;
        for record in batch.events {
            self.place = record.id;
            self.take_in(&told(record));
        }
        Some(())
    }

    /// Keeps what belongs to this stream.
    fn take_in(&mut self, told: &Told) {
        if self.is_over || !self.whose.includes(&told.scope) {
            return;
        }
        if let Whose::Computer(_) = self.whose {
            // What tenants' streams call so is said in other words here.
            if told.frame.kind.starts_with("computer.") {
                self.is_over = told.frame.kind == Event::COMPUTER_DELETED;
                return;
            }
        }
        if self.types.includes(&told.frame.kind) {
            self.ready.push_back(told.frame.clone());
        }
    }
}

impl Whose {
    fn includes(&self, scope: &EventScope) -> bool {
        match self {
            Whose::Computer(computer) => scope.computer == Some(*computer),
            Whose::Tenant(reach, _) if !is_within(reach, scope) => false,
            Whose::Tenant(_, Scope::All) => true,
            Whose::Tenant(_, Scope::Workspace(workspace)) => scope.workspace == Some(*workspace),
            Whose::Tenant(_, Scope::ExternalUser(user)) => scope.external_user.as_deref() == Some(user),
        }
    }
}

fn is_within(reach: &Reach, scope: &EventScope) -> bool {
    let EventScope { tenant, workspace, external_user, owner, .. } = scope;
    reach.includes(*tenant, *workspace, *owner, external_user.as_deref())
}

impl Types {
    fn includes(&self, kind: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| matches(pattern, kind))
    }
}

/// Whether `text` fits a pattern in which `*` stands for any text.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    // The first place that fits leaves most for what follows.
    while let Some((part, after)) = rest.split_once('*') {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
        rest = after;
    }
    text.ends_with(rest)
}

/// What is sent of an event to whom it is told.
pub(crate) fn payload(record: &EventRecord) -> String {
    told(record.clone()).frame.data
}

fn told(record: EventRecord) -> Told {
    let EventRecord { id, scope, kind, data, created_at } = record;
    let frame = EventFrame {
        kind: kind.clone(),
        id: id.to_string(),
        tenant_id: scope.tenant,
        workspace_id: scope.workspace,
        computer_id: scope.computer,
        external_user_id: scope.external_user.clone(),
        ts: created_at,
        timestamp: created_at,
        data,
    };
    Told { frame: Frame { id, kind, data: text(&frame) }, scope }
}

fn gap(after: EventId, until: EventId) -> Frame {
    let kind = "gap".to_owned();
    let gap = EventGap {
        kind: kind.clone(),
        after: after.to_string(),
        until: until.to_string(),
        timestamp: Timestamp::now(),
    };
    Frame { id: until, kind, data: text(&gap) }
}

fn text(value: &impl serde::Serialize) -> String {
    // Plain text, numbers and maps with text keys: there is nothing that could fail.
    serde_json::to_string(value).expect("events are plain values")
}

fn parse_id(text: Option<&str>) -> Result<Option<EventId>, ApiError> {
    let text = text.map(str::trim).filter(|text| !text.is_empty());
    text.map(|text| text.parse())
        .transpose()
        .map_err(|error: roost_api::NotAnEventId| ApiError::field("last_event_id", error.to_string()))
}

fn parse_types(text: Option<&str>) -> Result<Types, ApiError> {
    let patterns = text.unwrap_or_default().split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
    let patterns: Vec<String> = patterns.map(str::to_owned).collect();
    if patterns.len() > MOST_PATTERNS || patterns.iter().any(|pattern| pattern.len() > LONGEST_PATTERN) {
        let problem =
            format!("more than {MOST_PATTERNS} patterns, or one longer than {LONGEST_PATTERN} bytes");
        return Err(ApiError::field("types", problem));
    }
    Ok(Types(patterns))
}

fn parse_scope(text: Option<&str>) -> Result<Scope, ApiError> {
    let problem = "not all, workspace:{id} or external_user:{id}";
    match text.unwrap_or("all").split_once(':') {
        None if matches!(text, None | Some("all" | "")) => Ok(Scope::All),
        Some(("workspace", id)) => {
            let id = id.parse().map_err(|_| ApiError::field("scope", "the workspace's id is not a UUID"))?;
            Ok(Scope::Workspace(id))
        }
        Some(("external_user", id)) if !id.is_empty() => Ok(Scope::ExternalUser(id.to_owned())),
        None | Some(_) => Err(ApiError::field("scope", problem)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("computer.created", "computer.created", true),
            ("computer.created", "computer.created.more", false),
            ("computer.*", "computer.created", true),
            ("computer.*", "computers", false),
            ("*", "anything", true),
            ("*ed", "stopped", true),
            ("*ed", "editor", false),
            ("c*.*d", "computer.created", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn scopes() {
        let id = WorkspaceId::new();
        assert_eq!(parse_scope(None).unwrap(), Scope::All);
        assert_eq!(parse_scope(Some("all")).unwrap(), Scope::All);
        assert_eq!(parse_scope(Some(&format!("workspace:{id}"))).unwrap(), Scope::Workspace(id));
        let user = Scope::ExternalUser("a:b".to_owned());
        assert_eq!(parse_scope(Some("external_user:a:b")).unwrap(), user);
        for text in ["workspace", "workspace:x", "external_user:", "some", "all:1"] {
            assert!(parse_scope(Some(text)).is_err(), "{text}");
        }
    }
}
