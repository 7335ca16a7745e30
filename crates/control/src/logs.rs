//! What a computer has said: lines of its console, which the host keeps, and of its journal, which the guest keeps.
//!
//! Following goes on over stops and starts, for as long as the computer is there: each source is followed from the last
//! line that was told, by its time. Reading logs is no use of a computer.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use roost_api::{ApiError, ComputerId, ErrorCode, LogEntry, LogStream, Logs, LogsQuery, Status, Timestamp};
use roost_guest_proto::v1::logs_client::LogsClient;
use roost_guest_proto::v1::{LogLine, LogsReply, LogsRequest};
use roost_launch::ConsoleLine;
use roost_machine_proto::readable;
use roost_store::{ComputerRecord, Observed};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::status::status;
use crate::{Control, Failure};

const DEFAULT_LINES: u32 = 100;
const MOST_LINES: u32 = 1000;
/// A guest that has not told its logs by then is left out.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before a guest that does not answer is asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// Lines on their way to one who reads slowly. Its source waits.
const QUEUED: usize = 64;

/// What to read, checked.
#[derive(Debug, Clone)]
struct Wanted {
    lines: usize,
    since: Option<Timestamp>,
    console: bool,
    services: bool,
    /// Empty: all.
    service: String,
}

impl Wanted {
    fn of(query: &LogsQuery) -> Result<Self, ApiError> {
        let lines = query.lines.unwrap_or(DEFAULT_LINES).clamp(1, MOST_LINES);
        let since = query.since.as_deref().filter(|text| !text.is_empty()).map(|text| {
            text.parse().map_err(|_| ApiError::field("since", "not a time such as 2026-01-31T12:00:00Z"))
        });
        let service = query.service.clone().unwrap_or_default();
        let (console, services) = match query.source.as_deref() {
            None | Some("" | "all") => (service.is_empty(), true),
            Some("services") => (false, true),
            Some("console") if service.is_empty() => (true, false),
            Some("console") => return Err(ApiError::field("service", "the console is no service's")),
            Some(_) => return Err(ApiError::field("source", "not console, services or all")),
        };
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        Ok(Self { lines, since: since.transpose()?, console, services, service })
    }
}

impl Control {
    /// The newest lines, of all sources together.
    pub async fn logs(&self, record: &ComputerRecord, query: &LogsQuery) -> Result<Logs, Failure> {
        let wanted = Wanted::of(query)?;
        let entries = self.read_logs(record, &wanted).await?;
        let line = |entry: &LogEntry| match &entry.service {
            Some(service) => format!("{service}: {}", entry.line),
            None => entry.line.clone(),
        };
        Ok(Logs { computer_id: record.id, lines: entries.iter().map(line).collect(), entries })
    }

    async fn read_logs(&self, record: &ComputerRecord, wanted: &Wanted) -> Result<Vec<LogEntry>, Failure> {
        let mut entries = Vec::new();
        if wanted.console {
            entries.extend(self.console(record, wanted.lines).await?);
        }
        if wanted.services {
            match self.journal(record, wanted).await {
                Ok(lines) => entries.extend(lines),
                // The console is there whatever the guest does.
                Err(failure) if wanted.console => {
                    let failure = &failure as &dyn std::error::Error;
                    tracing::debug!(computer = %record.id, failure, "logs without those of services");
                }
                Err(failure) => return Err(failure),
            }
        }
        if let Some(since) = wanted.since {
            entries.retain(|entry| entry.timestamp.is_some_and(|at| at >= since));
        }
        // Lines of one source stay in their order; those without a time are old.
        entries.sort_by_key(|entry| entry.timestamp);
        let older = entries.len().saturating_sub(wanted.lines);
        Ok(entries.split_off(older))
    }

    /// The newest console lines; those of the failure when the computer failed.
    async fn console(&self, record: &ComputerRecord, lines: usize) -> Result<Vec<LogEntry>, Failure> {
        let live = self.inner.regions.of(&record.region)?.console(record.id, lines).await?;
        if !live.is_empty() || record.observed != Observed::Failed {
            return Ok(live.into_iter().map(of_console).collect());
        }
        let kept = &record.failure_console;
        let kept = kept[kept.len().saturating_sub(lines)..].iter();
        Ok(kept.map(|text| of_console(ConsoleLine { at: None, text: text.clone() })).collect())
    }

