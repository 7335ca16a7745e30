//! A D-Bus connection that asks many questions at once.
//!
//! The other side is in the computer, where the processor is slow and every message counts: the handshake costs one round
//! trip, and a batch of calls another. It is also in a user's hands. So nothing is read beyond [`LARGEST_MESSAGE`] and
//! [`LARGEST_SUM`], and a program that does not answer costs what its caller gave it, and nothing else.
//!
//! The encoding is that of the `zbus` crate. Its connections are not used: they read up to 128 MiB of whatever comes.

use std::collections::HashMap;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout_at};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{LE, to_bytes};
use zbus::{ObjectPath, Signature, Type, Variant};

const LARGEST_MESSAGE: usize = 16 * 1024 * 1024;
const LARGEST_SUM: usize = 64 * 1024 * 1024;
/// Calls on their way. More wait for answers, so that neither side's queue grows without end.
const IN_FLIGHT: usize = 256;
const LONGEST_LINE: usize = 1024;

const FIXED: usize = 16;
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// What a header is: the fixed part and the fields, each with its number.
type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);

mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    #[error("the connection to the bus broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the bus does not let the desktop user in: {0:?}")]
    Rejected(String),
    #[error("the bus did not answer in time")]
    Late,
    #[error("what the bus sends is no D-Bus: {0}")]
    Nonsense(&'static str),
    #[error("D-Bus encoding: {0}")]
    Encoding(#[from] zbus::Error),
}

/// A question to one program.
#[derive(Debug, Clone)]
pub(super) struct Call {
    destination: String,
    path: String,
    interface: &'static str,
    member: &'static str,
    signature: Option<Signature>,
    body: Vec<u8>,
}

impl Call {
    pub(super) fn new(destination: &str, path: &str, interface: &'static str, member: &'static str) -> Self {
        let (destination, path) = (destination.to_owned(), path.to_owned());
        Self { destination, path, interface, member, signature: None, body: Vec::new() }
    }

    /// Several arguments are a tuple, one is itself.
    pub(super) fn with<T: serde::Serialize + Type>(mut self, arguments: &T) -> Result<Self, BusError> {
        self.body = to_bytes(Context::new(LE, 0), arguments)?.bytes().to_vec();
        self.signature = Some(T::SIGNATURE.clone());
        Ok(self)
    }

    /// A property's value.
    pub(super) fn property(
        destination: &str,
        path: &str,
        interface: &'static str,
        name: &str,
    ) -> Result<Self, BusError> {
        Self::new(destination, path, "org.freedesktop.DBus.Properties", "Get").with(&(interface, name))
    }

    fn encode(&self, serial: u32) -> Result<Vec<u8>, BusError> {
        let fields = vec![
            (field::PATH, Variant::from(ObjectPath::try_from(self.path.as_str())?)),
            (field::INTERFACE, Variant::from(self.interface)),
            (field::MEMBER, Variant::from(self.member)),
            (field::DESTINATION, Variant::from(self.destination.as_str())),
        ];
        let length = u32::try_from(self.body.len()).map_err(|_| BusError::Nonsense("a call too long"))?;
        let header: Header<'_> = (b'l', METHOD_CALL, 0, 1, length, serial, fields);
        let mut message = to_bytes(Context::new(LE, 0), &header)?.bytes().to_vec();
        if let Some(signature) = &self.signature {
            append_signature(&mut message, signature)?;
        }
        message.resize(message.len().next_multiple_of(8), 0);
        message.extend_from_slice(&self.body);
        Ok(message)
    }
}

/// Adds the last field of a header: the signature of a body. By hand, because a body is no structure, and a value that
/// holds the signature of several things writes them as one.
fn append_signature(header: &mut Vec<u8>, signature: &Signature) -> Result<(), BusError> {
    let text = signature.to_string_no_parens();
    let length = u8::try_from(text.len()).map_err(|_| BusError::Nonsense("a signature too long"))?;
    header.resize(header.len().next_multiple_of(8), 0);
    header.extend([field::SIGNATURE, 1, b'g', 0, length]);
    header.extend(text.bytes());
    header.push(0);
    let fields = u32::try_from(header.len() - FIXED).map_err(|_| BusError::Nonsense("a header too long"))?;
    header[FIXED - 4..FIXED].copy_from_slice(&fields.to_le_bytes());
    Ok(())
}

#[derive(Debug)]
pub(super) struct Reply {
    signature: String,
    body: Vec<u8>,
}

impl Reply {
    /// `None` for an answer of another type than was expected.
    pub(super) fn read<T: for<'d> serde::Deserialize<'d> + Type>(&self) -> Option<T> {
        if self.signature != T::SIGNATURE.to_string() {
            return None;
        }
        let data = Data::new(self.body.as_slice(), Context::new(LE, 0));
        data.deserialize::<T>().ok().map(|(value, _)| value)
    }

    /// What a property is, if it is of that type.
    pub(super) fn variant<T: for<'v> TryFrom<Variant<'v>>>(&self) -> Option<T> {
        if self.signature != Variant::SIGNATURE.to_string() {
            return None;
        }
        let data = Data::new(self.body.as_slice(), Context::new(LE, 0));
        data.deserialize::<Variant<'_>>().ok().and_then(|(value, _)| T::try_from(value).ok())
    }
}

/// The other program's refusal, by the name of its error.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) name: String,
    pub(super) message: String,
}

