//! What happens inside a computer, as its agent tells it: windows, clipboard, files, processes, idleness.
//!
//! Each producer is a call of its own to the agent. One that cannot be had, or that ends, is told of, and the others go on.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, Stream, StreamExt};
use roost_api::{ApiError, ComputerId, ErrorCode, GuestEvent, GuestEventsQuery, Timestamp};
use roost_guest_proto::v1::desktop_event::Event as OnDesktop;
use roost_guest_proto::v1::events_client::EventsClient;
use roost_guest_proto::v1::{
    DesktopEvent, FileChange, FileEvent, ProcessEvent, WatchDesktopRequest, WatchProcessesRequest,
    WindowChange,
};
use serde_json::{Value, json};
use tonic::Streaming;

use crate::{Control, Failure};

const DEFAULT_IDLE: Duration = Duration::from_secs(30);
const LONGEST_IDLE: Duration = Duration::from_secs(24 * 60 * 60);
const MOST_PATHS: usize = 16;
const HOME: &str = "/home/user";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Producer {
    Window,
    Clipboard,
    File,
    Process,
    Idle,
}

impl Producer {
    const ALL: [Self; 5] = [Self::Window, Self::Clipboard, Self::File, Self::Process, Self::Idle];

    fn as_str(self) -> &'static str {
        match self {
            Producer::Window => "window",
            Producer::Clipboard => "clipboard",
            Producer::File => "file",
            Producer::Process => "process",
            Producer::Idle => "idle",
        }
    }
}

/// What somebody wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSubscription {
    producers: Vec<Producer>,
    paths: Vec<String>,
    idle: Duration,
}

impl GuestSubscription {
    pub fn new(query: &GuestEventsQuery) -> Result<Self, ApiError> {
        let words = |text: &Option<String>| -> Vec<String> {
            let words = text.iter().flat_map(|text| text.split(',')).map(str::trim);
            words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let known = Producer::ALL.map(Producer::as_str).join(", ");
        let mut producers = Vec::new();
        for word in words(&query.subscribe) {
            let found = Producer::ALL.into_iter().find(|producer| producer.as_str() == word);
            let found = found.ok_or_else(|| {
                ApiError::new(
                    ErrorCode::MissingParam,
                    format!("subscribe: nothing in a computer tells of {word:?}; there are {known}"),
                )
            })?;
            if !producers.contains(&found) {
                producers.push(found);
            }
        }
        if producers.is_empty() {
            let message = format!("subscribe is required: one or more of {known}, with commas between them");
            return Err(ApiError::new(ErrorCode::MissingParam, message));
        }
        let mut paths = words(&query.paths);
        if paths.len() > MOST_PATHS {
            return Err(ApiError::field("paths", format!("more than {MOST_PATHS} paths")));
        }
        if paths.is_empty() {
            paths.push(HOME.to_owned());
        }
        let idle =
            query.idle_threshold_sec.map_or(DEFAULT_IDLE, |seconds| Duration::from_secs(seconds.into()));
        if idle.is_zero() || idle > LONGEST_IDLE {
            let problem = format!("must be 1 to {} seconds", LONGEST_IDLE.as_secs());
            return Err(ApiError::field("idle_threshold_sec", problem));
        }
        Ok(Self { producers, paths, idle })
    }

    fn has(&self, producer: Producer) -> bool {
        self.producers.contains(&producer)
    }
}

type Source = BoxStream<'static, GuestEvent>;

impl Control {
    /// From now on nothing of it is missed. Ends when the computer does, or when nothing is left that could tell.
    pub async fn guest_events(
        &self,
        id: ComputerId,
        wanted: &GuestSubscription,
    ) -> Result<impl Stream<Item = GuestEvent> + Send + use<>, Failure> {
        let mut begin: Vec<BoxFuture<'_, Source>> = Vec::new();
        let guest = self.guest(id).await?;
        let on_desktop = [Producer::Window, Producer::Clipboard, Producer::Idle];
        let on_desktop: Vec<_> = on_desktop.into_iter().filter(|producer| wanted.has(*producer)).collect();
        if !on_desktop.is_empty() {
            let request = WatchDesktopRequest {
                windows: wanted.has(Producer::Window),
                clipboard: wanted.has(Producer::Clipboard),
                idle_ms: match wanted.has(Producer::Idle) {
                    true => u32::try_from(wanted.idle.as_millis()).unwrap_or(u32::MAX),
                    false => 0,
                },
            };
            let mut client = EventsClient::new(guest.clone());
            begin.push(
                async move {
                    let called = client.watch_desktop(request).await.map(tonic::Response::into_inner);
                    source(on_desktop, begun(called).await, |event| on_the_desktop(&event))
                }
                .boxed(),
            );
        }
        if wanted.has(Producer::Process) {
            let mut client = EventsClient::new(guest);
            begin.push(
                async move {
                    let called = client.watch_processes(WatchProcessesRequest {}).await;
                    let called = begun(called.map(tonic::Response::into_inner)).await;
                    source(vec![Producer::Process], called, |event| Some(of_a_process(&event)))
                }
                .boxed(),
            );
        }
        for path in wanted.paths.iter().filter(|_| wanted.has(Producer::File)) {
            begin.push(
                async move {
                    let called =
                        self.watch_files(id, path, true).await.map_err(|failure| failure.public.message);
                    let path = path.clone();
                    source(vec![Producer::File], called, move |event| of_a_file(&path, &event))
                }
                .boxed(),
            );
        }
        Ok(stream::select_all(join_all(begin).await))
    }
}

/// Whether the agent has begun to watch, which its first event says.
async fn begun<T>(called: Result<Streaming<T>, tonic::Status>) -> Result<Streaming<T>, String> {
    let mut events = called.map_err(|status| status.message().to_owned())?;
    match events.message().await {
        Ok(Some(_)) => Ok(events),
        Ok(None) => Err(ENDED.to_owned()),
        Err(status) => Err(status.message().to_owned()),
    }
}

const ENDED: &str = "the agent in the computer does not tell any more";

/// What the agent tells, as events, and at its end that it has ended.
fn source<T: Send + 'static>(
    producers: Vec<Producer>,
    called: Result<Streaming<T>, String>,
    event: impl Fn(T) -> Option<GuestEvent> + Send + 'static,
) -> Source {
    let lost = |producers: Vec<Producer>, reason: String| {
        stream::iter(producers.into_iter().map(move |producer| unavailable(producer, &reason)))
    };
    match called {
        Err(reason) => lost(producers, reason).boxed(),
        Ok(events) => {
            let told = stream::unfold(Some((events, producers)), move |state| async move {
                let (mut events, producers) = state?;
                Some(match events.message().await {
                    Ok(Some(event)) => (Ok(event), Some((events, producers))),
                    Ok(None) => (Err((producers, ENDED.to_owned())), None),
                    Err(status) => (Err((producers, status.message().to_owned())), None),
                })
            });
            told.flat_map(move |told| match told {
                Ok(told) => stream::iter(event(told)).left_stream(),
                Err((producers, reason)) => lost(producers, reason).right_stream(),
            })
            .boxed()
        }
    }
}

