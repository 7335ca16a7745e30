//! The clipboard: the selection CLIPBOARD of X, as text.
//!
//! X keeps no clipboard. Who has copied something owns the selection and answers whoever asks, for as long as it owns
//! it. So a text that was written here is answered by a thread of its own with its own connection; it ends when
//! somebody else copies something, or with the desktop.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use tonic::Status;
use x11rb::{
    connection::{Connection, RequestConnection},
    protocol::{
        Event,
        xproto::{
            Atom, AtomEnum, ConnectionExt as _, EventMask, PropMode, Property, SelectionNotifyEvent,
            SelectionRequestEvent, Timestamp, Window,
        },
    },
    wrapper::ConnectionExt as _,
};

use super::display::{Display, DisplayError};

/// Bytes, both ways. One request of X carries it.
const LIMIT: usize = 1024 * 1024;
/// For a program that owns the selection, between two signs of life.
const PATIENCE: Duration = Duration::from_secs(2);
/// Words of 4 bytes; far more than the limit.
const LONGEST_PROPERTY: u32 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClipboardError {
    #[error("a text of {0} bytes is too long for the clipboard: at most {LIMIT}")]
    TooLong(usize),
    #[error("what is in the clipboard is longer than {LIMIT} bytes")]
    TooMuch,
    #[error("the program that has the clipboard does not answer")]
    NoAnswer,
    #[error("another program took the clipboard at the same moment; try again")]
    Taken,
    #[error("a thread for the clipboard: {0}")]
    Thread(std::io::Error),
}

impl From<ClipboardError> for Status {
    fn from(error: ClipboardError) -> Self {
        match error {
            ClipboardError::TooLong(_) => Status::invalid_argument(error.to_string()),
            ClipboardError::TooMuch | ClipboardError::Thread(_) => {
                Status::resource_exhausted(error.to_string())
            }
            ClipboardError::NoAnswer | ClipboardError::Taken => Status::aborted(error.to_string()),
        }
    }
}

x11rb::atom_manager! {
    Atoms: AtomsCookie {
        CLIPBOARD,
        INCR,
        ROOST_CLIPBOARD,
        TARGETS,
        TEXT,
        TIMESTAMP,
        UTF8_STRING,
        TEXT_PLAIN: b"text/plain",
        TEXT_PLAIN_UTF8: b"text/plain;charset=utf-8",
    }
}

/// A connection of its own with a window that nobody sees.
struct Desk {
    display: Display,
    atoms: Atoms,
    window: Window,
}

impl Desk {
    fn new(display: Display) -> Result<Self, DisplayError> {
        let atoms = Atoms::new(&display.connection)?.reply()?;
        let window = display.hidden_window()?;
        Ok(Self { display, atoms, window })
    }

    fn owner(&self) -> Result<Window, DisplayError> {
        Ok(self.display.connection.get_selection_owner(self.atoms.CLIPBOARD)?.reply()?.owner)
    }

    /// Takes what lies in our property, and so tells the owner to go on.
    fn take(&self) -> Result<(Atom, Vec<u8>), DisplayError> {
        let (connection, any) = (&self.display.connection, AtomEnum::ANY);
        let property = self.atoms.ROOST_CLIPBOARD;
        let taken =
            connection.get_property(true, self.window, property, any, 0, LONGEST_PROPERTY)?.reply()?;
        if taken.bytes_after > 0 || taken.value.len() > LIMIT {
            return Err(ClipboardError::TooMuch.into());
        }
        Ok((taken.type_, taken.value))
    }

    /// `None` when the owner has nothing of this kind.
    fn convert(&self, target: Atom) -> Result<Option<Vec<u8>>, DisplayError> {
        let Atoms { CLIPBOARD, ROOST_CLIPBOARD, INCR, .. } = self.atoms;
        let time = self.display.time(self.window)?;
        self.display.connection.delete_property(self.window, ROOST_CLIPBOARD)?;
        let connection = &self.display.connection;
        connection.convert_selection(self.window, CLIPBOARD, target, ROOST_CLIPBOARD, time)?;
        connection.flush()?;
        let notified = self.wait(|event| match event {
            Event::SelectionNotify(notice) => Some(notice.property),
            _ => None,
        })?;
        if notified == x11rb::NONE {
            return Ok(None);
        }
        let (kind, value) = self.take()?;
        if kind != INCR {
            return Ok(Some(value));
        }
        // In pieces, each put there when the last has been taken; an empty one is the end.
        let mut whole = Vec::new();
        loop {
            self.wait(|event| match event {
                Event::PropertyNotify(change)
                    if change.atom == ROOST_CLIPBOARD && change.state == Property::NEW_VALUE =>
                {
                    Some(())
                }
                _ => None,
            })?;
            let (_, piece) = self.take()?;
            if piece.is_empty() {
                return Ok(Some(whole));
            }
            whole.extend_from_slice(&piece);
            if whole.len() > LIMIT {
                return Err(ClipboardError::TooMuch.into());
            }
        }
    }