/// `None`: nothing came in time.
pub(super) type Answer = Option<Result<Reply, Refused>>;

#[derive(Debug)]
struct Message {
    kind: u8,
    answers: Option<u32>,
    member: String,
    error: String,
    signature: String,
    body: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Bus<S> {
    input: Input<S>,
    output: WriteHalf<S>,
    serial: u32,
}

/// What comes, apart from what goes: who only writes may wait for somebody who waits to be read.
#[derive(Debug)]
struct Input<S> {
    stream: ReadHalf<S>,
    received: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Bus<S> {
    /// As the user with that id, whom the other side of the socket sees.
    pub(super) async fn connect(stream: S, uid: u32, deadline: Instant) -> Result<Self, BusError> {
        // Everything at once: a bus that lets us in reads on, one that does not says so.
        let name: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        let mut greeting = format!("\0AUTH EXTERNAL {name}\r\nBEGIN\r\n").into_bytes();
        let hello = Call::new(DAEMON, "/org/freedesktop/DBus", DAEMON, "Hello");
        greeting.extend(hello.encode(1)?);
        let (stream, mut output) = tokio::io::split(stream);
        output.write_all(&greeting).await?;
        let input = Input { stream, received: 0 };
        let mut bus = Self { input, output, serial: 1 };
        let line = timeout_at(deadline, bus.input.line()).await.map_err(|_| BusError::Late)??;
        if !line.starts_with("OK ") {
            return Err(BusError::Rejected(line));
        }
        let mut answers = [None];
        bus.input.collect(&HashMap::from([(1, 0)]), &mut answers, deadline).await?;
        match answers {
            [Some(Ok(_))] => Ok(bus),
            [Some(Err(refused))] => Err(BusError::Rejected(refused.message)),
            [None] => Err(BusError::Late),
        }
    }

    /// Used again, it may hear as much again.
    pub(super) fn begin_anew(&mut self) {
        self.input.received = 0;
    }

    /// The answers in the order of the calls, each until the deadline.
    pub(super) async fn ask(&mut self, calls: &[Call], deadline: Instant) -> Result<Vec<Answer>, BusError> {
        let mut answers: Vec<Answer> = Vec::new();
        answers.resize_with(calls.len(), || None);
        let mut first = 0;
        for some in calls.chunks(IN_FLIGHT) {
            let mut bytes = Vec::new();
            let mut awaited = HashMap::with_capacity(some.len());
            for (index, call) in some.iter().enumerate() {
                self.serial += 1;
                awaited.insert(self.serial, first + index);
                bytes.extend(call.encode(self.serial)?);
            }
            first += some.len();
            let (written, collected) = tokio::join!(
                timeout_at(deadline, self.output.write_all(&bytes)),
                self.input.collect(&awaited, &mut answers, deadline),
            );
            // Of a message that was sent in half there is no next one.
            written.map_err(|_| BusError::Late)??;
            collected?;
        }
        Ok(answers)
    }

    /// Waits for a signal of that name; whether it came in time.
    pub(super) async fn signal(&mut self, member: &str, deadline: Instant) -> Result<bool, BusError> {
        loop {
            match self.input.next(deadline).await? {
                Some(message) if message.kind == SIGNAL && message.member == member => return Ok(true),
                Some(_) => {}
                None => return Ok(false),
            }
        }
    }
}

impl<S: AsyncRead> Input<S> {
    async fn line(&mut self) -> Result<String, BusError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == LONGEST_LINE {
                return Err(BusError::Nonsense("an endless greeting"));
            }
            line.push(self.stream.read_u8().await?);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    async fn collect(
        &mut self,
        awaited: &HashMap<u32, usize>,
        answers: &mut [Answer],
        deadline: Instant,
    ) -> Result<(), BusError> {
        let mut missing = awaited.len();
        while missing > 0 {
            let Some(message) = self.next(deadline).await? else { return Ok(()) };
            let Some(index) = message.answers.and_then(|serial| awaited.get(&serial)) else { continue };
            let answer = match message.kind {
                METHOD_RETURN => Ok(Reply { signature: message.signature, body: message.body }),
                ERROR => {
                    Err(Refused { name: message.error, message: text(&message.signature, &message.body) })
                }
                _ => continue,
            };
            if answers[*index].replace(answer).is_none() {
                missing -= 1;
            }
        }
        Ok(())
    }

