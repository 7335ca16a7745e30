//! What happens to computers and tenants, as event streams tell it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::{ComputerId, RegionName, Size, SnapshotId, Status, TenantId, Timestamp, WorkspaceId};

/// The place of an event in the order of all; `evt_42` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EventId(pub i64);

const PREFIX: &str = "evt_";

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}", self.0)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not the id of an event, such as evt_42")]
pub struct NotAnEventId;

impl std::str::FromStr for EventId {
    type Err = NotAnEventId;

    fn from_str(text: &str) -> Result<Self, NotAnEventId> {
        let digits = text.strip_prefix(PREFIX).ok_or(NotAnEventId)?;
        let id = digits.parse().ok().filter(|id| *id >= 0).ok_or(NotAnEventId)?;
        Ok(Self(id))
    }
}

/// Something that happened. The fields are what its `data` says beyond what every event says ([`EventFrame`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    ComputerCreated {
        name: String,
        size: Size,
    },
    ComputerRunning(Transition),
    ComputerStopped(Transition),
    /// The last event of a computer.
    ComputerDeleted(Transition),
    /// Every change of a computer's status; the others that carry a [`Transition`] repeat one that matters.
    StatusChanged(Transition),
    Started(Transition),
    Stopped(Transition),
    Error {
        #[serde(flatten)]
        transition: Transition,
        /// Why, where that is known.
        message: Option<String>,
    },
    /// It was idle for its limit and is being stopped.
    AutoStopped {
        /// The limit.
        idle_seconds: u32,
    },
    /// It has run for as long as it may and is being stopped.
    TimedOut {
        timeout_sec: u32,
    },
    /// The script that was given with it has ended; 0 is well.
    SetupEnded {
        exit_code: i32,
    },
    /// That script did not come to its end.
    SetupFailed {
        /// Why.
        message: String,
    },
    /// Little is left of the tenant's credits.
    CreditsLow {
        balance_credits: i64,
    },
    /// Nothing is left; the tenant's computers are being stopped.
    CreditsExhausted {
        balance_credits: i64,
    },
    /// Its end user has spent what their quota allows in a month; it is being stopped.
    QuotaExhausted {
        max_credit_cents: i64,
    },
    /// It is on its way to another region.
    MoveProgress {
        region: RegionName,
        /// Percent.
        progress: u8,
    },
    /// Its files are in another region now.
    Moved {
        region: RegionName,
        previous_region: RegionName,
    },
    /// An app is being installed: so far, in percent.
    AppInstalling {
        app: String,
        progress: u8,
    },
    AppInstalled {
        app: String,
    },
    /// An app could not be installed.
    AppFailed {
        app: String,
        /// Why.
        message: String,
    },
    /// A snapshot is ready.
    CheckpointCreated {
        snapshot_id: SnapshotId,
    },
}

/// How the status of a computer changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Transition {
    pub status: EventStatus,
    /// None for a computer that was not there before.
    pub previous_status: Option<Status>,
}

/// A status, or the end of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStatus {
    Is(Status),
    Destroyed,
}

impl EventStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            EventStatus::Is(status) => status.as_str(),
            EventStatus::Destroyed => "destroyed",
        }
    }
}

impl Serialize for EventStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Event {
    pub const COMPUTER_DELETED: &'static str = "computer.deleted";

    /// Every type there is, for whoever asks what to listen to.
    pub const KINDS: &'static [&'static str] = &[
        "computer.created",
        "computer.running",
        "computer.stopped",
        Event::COMPUTER_DELETED,
        "status_changed",
        "started",
        "stopped",
        "error",
        "auto_stopped",
        "timed_out",
        "setup.ended",
        "setup.failed",
        "credits.low",
        "credits.exhausted",
        "quota.exhausted",
        "move_progress",
        "computer.moved",
        "app.installing",
        "app.installed",
        "app.failed",
        "checkpoint_created",
    ];

    /// The type on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::ComputerCreated { .. } => "computer.created",
            Event::ComputerRunning(_) => "computer.running",
            Event::ComputerStopped(_) => "computer.stopped",
            Event::ComputerDeleted(_) => Event::COMPUTER_DELETED,
            Event::StatusChanged(_) => "status_changed",
            Event::Started(_) => "started",
            Event::Stopped(_) => "stopped",
            Event::Error { .. } => "error",
            Event::AutoStopped { .. } => "auto_stopped",
            Event::TimedOut { .. } => "timed_out",
            Event::SetupEnded { .. } => "setup.ended",
            Event::SetupFailed { .. } => "setup.failed",
            Event::CreditsLow { .. } => "credits.low",
            Event::CreditsExhausted { .. } => "credits.exhausted",
            Event::QuotaExhausted { .. } => "quota.exhausted",
            Event::MoveProgress { .. } => "move_progress",
            Event::Moved { .. } => "computer.moved",
            Event::AppInstalling { .. } => "app.installing",
            Event::AppInstalled { .. } => "app.installed",
            Event::AppFailed { .. } => "app.failed",
            Event::CheckpointCreated { .. } => "checkpoint_created",
        }
    }
}

