//! What services have logged: the system's journal, read with its own program.
//!
//! `journalctl` writes its export format: `FIELD=text` lines, or for a text with control characters the field's name,
//! its length as eight bytes (little-endian) and its bytes; an empty line ends an entry.

use std::{io, pin::Pin, process::Stdio};

use futures_util::{Stream, stream};
use roost_guest_proto::v1::{LogLine, LogsReply, LogsRequest, logs_server::Logs};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};
use tonic::{Request, Response, Status};

const MOST_LINES: u32 = 10_000;
const LONGEST_FIELD: u64 = 64 * 1024;
const LONGEST_SERVICE: usize = 128;
const FIELDS: &str = "MESSAGE,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT,_SYSTEMD_USER_UNIT,_COMM";

#[derive(Debug, Clone, Copy)]
pub(crate) struct LogsService;

type Lines = Pin<Box<dyn Stream<Item = Result<LogsReply, Status>> + Send>>;

#[tonic::async_trait]
impl Logs for LogsService {
    type ReadStream = Lines;

    async fn read(&self, request: Request<LogsRequest>) -> Result<Response<Lines>, Status> {
        let arguments = arguments(&request.into_inner())?;
        let mut journal = Command::new("journalctl")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(unreadable)?;
        let output = journal.stdout.take().ok_or_else(|| Status::internal("the journal has no output"))?;
        let reader = Reader { journal, output: BufReader::new(output) };
        let replies = stream::try_unfold(reader, async |mut reader: Reader| {
            let lines = next(&mut reader.output).await.map_err(unreadable)?;
            Ok::<_, Status>(lines.map(|lines| (LogsReply { lines }, reader)))
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

fn unreadable(error: io::Error) -> Status {
    Status::internal(format!("read the journal: {error}"))
}

/// The program ends with the call.
struct Reader {
    #[expect(dead_code, reason = "its drop ends the program")]
    journal: Child,
    output: BufReader<ChildStdout>,
}

fn arguments(request: &LogsRequest) -> Result<Vec<String>, Status> {
    let LogsRequest { lines, since_us, follow, service } = request;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.@:-\\".contains(&byte);
    if service.len() > LONGEST_SERVICE || !service.bytes().all(is_name) {
        return Err(Status::invalid_argument(format!("`{service}` is no name of a service")));
    }
    let mut arguments: Vec<String> = ["--quiet", "--no-pager", "--output=export"].map(str::to_owned).to_vec();
    arguments.push(format!("--output-fields={FIELDS}"));
    arguments.push(format!("--lines={}", lines.min(&MOST_LINES)));
    if *since_us > 0 {
        arguments.push(format!("--since=@{}.{:06}", since_us / 1_000_000, since_us % 1_000_000));
    }
    if *follow {
        arguments.push("--follow".to_owned());
    }
    if !service.is_empty() {
        let unit = if service.contains('.') { service.clone() } else { format!("{service}.service") };
        let matches = [
            format!("_SYSTEMD_UNIT={unit}"),
            "+".to_owned(),
            format!("_SYSTEMD_USER_UNIT={unit}"),
            "+".to_owned(),
            format!("SYSLOG_IDENTIFIER={service}"),
        ];
        arguments.extend(matches);
    }
    Ok(arguments)
}

#[derive(Debug, Default)]
struct Entry {
    at_us: i64,
    message: String,
    identifier: String,
    unit: String,
    user_unit: String,
    command: String,
}

impl Entry {
    fn set(&mut self, field: &[u8], value: &[u8]) {
        let text = || String::from_utf8_lossy(value).into_owned();
        match field {
            b"__REALTIME_TIMESTAMP" => self.at_us = text().parse().unwrap_or(0),
            b"MESSAGE" => self.message = text(),
            b"SYSLOG_IDENTIFIER" => self.identifier = text(),
            b"_SYSTEMD_UNIT" => self.unit = text(),
            b"_SYSTEMD_USER_UNIT" => self.user_unit = text(),
            b"_COMM" => self.command = text(),
            _ => {}
        }
    }

    fn into_lines(self) -> Vec<LogLine> {
        let names = [&self.identifier, &self.user_unit, &self.unit, &self.command];
        let service = names.into_iter().find(|name| !name.is_empty()).cloned().unwrap_or_default();
        let line =
            |text: &str| LogLine { at_us: self.at_us, service: service.clone(), text: text.to_owned() };
        self.message.lines().filter(|text| !text.trim().is_empty()).map(line).collect()
    }
}

/// The lines of the next entry that has any; `None` at the end.
async fn next(output: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<LogLine>>> {
    let mut entry = Entry::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if output.read_until(b'\n', &mut line).await? == 0 {
            let lines = entry.into_lines();
            return Ok((!lines.is_empty()).then_some(lines));
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.is_empty() {
            let lines = std::mem::take(&mut entry).into_lines();
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        } else if let Some(equals) = text.iter().position(|byte| *byte == b'=') {
            let value = &text[equals + 1..];
            let end = value.len().min(usize::try_from(LONGEST_FIELD).unwrap_or(usize::MAX));
            entry.set(&text[..equals], &value[..end]);
        } else {
            let value = read_binary(output).await?;
            entry.set(text, &value);
        }
    }
}

/// The value of a field whose name was read; what is beyond the limit is skipped.
async fn read_binary(output: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = output.read_u64_le().await?;
    let mut value = Vec::new();
    (&mut *output).take(length.min(LONGEST_FIELD)).read_to_end(&mut value).await?;
    // And the line's end.
    let rest = length.saturating_sub(LONGEST_FIELD).saturating_add(1);
    tokio::io::copy_buf(&mut (&mut *output).take(rest), &mut tokio::io::sink()).await?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut export: &[u8]) -> Vec<(i64, String, String)> {
        let mut lines = Vec::new();
        while let Some(found) = next(&mut export).await.unwrap() {
            lines.extend(found.into_iter().map(|line| (line.at_us, line.service, line.text)));
        }
        lines
    }

    fn line(at: i64, service: &str, text: &str) -> (i64, String, String) {
        (at, service.to_owned(), text.to_owned())
    }

    #[tokio::test]
    async fn entries_are_read_in_both_forms() {
        let mut export =
            b"__CURSOR=x\n__REALTIME_TIMESTAMP=5\nMESSAGE=a=b\n_COMM=c\n_SYSTEMD_UNIT=u.service\n\n".to_vec();
        export.extend(b"__REALTIME_TIMESTAMP=6\nMESSAGE\n");
        export.extend(9_u64.to_le_bytes());
        export.extend(b"one\n\ntwo!\nSYSLOG_IDENTIFIER=me\n\n");
        export.extend(b"__REALTIME_TIMESTAMP=7\n_COMM=silent\n\n__REALTIME_TIMESTAMP=8\nMESSAGE=cut");
        let expected =
            [line(5, "u.service", "a=b"), line(6, "me", "one"), line(6, "me", "two!"), line(8, "", "cut")];
        assert_eq!(all(&export).await, expected);
    }

    #[tokio::test]
    async fn a_huge_field_is_cut_and_what_follows_is_read() {
        let huge = usize::try_from(LONGEST_FIELD).unwrap() + 10;
        let mut export = b"MESSAGE\n".to_vec();
        export.extend(u64::try_from(huge).unwrap().to_le_bytes());
        export.extend(vec![b'x'; huge]);
        export.extend(b"\n_COMM=c\n\nMESSAGE=next\n\n");
        let lines = all(&export).await;
        assert_eq!((lines[0].2.len(), lines[0].1.as_str()), (huge - 10, "c"));
        assert_eq!(lines[1].2, "next");
    }

    #[test]
    fn names_of_services_are_no_options_and_no_other_fields() {
        let request = |service: &str| LogsRequest {
            lines: 5,
            since_us: 1_500_000,
            follow: true,
            service: service.to_owned(),
        };
        let found = arguments(&request("ssh")).unwrap();
        for wanted in ["--lines=5", "--since=@1.500000", "--follow", "_SYSTEMD_UNIT=ssh.service"] {
            assert!(found.iter().any(|argument| argument == wanted), "{wanted}: {found:?}");
        }
        assert!(arguments(&request("user@1000.service")).is_ok());
        assert!(arguments(&request("a b")).is_err() && arguments(&request("a=b")).is_err());
        // Behind the name of a field nothing is an option.
        assert!(arguments(&request("--root")).unwrap().iter().all(|argument| argument != "--root"));
    }
}