    async fn journal(&self, record: &ComputerRecord, wanted: &Wanted) -> Result<Vec<LogEntry>, Failure> {
        self.require_running(record)?;
        let read = async {
            let mut replies = self.ask_journal(record, wanted, wanted.since, false).await?;
            let mut entries = Vec::new();
            while let Some(reply) = replies.message().await.map_err(Failure::from_guest)? {
                entries.extend(reply.lines.into_iter().map(of_service));
                if entries.len() > 2 * wanted.lines {
                    // An entry has several lines, and a guest sends what it likes.
                    entries.drain(..wanted.lines);
                }
            }
            Ok(entries)
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| {
            Err(Failure::new(ErrorCode::AgentUnavailable, "the computer did not tell its logs in time"))
        })
    }

    async fn ask_journal(
        &self,
        record: &ComputerRecord,
        wanted: &Wanted,
        since: Option<Timestamp>,
        follow: bool,
    ) -> Result<tonic::Streaming<LogsReply>, Failure> {
        let request = LogsRequest {
            lines: u32::try_from(wanted.lines).unwrap_or(MOST_LINES),
            since_us: since.map_or(0, |since| since.as_micros().max(1)),
            follow,
            service: wanted.service.clone(),
        };
        let mut client = LogsClient::new(self.unused_guest(record.id, &record.region)?);
        Ok(client.read(request).await.map_err(Failure::from_guest)?.into_inner())
    }

    /// The newest lines, then each when it comes, for as long as the computer is there.
    pub async fn follow_logs(
        &self,
        record: &ComputerRecord,
        query: &LogsQuery,
    ) -> Result<impl Stream<Item = LogEntry> + Send + use<>, Failure> {
        let wanted = Wanted::of(query)?;
        let begun = Timestamp::now();
        let backlog = self.read_logs(record, &wanted).await?;
        let last = |stream| {
            let of_it = backlog.iter().filter(|entry| entry.stream == stream);
            of_it.filter_map(|entry| entry.timestamp).max().unwrap_or(begun)
        };
        let (entries, received) = mpsc::channel(QUEUED);
        for stream in [LogStream::Console, LogStream::Services] {
            let is_wanted = match stream {
                LogStream::Console => wanted.console,
                LogStream::Services => wanted.services,
            };
            if is_wanted {
                let follower = Follower {
                    control: self.clone(),
                    computer: record.id,
                    wanted: Wanted {
                        lines: usize::try_from(MOST_LINES).unwrap_or(usize::MAX),
                        ..wanted.clone()
                    },
                    told: last(stream),
                    newest: last(stream),
                    entries: entries.clone(),
                };
                let left = self.inner.engine.left();
                tokio::spawn(async move { left.run_until_cancelled(follower.follow(stream)).await });
            }
        }
        Ok(futures_util::stream::iter(backlog).chain(ReceiverStream::new(received)))
    }
}

/// Follows one source until nobody listens or the computer is gone.
struct Follower {
    control: Control,
    computer: ComputerId,
    wanted: Wanted,
    /// Up to then everything was told when the source was last asked.
    told: Timestamp,
    /// Of the newest line that was told. Several lines may have one time.
    newest: Timestamp,
    entries: mpsc::Sender<LogEntry>,
}

/// Nobody listens any more.
struct Gone;