    fn wait<R>(&self, wanted: impl Fn(Event) -> Option<R>) -> Result<R, DisplayError> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(event) = self.display.next_event(deadline)? {
            if let Some(found) = wanted(event) {
                return Ok(found);
            }
        }
        Err(ClipboardError::NoAnswer.into())
    }
}

/// The text in the clipboard; empty where there is none.
pub(super) fn read(display: Display) -> Result<String, DisplayError> {
    let desk = Desk::new(display)?;
    if desk.owner()? == x11rb::NONE {
        return Ok(String::new());
    }
    if let Some(text) = desk.convert(desk.atoms.UTF8_STRING)? {
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    // An old program; its text is Latin-1.
    let text = desk.convert(AtomEnum::STRING.into())?.unwrap_or_default();
    Ok(text.into_iter().map(char::from).collect())
}

/// Returns when everybody who asks gets the text.
pub(super) fn write(display: Display, text: String) -> Result<(), DisplayError> {
    if text.len() > LIMIT {
        return Err(ClipboardError::TooLong(text.len()).into());
    }
    let desk = Desk::new(display)?;
    // The server and our requests are made for this, but who knows which server it is.
    if desk.display.connection.maximum_request_bytes() < text.len() + 64 {
        return Err(DisplayError::Lacks("requests of a megabyte (BIG-REQUESTS)"));
    }
    let since = desk.display.time(desk.window)?;
    desk.display.connection.set_selection_owner(desk.window, desk.atoms.CLIPBOARD, since)?;
    if desk.owner()? != desk.window {
        return Err(ClipboardError::Taken.into());
    }
    let (began, begun) = mpsc::channel();
    let serve = move || {
        if began.send(()).is_err() {
            return; // Nobody waits any more: the agent ends.
        }
        let owner = Owner { desk, text, since };
        if let Err(error) = owner.serve() {
            tracing::debug!(%error, "the clipboard's text is gone");
        }
    };
    std::thread::Builder::new().name("clipboard".to_owned()).spawn(serve).map_err(ClipboardError::Thread)?;
    // A thread that ended before it began has panicked, and nobody would answer.
    begun.recv().map_err(|_| ClipboardError::NoAnswer.into())
}

struct Owner {
    desk: Desk,
    text: String,
    since: Timestamp,
}

impl Owner {
    /// Until somebody else has the selection.
    fn serve(self) -> Result<(), DisplayError> {
        let connection = &self.desk.display.connection;
        loop {
            match connection.wait_for_event()? {
                Event::SelectionClear(_) => return Ok(()),
                Event::SelectionRequest(request) => self.answer(&request)?,
                // Whoever asked is gone.
                Event::Error(error) => tracing::debug!(?error, "an answer from the clipboard"),
                _ => {}
            }
        }
    }

    fn answer(&self, request: &SelectionRequestEvent) -> Result<(), DisplayError> {
        let atoms = &self.desk.atoms;
        let connection = &self.desk.display.connection;
        // Old programs name no property and mean the target's.
        let property = if request.property == x11rb::NONE { request.target } else { request.property };
        let texts = [atoms.UTF8_STRING, atoms.TEXT_PLAIN_UTF8, atoms.TEXT_PLAIN, atoms.TEXT];
        let put32 = |kind: AtomEnum, values: &[u32]| {
            connection.change_property32(PropMode::REPLACE, request.requestor, property, kind, values)
        };
        let text = |kind: Atom| {
            let bytes = self.text.as_bytes();
            connection.change_property8(PropMode::REPLACE, request.requestor, property, kind, bytes)
        };
        let answered = match request.target {
            target if target == atoms.TARGETS => {
                let offered = [&[atoms.TARGETS, atoms.TIMESTAMP], &texts[..]].concat();
                put32(AtomEnum::ATOM, &offered)?;
                property
            }
            target if target == atoms.TIMESTAMP => {
                put32(AtomEnum::INTEGER, &[self.since])?;
                property
            }
            target if target == atoms.TEXT => {
                text(atoms.UTF8_STRING)?;
                property
            }
            target if texts.contains(&target) => {
                text(target)?;
                property
            }
            _ => x11rb::NONE,
        };
        let notice = SelectionNotifyEvent {
            response_type: x11rb::protocol::xproto::SELECTION_NOTIFY_EVENT,
            sequence: 0,
            time: request.time,
            requestor: request.requestor,
            selection: request.selection,
            target: request.target,
            property: answered,
        };
        connection.send_event(false, request.requestor, EventMask::NO_EVENT, notice)?;
        connection.flush()?;
        Ok(())
    }
}
