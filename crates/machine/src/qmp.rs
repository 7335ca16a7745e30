//! QEMU's control protocol (QMP): JSON lines over a socket that QEMU inherited from us.
//!
//! Commands are answered by id, events go to one receiver. QEMU is as trusted as its guest is good at
//! breaking out of it, so a line has a size limit and an answer a deadline.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// The longest real answers are some KiB.
const LINE_LIMIT: u64 = 1024 * 1024;
/// QEMU answers within milliseconds unless its main loop hangs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU closed its control socket")]
    Closed,
    #[error("QEMU's control socket failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("QEMU said something that is not QMP: {0}")]
    Protocol(#[from] serde_json::Error),
    #[error("QEMU sent a line of more than {LINE_LIMIT} bytes")]
    TooLong,
    #[error("QEMU refused {command}: {description}")]
    Refused { command: &'static str, description: String },
    #[error("QEMU did not answer {command} within {} s", ANSWER_DEADLINE.as_secs())]
    NoAnswer { command: &'static str },
}

/// The events this process acts on; the others are dropped where they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QmpEvent {
    /// `by_guest`: the guest powered off; otherwise QEMU was told to quit.
    Shutdown { by_guest: bool },
    /// `at_ms` is QEMU's wall clock: one restart of a PC may be reported more than once.
    Reset { by_guest: bool, at_ms: u64 },
    /// A program in the guest opened or closed the virtio-serial port `id`.
    PortChanged { id: String, open: bool },
    /// The loading of saved devices is over.
    Loaded { completely: bool },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _qmp: Value,
    },
    Return {
        id: u64,
        #[serde(rename = "return")]
        value: Value,
    },
    Error {
        id: Option<u64>,
        error: ErrorBody,
    },
    Event {
        event: String,
        #[serde(default)]
        data: Value,
        timestamp: Timestamp,
    },
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    desc: String,
}

#[derive(Debug, Deserialize)]
struct Timestamp {
    /// -1 when QEMU does not know.
    seconds: i64,
    microseconds: i64,
}

type Answer = Result<Value, String>;

/// `None` once the connection has ended, when no answer can come any more.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// Sends commands. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Qmp {
    writer: Arc<tokio::sync::Mutex<Writer>>,
    waiting: Waiting,
}

#[derive(Debug)]
struct Writer {
    socket: OwnedWriteHalf,
    next_id: u64,
}

/// Reads what QEMU sends, until it closes the socket.
#[derive(Debug)]
pub struct QmpReader {
    socket: BufReader<OwnedReadHalf>,
    waiting: Waiting,
}

/// Splits a connection; nothing is sent before [`Qmp::negotiate`].
pub fn split(socket: UnixStream) -> (Qmp, QmpReader) {
    let (read, write) = socket.into_split();
    let waiting = Waiting::new(Mutex::new(Some(HashMap::new())));
    let writer = Arc::new(tokio::sync::Mutex::new(Writer { socket: write, next_id: 1 }));
    (Qmp { writer, waiting: waiting.clone() }, QmpReader { socket: BufReader::new(read), waiting })
}

impl Qmp {
    /// Leaves the negotiation mode in which QEMU greets; every other command needs this first.
    pub async fn negotiate(&self) -> Result<(), QmpError> {
        self.execute("qmp_capabilities", json!({})).await.map(drop)
    }

    /// QEMU's version in full.
    pub async fn version(&self) -> Result<String, QmpError> {
        let answer = self.execute("query-version", json!({})).await?;
        let part = |name: &str| answer["qemu"][name].as_u64().unwrap_or(0);
        let package = answer["package"].as_str().unwrap_or_default();
        Ok(format!("{}.{}.{} {package}", part("major"), part("minor"), part("micro")).trim_end().to_owned())
    }

    /// What QEMU's monitor for people answers: for the few things there is no other command for.
    pub async fn monitor(&self, line: &str) -> Result<String, QmpError> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line })).await?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    pub async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let exchange = async {
            let (sender, answer) = oneshot::channel();
            {
                let mut writer = self.writer.lock().await;
                let id = writer.next_id;
                writer.next_id += 1;
                held(&self.waiting).as_mut().ok_or(QmpError::Closed)?.insert(id, sender);
                let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
                line.push('\n');
                writer.socket.write_all(line.as_bytes()).await?;
            }
            match answer.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(description)) => Err(QmpError::Refused { command, description }),
                Err(_) => Err(QmpError::Closed),
            }
        };
        match tokio::time::timeout(ANSWER_DEADLINE, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(QmpError::NoAnswer { command }),
        }
    }
}

impl QmpReader {
    /// Hands answers to those who wait for them and events to `events`. Ends, with `Ok`, when QEMU closes
    /// the socket; by then every waiting command has failed.
    pub async fn run(mut self, events: mpsc::Sender<QmpEvent>) -> Result<(), QmpError> {
        let outcome = self.read(events).await;
        held(&self.waiting).take();
        outcome
    }