impl Follower {
    async fn follow(mut self, stream: LogStream) {
        let listening = self.entries.clone();
        let (control, computer) = (self.control.clone(), self.computer);
        let gone = async {
            let mut changes = control.inner.hub.subscribe(computer);
            while !matches!(control.inner.store.computer(computer).await, Ok(None)) {
                drop(changes.changed().await);
            }
        };
        let follow = async {
            let mut changes = self.control.inner.hub.subscribe(self.computer);
            while let Ok(Some(record)) = self.control.inner.store.computer(self.computer).await {
                let generation = record.generation;
                self.told = self.newest;
                let followed = match stream {
                    LogStream::Console => self.follow_console(&record).await,
                    LogStream::Services => self.follow_journal(&record).await,
                };
                let again = match followed {
                    Ok(again) => again,
                    Err(Gone) => return,
                };
                match again {
                    // Only a new start brings something new.
                    Again::NextStart => loop {
                        drop(changes.changed().await);
                        match self.control.inner.store.computer(self.computer).await {
                            Ok(Some(now)) if now.generation == generation || !has_machine(&now) => {}
                            _ => break,
                        }
                    },
                    Again::Change => drop(changes.changed().await),
                    Again::Soon => drop(tokio::time::timeout(PAUSE, changes.changed()).await),
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = listening.closed() => {}
            // Its guest may go on for a moment.
            () = gone => {}
        }
    }

    async fn follow_console(&mut self, record: &ComputerRecord) -> Result<Again, Gone> {
        let launcher = match self.control.inner.regions.of(&record.region) {
            Ok(launcher) => launcher,
            Err(failure) => {
                tracing::debug!(computer = %record.id, "a console cannot be followed: {failure}");
                return Ok(Again::Change);
            }
        };
        match launcher.follow_console(record.id, self.wanted.lines).await {
            Ok(mut lines) => {
                while let Some(line) = lines.next().await {
                    self.tell(of_console(line)).await?;
                }
                Ok(Again::NextStart)
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(computer = %record.id, error, "a console cannot be followed now");
                Ok(Again::Soon)
            }
        }
    }

    async fn follow_journal(&mut self, record: &ComputerRecord) -> Result<Again, Gone> {
        if status(record) != Status::Running {
            return Ok(Again::Change);
        }
        let asked = self.control.ask_journal(record, &self.wanted, Some(self.told), true).await;
        let Ok(mut replies) = asked else { return Ok(Again::Soon) };
        while let Ok(Some(reply)) = replies.message().await {
            for line in reply.lines {
                self.tell(of_service(line)).await?;
            }
        }
        Ok(Again::Soon)
    }

    /// What was told already is not told again.
    async fn tell(&mut self, entry: LogEntry) -> Result<(), Gone> {
        let Some(at) = entry.timestamp.filter(|at| *at > self.told) else { return Ok(()) };
        self.newest = self.newest.max(at);
        self.entries.send(entry).await.map_err(|_| Gone)
    }
}

/// When a source that has ended is followed again.
enum Again {
    NextStart,
    Change,
    Soon,
}

fn has_machine(record: &ComputerRecord) -> bool {
    match record.observed {
        Observed::Preparing | Observed::Booting | Observed::Running | Observed::Stopping => true,
        Observed::Absent | Observed::Stopped | Observed::Failed => false,
    }
}

fn of_console(line: ConsoleLine) -> LogEntry {
    LogEntry { stream: LogStream::Console, line: line.text, timestamp: line.at, service: None }
}

fn of_service(line: LogLine) -> LogEntry {
    LogEntry {
        stream: LogStream::Services,
        line: readable(&line.text),
        timestamp: Timestamp::from_micros(line.at_us),
        service: Some(readable(&line.service)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_checked() {
        let query = |source: Option<&str>, service: Option<&str>, since: Option<&str>| LogsQuery {
            lines: Some(5000),
            since: since.map(str::to_owned),
            source: source.map(str::to_owned),
            service: service.map(str::to_owned),
        };
        let wanted = Wanted::of(&query(None, None, None)).unwrap();
        assert_eq!((wanted.lines, wanted.console, wanted.services), (1000, true, true));
        let wanted = Wanted::of(&query(None, Some("ssh"), Some("2026-01-31T12:00:00+01:00"))).unwrap();
        assert_eq!((wanted.console, wanted.services, wanted.service.as_str()), (false, true, "ssh"));
        assert_eq!(wanted.since, "2026-01-31T11:00:00Z".parse().ok());
        assert!(Wanted::of(&query(Some("console"), None, None)).is_ok_and(|wanted| !wanted.services));
        for (source, service, since, field) in [
            (Some("kernel"), None, None, "source"),
            (Some("console"), Some("ssh"), None, "service"),
            (None, None, Some("yesterday"), "since"),
        ] {
            let error = Wanted::of(&query(source, service, since)).unwrap_err();
            assert!(error.fields.contains_key(field), "{field}: {error:?}");
        }
    }
}