fn told(kind: &str, payload: Value) -> GuestEvent {
    GuestEvent { kind: kind.to_owned(), timestamp: Timestamp::now(), payload }
}

fn unavailable(producer: Producer, reason: &str) -> GuestEvent {
    told("producer.unavailable", json!({ "producer": producer.as_str(), "reason": reason }))
}

fn on_the_desktop(event: &DesktopEvent) -> Option<GuestEvent> {
    Some(match event.event.as_ref()? {
        OnDesktop::Window(window) => {
            let kind = match window.change() {
                WindowChange::Opened => "window.opened",
                WindowChange::Closed => "window.closed",
                WindowChange::Focused => "window.focus_changed",
                WindowChange::Unspecified => return None,
            };
            let pid = if window.pid == 0 { String::new() } else { window.pid.to_string() };
            told(kind, json!({ "window_id": format!("{:#x}", window.id), "pid": pid, "title": window.title }))
        }
        OnDesktop::ClipboardBytes(length) => told("clipboard.changed", json!({ "size_bytes": length })),
        OnDesktop::Idle(idle) => {
            let kind = if idle.idle { "idle.inactive" } else { "idle.active" };
            told(kind, json!({ "idle_ms": idle.ms }))
        }
    })
}

fn of_a_process(event: &ProcessEvent) -> GuestEvent {
    let ProcessEvent { pid, running, command, parent } = event;
    if *running {
        let parent = if *parent == 0 { String::new() } else { parent.to_string() };
        told("process.started", json!({ "pid": pid, "cmd": command, "ppid": parent }))
    } else {
        told("process.stopped", json!({ "pid": pid, "cmd": command }))
    }
}