    async fn read(&mut self, events: mpsc::Sender<QmpEvent>) -> Result<(), QmpError> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut self.socket).take(LINE_LIMIT).read_until(b'\n', &mut line).await?;
            if read == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') && line.len() as u64 == LINE_LIMIT {
                return Err(QmpError::TooLong);
            }
            match serde_json::from_slice(&line)? {
                Message::Greeting { .. } => {}
                Message::Return { id, value } => self.answer(id, Ok(value)),
                Message::Error { id: Some(id), error } => self.answer(id, Err(error.desc)),
                Message::Error { id: None, error } => {
                    tracing::warn!("QEMU complains about a command: {}", error.desc);
                }
                Message::Event { event, data, timestamp } => {
                    tracing::debug!(%data, "QEMU event {event}");
                    if let Some(event) = known_event(&event, &data, &timestamp)
                        && events.send(event).await.is_err()
                    {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let waiting = held(&self.waiting).as_mut().and_then(|waiting| waiting.remove(&id));
        // Whoever waited may have given up: then nobody wants the answer.
        if let Some(waiting) = waiting {
            drop(waiting.send(answer));
        }
    }
}

fn held(waiting: &Waiting) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn known_event(name: &str, data: &Value, timestamp: &Timestamp) -> Option<QmpEvent> {
    let by_guest = data["guest"] == true;
    match name {
        "SHUTDOWN" => Some(QmpEvent::Shutdown { by_guest }),
        "RESET" => {
            let seconds = u64::try_from(timestamp.seconds).unwrap_or(0);
            let milliseconds = u64::try_from(timestamp.microseconds).unwrap_or(0) / 1000;
            Some(QmpEvent::Reset {
                by_guest,
                at_ms: seconds.saturating_mul(1000).saturating_add(milliseconds),
            })
        }
        "MIGRATION" => match data["status"].as_str()? {
            "completed" => Some(QmpEvent::Loaded { completely: true }),
            "failed" => Some(QmpEvent::Loaded { completely: false }),
            _ => None,
        },
        "VSERPORT_CHANGE" => {
            Some(QmpEvent::PortChanged { id: data["id"].as_str()?.to_owned(), open: data["open"] == true })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 10.0.2 sent during a boot that panicked and restarted.
    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
    const RESET: &str = r#"{"timestamp": {"seconds": 1795470152, "microseconds": 738762}, "event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}"#;
    const PORT: &str = r#"{"timestamp": {"seconds": 1795470153, "microseconds": 1}, "event": "VSERPORT_CHANGE", "data": {"open": true, "id": "agent0"}}"#;
    const STOP: &str = r#"{"timestamp": {"seconds": 1795470153, "microseconds": 2}, "event": "STOP"}"#;
    const OFF: &str = r#"{"timestamp": {"seconds": 1795470154, "microseconds": 3}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#;

    struct FakeQemu {
        socket: BufReader<UnixStream>,
    }

    impl FakeQemu {
        async fn say(&mut self, line: &str) {
            self.socket.get_mut().write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        }

        async fn hear(&mut self) -> Value {
            let mut line = String::new();
            self.socket.read_line(&mut line).await.unwrap();
            serde_json::from_str(&line).unwrap()
        }
    }

    fn pair() -> (Qmp, QmpReader, FakeQemu) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (qmp, reader) = split(ours);
        (qmp, reader, FakeQemu { socket: BufReader::new(theirs) })
    }

    #[tokio::test]
    async fn events_arrive_in_order_and_unknown_ones_are_dropped() {
        let (_qmp, reader, mut qemu) = pair();
        let (sender, mut events) = mpsc::channel(8);
        let reading = tokio::spawn(reader.run(sender));
        for line in [GREETING, RESET, STOP, PORT, OFF] {
            qemu.say(line).await;
        }
        drop(qemu);
        reading.await.unwrap().unwrap();
        let mut seen = Vec::new();
        while let Some(event) = events.recv().await {
            seen.push(event);
        }
        assert_eq!(
            seen,
            [
                QmpEvent::Reset { by_guest: true, at_ms: 1_795_470_152_738 },
                QmpEvent::PortChanged { id: "agent0".to_owned(), open: true },
                QmpEvent::Shutdown { by_guest: true },
            ]
        );
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order() {
        let (qmp, reader, mut qemu) = pair();
        let (sender, _events) = mpsc::channel(8);
        tokio::spawn(reader.run(sender));
        qemu.say(GREETING).await;
        let answering = tokio::spawn(async move {
            let first = qemu.hear().await;
            let second = qemu.hear().await;
            assert_eq!(first["execute"], "query-status");
            qemu.say(&json!({ "return": { "n": 2 }, "id": second["id"] }).to_string()).await;
            let error = json!({ "error": { "class": "GenericError", "desc": "no" }, "id": first["id"] });
            qemu.say(&error.to_string()).await;
            qemu
        });
        let (first, second) =
            tokio::join!(qmp.execute("query-status", json!({})), qmp.execute("query-name", json!({})));
        assert!(matches!(first, Err(QmpError::Refused { description, .. }) if description == "no"));
        assert_eq!(second.unwrap()["n"], 2);
        drop(answering.await.unwrap());
    }

    #[tokio::test]
    async fn a_command_fails_when_qemu_goes_away_before_or_after_it() {
        let (qmp, reader, mut qemu) = pair();
        let (sender, _events) = mpsc::channel(8);
        let reading = tokio::spawn(reader.run(sender));
        let leaving = tokio::spawn(async move {
            qemu.hear().await;
        });
        assert!(matches!(qmp.execute("quit", json!({})).await, Err(QmpError::Closed | QmpError::Io(_))));
        leaving.await.unwrap();
        reading.await.unwrap().ok();
        assert!(matches!(qmp.execute("quit", json!({})).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused() {
        let (_qmp, reader, mut qemu) = pair();
        let (sender, _events) = mpsc::channel(8);
        let reading = tokio::spawn(reader.run(sender));
        let flood = vec![b' '; usize::try_from(LINE_LIMIT).unwrap() + 1];
        // The reader may hang up half-way, which is the point.
        qemu.socket.get_mut().write_all(&flood).await.ok();
        assert!(matches!(reading.await.unwrap(), Err(QmpError::TooLong)));
    }
}
