//! Programs that begin and end, as the kernel tells it (its process event connector).

use std::{collections::HashMap, fs, io, os::fd::OwnedFd};

use roost_guest_proto::v1::ProcessEvent;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{CONNECTOR, SocketAddrNetlink},
        recv, send, socket_with,
    },
};
use tokio::io::unix::AsyncFd;
use tonic::Status;

use super::Source;
use crate::descriptor;

/// The group of the connector that tells of processes, and its number in messages.
const PROCESSES: u32 = 1;
const LISTEN: u32 = 1;
const EXECUTED: u32 = 2;
const EXITED: u32 = 1 << 31;
/// The end of a message in several parts, which the connector's always is.
const DONE: u16 = 3;
/// A message's header and the connector's, then what happened, on which processor and when.
const HEADERS: usize = 16 + 20;
const WHO: usize = HEADERS + 16;
/// Of a command line, in bytes.
const LONGEST: usize = 4096;

pub(super) struct Watch {
    socket: AsyncFd<OwnedFd>,
    /// The command of each process, which it cannot be asked for any more at its end.
    known: HashMap<u32, String>,
}

impl Source for Watch {
    type Event = ProcessEvent;

    async fn next(&mut self) -> Result<Vec<ProcessEvent>, Status> {
        self.changed().await.map_err(|error| Status::internal(format!("watch the processes: {error}")))
    }
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(CONNECTOR))?;
        bind(&socket, &SocketAddrNetlink::new(0, PROCESSES))?;
        send(&socket, &listen(), SendFlags::empty())?;
        let mut watch = Self { socket: descriptor::watch(socket)?, known: HashMap::new() };
        watch.compare()?;
        Ok(watch)
    }

    async fn changed(&mut self) -> io::Result<Vec<ProcessEvent>> {
        let mut buffer = [0; 512];
        loop {
            let mut ready = self.socket.readable().await?;
            match recv(self.socket.get_ref(), &mut buffer, RecvFlags::empty()) {
                Ok((_, length)) => {
                    let told = buffer.get(..length).and_then(Told::parse);
                    let change = told.and_then(|told| self.change(told));
                    if let Some(change) = change {
                        return Ok(vec![change]);
                    }
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // More happened than was read.
                Err(Errno::NOBUFS) => return self.compare(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn change(&mut self, told: Told) -> Option<ProcessEvent> {
        match told {
            Told::Executed(pid) => Some(self.begun(pid)),
            Told::Exited(pid) => self.known.remove(&pid).map(|command| ended(pid, command)),
        }
    }

    /// It may have ended already, and then nobody knows what it was.
    fn begun(&mut self, pid: u32) -> ProcessEvent {
        let command = command(pid);
        self.known.insert(pid, command.clone());
        ProcessEvent { pid, running: true, command, parent: parent(pid).unwrap_or(0) }
    }

    /// What is otherwise than is known.
    fn compare(&mut self) -> io::Result<Vec<ProcessEvent>> {
        let mut there = Vec::new();
        for entry in fs::read_dir("/proc")? {
            if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) {
                there.push(pid);
            }
        }
        let gone = self.known.extract_if(|pid, _| !there.contains(pid));
        let mut changes: Vec<_> = gone.map(|(pid, command)| ended(pid, command)).collect();
        for pid in there {
            // The kernel's own threads have no command line, and are nobody's business.
            if !self.known.contains_key(&pid) && !command(pid).is_empty() {
                changes.push(self.begun(pid));
            }
        }
        Ok(changes)
    }
}

fn ended(pid: u32, command: String) -> ProcessEvent {
    ProcessEvent { pid, running: false, command, parent: 0 }
}

/// The request to be told of processes.
fn listen() -> Vec<u8> {
    let length = u32::try_from(HEADERS + 4).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(DONE.to_ne_bytes());
    message.extend([0; 2 + 4 + 4]); // no flags, no number, from the kernel's point of view nobody
    message.extend(PROCESSES.to_ne_bytes());
    message.extend(PROCESSES.to_ne_bytes());
    message.extend([0; 4 + 4]);
    message.extend(4_u16.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(LISTEN.to_ne_bytes());
    message
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Executed(u32),
    Exited(u32),
}

impl Told {
    /// `None` for what is of no interest: threads that end, other events.
    fn parse(message: &[u8]) -> Option<Self> {
        let number = |at: usize| message.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let (thread, process) = (number(WHO)?, number(WHO + 4)?);
        match number(HEADERS)? {
            EXECUTED => Some(Self::Executed(process)),
            EXITED if thread == process => Some(Self::Exited(process)),
            _ => None,
        }
    }
}

/// The words of its command line with spaces between them.
fn command(pid: u32) -> String {
    let mut words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.truncate(LONGEST);
    let text = String::from_utf8_lossy(&words);
    text.trim_end_matches(['\0', '\n']).replace('\0', " ")
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may have brackets and spaces in it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(what: u32, thread: u32, process: u32) -> Vec<u8> {
        let mut message = vec![0; WHO + 8];
        for (at, number) in [(HEADERS, what), (WHO, thread), (WHO + 4, process)] {
            message[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        message
    }

    #[test]
    fn what_begins_and_ends_is_heard_of() {
        assert_eq!(Told::parse(&message(EXECUTED, 7, 7)), Some(Told::Executed(7)));
        assert_eq!(Told::parse(&message(EXITED, 7, 7)), Some(Told::Exited(7)));
        assert_eq!(Told::parse(&message(EXITED, 8, 7)), None, "a thread");
        assert_eq!(Told::parse(&message(1, 7, 7)), None, "a fork");
        let whole = message(EXECUTED, 7, 7);
        for length in 0..whole.len() {
            assert_eq!(Told::parse(&whole[..length]), None);
        }
        assert_eq!(listen().len(), HEADERS + 4);
    }

    #[test]
    fn a_process_says_what_it_is() {
        let this = std::process::id();
        assert!(command(this).contains("roost_guest"), "{}", command(this));
        assert_eq!(parent(this), Some(std::os::unix::process::parent_id()));
        assert_eq!((command(u32::MAX), parent(u32::MAX)), (String::new(), None));
    }
}