    async fn next(&mut self, deadline: Instant) -> Result<Option<Message>, BusError> {
        let mut fixed = [0; FIXED];
        // Cut off only between two messages: within one the connection would be lost.
        match timeout_at(deadline, self.stream.read_exact(&mut fixed[..1])).await {
            Ok(read) => read?,
            Err(_) => return Ok(None),
        };
        let rest = async {
            self.stream.read_exact(&mut fixed[1..]).await?;
            let word =
                |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
            if fixed[0] != b'l' || fixed[3] != 1 {
                return Err(BusError::Nonsense("another version or byte order"));
            }
            let (body, fields) = (word(4) as usize, word(12) as usize);
            let start = (FIXED + fields.min(LARGEST_MESSAGE)).next_multiple_of(8);
            let length = start.saturating_add(body);
            self.received = self.received.saturating_add(length);
            if length > LARGEST_MESSAGE || self.received > LARGEST_SUM {
                return Err(BusError::Nonsense("more than anybody has to say"));
            }
            let mut bytes = vec![0; length];
            bytes[..FIXED].copy_from_slice(&fixed);
            self.stream.read_exact(&mut bytes[FIXED..]).await?;
            decode(&bytes, start)
        };
        // Bytes of a message that has begun come soon, unless nobody sends them.
        let grace = deadline + std::time::Duration::from_secs(1);
        timeout_at(grace, rest).await.map_err(|_| BusError::Late)?.map(Some)
    }
}

pub(super) const DAEMON: &str = "org.freedesktop.DBus";

fn decode(bytes: &[u8], start: usize) -> Result<Message, BusError> {
    let data = Data::new(bytes, Context::new(LE, 0));
    let ((_, kind, _, _, _, _, fields), _): (Header<'_>, usize) = data.deserialize()?;
    let mut message = Message {
        kind,
        answers: None,
        member: String::new(),
        error: String::new(),
        signature: String::new(),
        body: bytes[start..].to_vec(),
    };
    for (number, value) in fields {
        match (number, value) {
            (field::REPLY_SERIAL, Variant::U32(serial)) => message.answers = Some(serial),
            (field::MEMBER, Variant::Str(text)) => message.member = text.to_string(),
            (field::ERROR_NAME, Variant::Str(text)) => message.error = text.to_string(),
            (field::SIGNATURE, Variant::Signature(signature)) => message.signature = signature.to_string(),
            _ => {}
        }
    }
    Ok(message)
}

/// What an error says.
fn text(signature: &str, body: &[u8]) -> String {
    if !signature.starts_with('s') && !signature.starts_with("(s") {
        return String::new();
    }
    Data::new(body, Context::new(LE, 0)).deserialize::<String>().map(|(text, _)| text).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod fake {
    //! The other side of a bus, for tests.

    use tokio::io::DuplexStream;

    use super::*;

    #[derive(Debug)]
    pub(crate) struct Asked {
        pub(crate) destination: String,
        pub(crate) path: String,
        pub(crate) member: String,
        pub(crate) body: Vec<u8>,
    }

    #[derive(Debug)]
    pub(crate) enum Says {
        Reply(Signature, Vec<u8>),
        Error(&'static str),
        Nothing,
    }

    pub(crate) fn says<T: serde::Serialize + Type>(value: &T) -> Says {
        let body = to_bytes(Context::new(LE, 0), value).unwrap().bytes().to_vec();
        Says::Reply(T::SIGNATURE.clone(), body)
    }

    /// A bus on which `answer` answers everything but the greeting.
    pub(crate) fn bus(answer: impl FnMut(Asked) -> Says + Send + 'static) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(serve(theirs, answer));
        ours
    }

    async fn serve(mut stream: DuplexStream, mut answer: impl FnMut(Asked) -> Says) {
        let mut greeting = Vec::new();
        while !greeting.ends_with(b"BEGIN\r\n") {
            greeting.push(stream.read_u8().await.unwrap());
        }
        assert_eq!(greeting, b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n");
        stream.write_all(b"OK 1234deadbeef\r\n").await.unwrap();
        loop {
            let mut bytes = vec![0; FIXED];
            if stream.read_exact(&mut bytes).await.is_err() {
                return;
            }
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let (body, serial, fields) = (word(4) as usize, word(8), word(12) as usize);
            let start = (FIXED + fields).next_multiple_of(8);
            bytes.resize(start + body, 0);
            stream.read_exact(&mut bytes[FIXED..]).await.unwrap();
            let data = Data::new(&bytes[..], Context::new(LE, 0));
            let ((.., fields), _): (Header<'_>, usize) = data.deserialize().unwrap();
            let text = |wanted: u8| {
                let value = fields.iter().find(|(number, _)| *number == wanted).map(|(_, value)| value);
                match value {
                    Some(Variant::Str(text)) => text.to_string(),
                    Some(Variant::ObjectPath(path)) => path.to_string(),
                    _ => String::new(),
                }
            };
            let asked = Asked {
                destination: text(field::DESTINATION),
                path: text(field::PATH),
                member: text(field::MEMBER),
                body: bytes[start..].to_vec(),
            };
            let said = if asked.member == "Hello" { says(&":1.99") } else { answer(asked) };
            let (kind, mut fields, body) = match said {
                Says::Reply(signature, body) => {
                    (METHOD_RETURN, vec![(field::SIGNATURE, Variant::Signature(signature))], body)
                }
                Says::Error(name) => (ERROR, vec![(field::ERROR_NAME, Variant::from(name))], Vec::new()),
                Says::Nothing => continue,
            };
            fields.push((field::REPLY_SERIAL, Variant::U32(serial)));
            let header: Header<'_> = (b'l', kind, 0, 1, u32::try_from(body.len()).unwrap(), 7, fields);
            let mut message = to_bytes(Context::new(LE, 0), &header).unwrap().bytes().to_vec();
            message.resize(message.len().next_multiple_of(8), 0);
            message.extend(body);
            stream.write_all(&message).await.unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::fake::{Says, bus, says};
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test(start_paused = true)]
    async fn many_questions_get_each_its_own_answer() {
        let stream = bus(|asked| match asked.destination.as_str() {
            ":1.8" => Says::Error("org.example.No"),
            ":1.9" => Says::Nothing,
            _ => says(&format!("{} {}", asked.path, asked.body.len())),
        });
        let mut bus = Bus::connect(stream, 1000, soon()).await.unwrap();
        let call = |to: &str, number: usize| Call::new(to, &format!("/{number}"), "org.example.I", "M");
        let calls: Vec<Call> =
            (0..600).map(|number| call(":1.7", number).with(&(1_u32, "é")).unwrap()).collect();
        let answers = bus.ask(&calls, soon()).await.unwrap();
        for (number, answer) in answers.iter().enumerate() {
            let answer = answer.as_ref().unwrap().as_ref().unwrap();
            assert_eq!(answer.read::<String>().unwrap(), format!("/{number} 11"));
            assert_eq!(answer.read::<u32>(), None);
        }
        let begun = Instant::now();
        let answers = bus.ask(&[call(":1.8", 1), call(":1.9", 2), call(":1.7", 3)], soon()).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        let [Some(Err(refused)), None, Some(Ok(_))] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(refused.name, "org.example.No");
        // Who was late is not waited for again, and the next one is heard.
        let answers = bus.ask(&[call(":1.7", 4)], soon()).await.unwrap();
        assert!(matches!(answers[..], [Some(Ok(_))]));
    }

    /// Programs look at the text of a signature: `(ssv)` is another one than `ssv`, and no method has it.
    #[test]
    fn the_signature_of_a_body_is_of_its_parts() {
        let call =
            Call::new(":1.7", "/o", "org.example.I", "M").with(&("a", "b", Variant::from(true))).unwrap();
        let message = call.encode(1).unwrap();
        let field = b"\x08\x01g\0\x03ssv\0";
        let at = message.windows(field.len()).position(|bytes| bytes == field).unwrap();
        assert_eq!(at % 8, 0);
        // It is the last one, and the body comes after it.
        let end = at + field.len();
        assert_eq!(message[12..16], u32::try_from(end - FIXED).unwrap().to_le_bytes());
        assert_eq!(message[end.next_multiple_of(8)..].len(), call.body.len());
    }

    #[tokio::test]
    async fn what_is_no_bus_is_refused() {
        for (says, expected) in [
            (b"REJECTED EXTERNAL\r\n".to_vec(), "does not let"),
            (vec![b'x'; 5000], "endless"),
            (b"OK 1\r\nB\x02\0\x01\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(), "byte order"),
            (b"OK 1\r\nl\x02\0\x01\xff\xff\xff\xff\0\0\0\0\0\0\0\0".to_vec(), "more than"),
            (b"OK 1\r\nl\x02\0\x01\0\0\0\0\0\0\0\0\xff\xff\xff\xff".to_vec(), "more than"),
            (
                b"OK 1\r\nl\x02\0\x01\0\0\0\0\x01\0\0\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
                "encoding",
            ),
            (b"OK 1\r\n".to_vec(), "broke"),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
            theirs.write_all(&says).await.unwrap();
            theirs.shutdown().await.unwrap();
            let error = Bus::connect(ours, 1000, soon()).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