/// Programs write many files that they hide below a home; nobody hears of those who has not named a hidden directory.
fn of_a_file(watched: &str, event: &FileEvent) -> Option<GuestEvent> {
    let below = event.path.strip_prefix(watched.trim_end_matches('/')).unwrap_or(&event.path);
    if below.split('/').any(|name| name.starts_with('.')) {
        return None;
    }
    let kind = match event.change() {
        FileChange::Created | FileChange::MovedTo => "file.created",
        FileChange::Modified | FileChange::Attributes => "file.modified",
        FileChange::Deleted | FileChange::MovedFrom => "file.deleted",
        FileChange::Overflow => {
            let reason = format!("so much happens below {watched} that changes were lost; look again");
            return Some(unavailable(Producer::File, &reason));
        }
        FileChange::Unspecified => return None,
    };
    Some(told(kind, json!({ "path": event.path })))
}

#[cfg(test)]
mod tests {
    use roost_guest_proto::v1::{UserIdle, WindowEvent};

    use super::*;

    fn query(subscribe: &str) -> GuestEventsQuery {
        GuestEventsQuery { subscribe: Some(subscribe.to_owned()), ..GuestEventsQuery::default() }
    }

    #[test]
    fn a_subscription_names_what_there_is() {
        let subscription = GuestSubscription::new(&query("window, file,window")).unwrap();
        assert_eq!(subscription.producers, [Producer::Window, Producer::File]);
        assert_eq!((subscription.paths, subscription.idle), (vec!["/home/user".to_owned()], DEFAULT_IDLE));
        let paths = GuestEventsQuery {
            paths: Some("/tmp,/srv ".to_owned()),
            idle_threshold_sec: Some(5),
            ..query("idle")
        };
        let subscription = GuestSubscription::new(&paths).unwrap();
        assert_eq!((subscription.paths.join(" "), subscription.idle.as_secs()), ("/tmp /srv".to_owned(), 5));
        for wrong in ["", ",", "windows", "file,mouse"] {
            let error = GuestSubscription::new(&query(wrong)).unwrap_err();
            assert_eq!((error.code.status(), error.message.contains("clipboard")), (400, true), "{wrong}");
        }
        for seconds in [0, 100_000] {
            let wrong = GuestEventsQuery { idle_threshold_sec: Some(seconds), ..query("idle") };
            assert!(GuestSubscription::new(&wrong).unwrap_err().fields.contains_key("idle_threshold_sec"));
        }
        let many = GuestEventsQuery { paths: Some("/a,".repeat(17)), ..query("file") };
        assert!(GuestSubscription::new(&many).unwrap_err().fields.contains_key("paths"));
    }

    fn shown(event: Option<GuestEvent>) -> String {
        event.map_or_else(String::new, |event| format!("{} {}", event.kind, event.payload))
    }

    #[test]
    fn events_have_the_types_that_clients_expect() {
        let window =
            WindowEvent { change: WindowChange::Opened.into(), id: 0x2a, pid: 7, title: "Text".to_owned() };
        let desktop = |event| shown(on_the_desktop(&DesktopEvent { event: Some(event) }));
        let expected = r#"window.opened {"pid":"7","title":"Text","window_id":"0x2a"}"#;
        assert_eq!(desktop(OnDesktop::Window(window)), expected);
        assert_eq!(desktop(OnDesktop::ClipboardBytes(3)), r#"clipboard.changed {"size_bytes":3}"#);
        let idle = desktop(OnDesktop::Idle(UserIdle { idle: false, ms: 9 }));
        assert_eq!(idle, r#"idle.active {"idle_ms":9}"#);
        let process = ProcessEvent { pid: 7, running: true, command: "sleep 1".to_owned(), parent: 1 };
        let expected = r#"process.started {"cmd":"sleep 1","pid":7,"ppid":"1"}"#;
        assert_eq!(shown(Some(of_a_process(&process))), expected);
    }

    #[test]
    fn what_is_hidden_is_not_told_of_unless_it_was_asked_for() {
        let event = |path: &str| FileEvent {
            change: FileChange::Created.into(),
            path: path.to_owned(),
            is_directory: false,
        };
        let told = |watched, path| shown(of_a_file(watched, &event(path)));
        assert_eq!(told("/home/user", "/home/user/a.txt"), r#"file.created {"path":"/home/user/a.txt"}"#);
        assert_eq!(told("/home/user/", "/home/user/.cache/a"), "");
        assert_eq!(
            told("/home/user/.config", "/home/user/.config/a"),
            r#"file.created {"path":"/home/user/.config/a"}"#
        );
    }
}