/// The `data` of every frame of an event stream. What else there is depends on `type`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EventFrame {
    #[serde(rename = "type")]
    pub kind: String,
    /// The same as the frame's `id`.
    pub id: String,
    pub tenant_id: TenantId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<WorkspaceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computer_id: Option<ComputerId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_user_id: Option<String>,
    pub ts: Timestamp,
    /// The same as `ts`.
    pub timestamp: Timestamp,
    #[serde(flatten)]
    pub data: Map<String, Value>,
}

/// `data` of a frame of type `gap`: events after `after` and up to and including `until` are not kept any more. The
/// stream goes on behind them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EventGap {
    /// Always `gap`.
    #[serde(rename = "type")]
    pub kind: String,
    pub after: String,
    pub until: String,
    pub timestamp: Timestamp,
}

/// What to stream.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventStreamQuery {
    /// Types to send, separated by commas; `*` stands for any text: `computer.*`. Without it: all.
    pub types: Option<String>,
    /// `all`, `workspace:{id}` or `external_user:{id}`.
    pub scope: Option<String>,
    /// Continue after this event. The header `Last-Event-ID` says the same and goes first.
    pub last_event_id: Option<String>,
    /// From `POST /sse/ticket`, instead of a header.
    pub ticket: Option<String>,
}

/// What to stream of one computer.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ComputerStreamQuery {
    /// Types to send, separated by commas; `*` stands for any text. Without it: all.
    pub types: Option<String>,
    /// Continue after this event. The header `Last-Event-ID` says the same and goes first.
    pub last_event_id: Option<String>,
    /// From `POST /sse/ticket`, instead of a header.
    pub ticket: Option<String>,
}

/// What to tell over a WebSocket of what happens inside a computer.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GuestEventsQuery {
    /// Only with an upgrade to a WebSocket, and required there: one or more of `window`, `clipboard`, `file`, `process` and
    /// `idle`, separated by commas.
    pub subscribe: Option<String>,
    /// Only with an upgrade: directories whose files are told of, with all below them, separated by commas; `/home/user`
    /// without it. What begins with a dot below them is left out.
    pub paths: Option<String>,
    /// Only with an upgrade: seconds without pointer and keyboard after which nobody is there; 30 without it.
    pub idle_threshold_sec: Option<u32>,
}

/// Something that happened inside a computer, as a text frame.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GuestEvent {
    /// `window.opened`, `window.closed`, `window.focus_changed`, `clipboard.changed`, `file.created`, `file.modified`,
    /// `file.deleted`, `process.started`, `process.stopped`, `idle.inactive`, `idle.active`, or `producer.unavailable`.
    #[serde(rename = "type")]
    pub kind: String,
    pub timestamp: Timestamp,
    pub payload: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for id in [0, 1, 42, i64::MAX] {
            assert_eq!(EventId(id).to_string().parse::<EventId>().unwrap(), EventId(id));
        }
        for text in ["", "42", "evt_", "evt_-1", "evt_x", "evt_9223372036854775808"] {
            assert!(text.parse::<EventId>().is_err(), "{text:?}");
        }
    }

    /// A key that stood twice in a frame would be an error to some clients.
    #[test]
    fn no_event_says_what_the_frame_says() {
        let transition =
            Transition { status: EventStatus::Destroyed, previous_status: Some(Status::Destroying) };
        let events = [
            Event::ComputerCreated { name: "box".to_owned(), size: Size::Small },
            Event::StatusChanged(transition),
            Event::Error { transition, message: None },
            Event::AutoStopped { idle_seconds: 60 },
            Event::TimedOut { timeout_sec: 60 },
            Event::SetupEnded { exit_code: 0 },
            Event::SetupFailed { message: "why".to_owned() },
            Event::CreditsLow { balance_credits: 1 },
            Event::CreditsExhausted { balance_credits: 0 },
            Event::QuotaExhausted { max_credit_cents: 0 },
            Event::MoveProgress { region: RegionName::local(), progress: 10 },
            Event::Moved { region: RegionName::local(), previous_region: RegionName::local() },
            Event::AppInstalling { app: "geany".to_owned(), progress: 1 },
            Event::AppInstalled { app: "geany".to_owned() },
            Event::AppFailed { app: "geany".to_owned(), message: "why".to_owned() },
            Event::CheckpointCreated { snapshot_id: SnapshotId::new() },
        ];
        let now = Timestamp::now();
        let frame = EventFrame {
            kind: String::new(),
            id: String::new(),
            tenant_id: TenantId::new(),
            workspace_id: Some(WorkspaceId::new()),
            computer_id: Some(ComputerId::new()),
            external_user_id: Some(String::new()),
            ts: now,
            timestamp: now,
            data: Map::new(),
        };
        let frame = serde_json::to_value(frame).unwrap();
        for event in events {
            assert!(Event::KINDS.contains(&event.kind()), "{}", event.kind());
            let data = serde_json::to_value(&event).unwrap();
            for key in data.as_object().unwrap().keys() {
                assert!(frame.get(key).is_none(), "{} {key}", event.kind());
            }
        }
    }
}
