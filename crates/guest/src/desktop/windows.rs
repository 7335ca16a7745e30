//! The windows of programs, through the window manager (EWMH).
//!
//! Position and size are of what a person sees: with the frame that the window manager draws, without the shadow that
//! a program draws itself. So what was asked for is what is listed afterwards, and a click at a corner hits it.
//!
//! Changes are asked of the window manager, which may do them when and how it likes. Whoever asks waits on a
//! connection of its own for the events that tell of it.

use std::time::{Duration, Instant};

use roost_guest_proto::v1::{self as proto, WindowState, change_window_request::Change};
use tonic::Status;
use x11rb::{
    connection::Connection,
    cookie::Cookie,
    errors::ReplyError,
    protocol::xproto::{
        AtomEnum, ChangeWindowAttributesAux, ClientMessageEvent, ConnectionExt as _, EventMask,
        GetPropertyReply, Window,
    },
    rust_connection::RustConnection,
};

use super::display::{Display, DisplayError};

/// For a window manager that does what it was asked. Under emulation on a busy host it has taken seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before the keyboard is asked for once more.
const FOCUS_PATIENCE: Duration = Duration::from_secs(1);
/// Without an event for this long, a window has the place it will have.
const SETTLED: Duration = Duration::from_millis(200);
/// Words of 4 bytes. A desktop with more windows, or a longer title, is cut.
const LONGEST_LIST: u32 = 4096;
const LONGEST_TEXT: u32 = 1024;
/// "The request comes from a tool of the user", which window managers obey.
const SOURCE_PAGER: u32 = 2;
const ICONIC: u32 = 3;
const STATE_REMOVE: u32 = 0;
const STATE_ADD: u32 = 1;
const GRAVITY_NORTH_WEST: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum WindowError {
    #[error("there is no window {0:#x}; list the windows to see which there are")]
    Unknown(Window),
    #[error("a window of {width}x{height} pixels is not possible: each side is 1 to 32767")]
    Size { width: u32, height: u32 },
    #[error("a change of an unknown kind")]
    UnknownChange,
}

impl From<WindowError> for Status {
    fn from(error: WindowError) -> Self {
        match error {
            WindowError::Unknown(_) => Status::not_found(error.to_string()),
            WindowError::Size { .. } | WindowError::UnknownChange => {
                Status::invalid_argument(error.to_string())
            }
        }
    }
}

x11rb::atom_manager! {
    Atoms: AtomsCookie {
        UTF8_STRING,
        WM_CHANGE_STATE,
        _GTK_FRAME_EXTENTS,
        _NET_ACTIVE_WINDOW,
        _NET_CLIENT_LIST,
        _NET_CLIENT_LIST_STACKING,
        _NET_CLOSE_WINDOW,
        _NET_FRAME_EXTENTS,
        _NET_MOVERESIZE_WINDOW,
        _NET_SUPPORTING_WM_CHECK,
        _NET_WM_NAME,
        _NET_WM_STATE,
        _NET_WM_STATE_HIDDEN,
        _NET_WM_STATE_MAXIMIZED_HORZ,
        _NET_WM_STATE_MAXIMIZED_VERT,
        _NET_WM_WINDOW_TYPE,
        _NET_WM_WINDOW_TYPE_DESKTOP,
        _NET_WM_WINDOW_TYPE_DOCK,
    }
}

/// What is known of window managers and their windows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    atoms: Atoms,
}

/// How far what is seen reaches beyond the program's window on each side; negative where the program's window
/// has a shadow in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Border {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

impl Border {
    /// From the window manager's frame and the program's own shadow (left, right, top, bottom).
    fn new(frame: Option<[u32; 4]>, shadow: Option<[u32; 4]>) -> Self {
        let side = |index: usize| {
            let of = |extents: Option<[u32; 4]>| {
                extents.map_or(0, |sides| i32::try_from(sides[index]).unwrap_or(0))
            };
            of(frame) - of(shadow)
        };
        Self { left: side(0), right: side(1), top: side(2), bottom: side(3) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    x: i32,
    y: i32,
    width: u32,
    height: u32,
}

impl Windows {
    pub(super) fn new(display: &Display) -> Result<Self, DisplayError> {
        Ok(Self { atoms: Atoms::new(&display.connection)?.reply()? })
    }

    /// The topmost first.
    pub(super) fn list(&self, display: &Display) -> Result<Vec<proto::Window>, DisplayError> {
        let active = self.active(display)?;
        // All questions first: the answers then come at the cost of one.
        let asked: Vec<_> = self
            .ids(display)?
            .into_iter()
            .map(|window| Ok((window, self.ask(display, window)?)))
            .collect::<Result<_, DisplayError>>()?;
        let mut windows = Vec::with_capacity(asked.len());
        for (id, questions) in asked.into_iter().rev() {
            match questions.answer(&self.atoms, id, active) {
                Ok(Some(window)) => windows.push(window),
                Ok(None) => {}
                // Closed in the meantime.
                Err(DisplayError::Request(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(windows)
    }

    /// What the window manager calls itself.
    pub(super) fn manager(&self, display: &Display) -> Result<Option<String>, DisplayError> {
        let (check, kind) = (self.atoms._NET_SUPPORTING_WM_CHECK, AtomEnum::WINDOW.into());
        let property = get(display, display.root, check, kind, 1)?.reply()?;
        let Some(window) = property.value32().and_then(|mut windows| windows.next()) else { return Ok(None) };
        let kind = self.atoms.UTF8_STRING;
        match get(display, window, self.atoms._NET_WM_NAME, kind, LONGEST_TEXT)?.reply() {
            Ok(name) => Ok(Some(String::from_utf8_lossy(&name.value).into_owned())),
            // It has ended and left the property behind.
            Err(ReplyError::X11Error(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn ids(&self, display: &Display) -> Result<Vec<Window>, DisplayError> {
        for list in [self.atoms._NET_CLIENT_LIST_STACKING, self.atoms._NET_CLIENT_LIST] {
            let property =
                get(display, display.root, list, AtomEnum::WINDOW.into(), LONGEST_LIST)?.reply()?;
            if let Some(ids) = property.value32() {
                return Ok(ids.collect());
            }
        }
        Ok(Vec::new())
    }

    fn active(&self, display: &Display) -> Result<Option<Window>, DisplayError> {
        let kind = AtomEnum::WINDOW.into();
        let active = get(display, display.root, self.atoms._NET_ACTIVE_WINDOW, kind, 1)?.reply()?;
        Ok(active.value32().and_then(|mut windows| windows.next()).filter(|window| *window != 0))
    }

    fn ask<'d>(&self, display: &'d Display, window: Window) -> Result<Questions<'d>, DisplayError> {
        let connection = &display.connection;
        let atoms = &self.atoms;
        let property = |name, kind, length| get(display, window, name, kind, length);
        Ok(Questions {
            name: property(atoms._NET_WM_NAME, atoms.UTF8_STRING, LONGEST_TEXT)?,
            old_name: property(AtomEnum::WM_NAME.into(), AtomEnum::ANY.into(), LONGEST_TEXT)?,
            class: property(AtomEnum::WM_CLASS.into(), AtomEnum::STRING.into(), LONGEST_TEXT)?,
            kind: property(atoms._NET_WM_WINDOW_TYPE, AtomEnum::ATOM.into(), 16)?,
            states: property(atoms._NET_WM_STATE, AtomEnum::ATOM.into(), 32)?,
            frame: property(atoms._NET_FRAME_EXTENTS, AtomEnum::CARDINAL.into(), 4)?,
            shadow: property(atoms._GTK_FRAME_EXTENTS, AtomEnum::CARDINAL.into(), 4)?,
            geometry: connection.get_geometry(window)?,
            origin: connection.translate_coordinates(window, display.root, 0, 0)?,
        })
    }

    fn one(&self, display: &Display, window: Window) -> Result<proto::Window, DisplayError> {
        let active = self.active(display)?;
        match self.ask(display, window)?.answer(&self.atoms, window, active) {
            Ok(Some(found)) => Ok(found),
            Ok(None) | Err(DisplayError::Request(_)) => Err(WindowError::Unknown(window).into()),
            Err(error) => Err(error),
        }
    }

    fn border(&self, display: &Display, window: Window) -> Result<Border, DisplayError> {
        let extents = |name| get(display, window, name, AtomEnum::CARDINAL.into(), 4);
        let (frame, shadow) =
            (extents(self.atoms._NET_FRAME_EXTENTS)?, extents(self.atoms._GTK_FRAME_EXTENTS)?);
        Ok(Border::new(four(&frame.reply()?), four(&shadow.reply()?)))
    }

    /// Asks the window manager, and waits until it is so. `display` is the caller's own.
    pub(super) fn change(
        &self,
        display: &Display,
        window: Window,
        change: Option<Change>,
    ) -> Result<(), DisplayError> {
        let change = change.ok_or(WindowError::UnknownChange)?;
        let listen = |of: Window, mask| {
            let attributes = ChangeWindowAttributesAux::new().event_mask(mask);
            display.connection.change_window_attributes(of, &attributes)
        };
        listen(display.root, EventMask::PROPERTY_CHANGE)?;
        let listed = self.ids(display)?;
        if !listed.contains(&window) {
            return Err(WindowError::Unknown(window).into());
        }
        match listen(window, EventMask::PROPERTY_CHANGE | EventMask::STRUCTURE_NOTIFY)?.check() {
            Ok(()) => {}
            Err(ReplyError::X11Error(_)) => return Err(WindowError::Unknown(window).into()),
            Err(error) => return Err(error.into()),
        }
        let before = self.one(display, window)?;
        let atoms = &self.atoms;
        match change {
            Change::State(state) => match WindowState::try_from(state) {
                Ok(WindowState::Focused) => {
                    // Without a time the window manager takes that of the last event it saw, and the X server
                    // refuses to give the keyboard away as of a time at which somebody else got it later.
                    let now = display.time(display.hidden_window()?)?;
                    let done = |now: &proto::Window| now.focused && !now.minimized;
                    send(display, window, atoms._NET_ACTIVE_WINDOW, [SOURCE_PAGER, now, 0, 0, 0])?;
                    if self.wait_for(display, window, FOCUS_PATIENCE, done)? {
                        return Ok(());
                    }
                    // Behind its back somebody may have given the keyboard away; then it does it the second time.
                    let now = display.time(display.hidden_window()?)?;
                    send(display, window, atoms._NET_ACTIVE_WINDOW, [SOURCE_PAGER, now, 0, 0, 0])?;
                    self.wait(display, window, done)
                }
                Ok(WindowState::Maximized) => {
                    self.maximize(display, window, STATE_ADD)?;
                    // The state comes before the size.
                    let grown = |now: &proto::Window| before.maximized || place_of(now) != place_of(&before);
                    self.wait(display, window, |now| now.maximized && grown(now))
                }
                Ok(WindowState::Minimized) => {
                    send(display, window, atoms.WM_CHANGE_STATE, [ICONIC, 0, 0, 0, 0])?;
                    self.wait(display, window, |now| now.minimized)
                }
                Ok(WindowState::Closed) => {
                    send(display, window, atoms._NET_CLOSE_WINDOW, [0, SOURCE_PAGER, 0, 0, 0])?;
                    self.wait_closed(display, window, &listed)
                }
                Ok(WindowState::Unspecified) | Err(_) => Err(WindowError::UnknownChange.into()),
            },
            Change::Position(to) => {
                let before = self.restore_size(display, before)?;
                let border = self.border(display, window)?;
                // The window manager places its frame there; a shadow is the program's own, and inside.
                let (x, y) =
                    (to.x.saturating_add(border.left.min(0)), to.y.saturating_add(border.top.min(0)));
                self.move_resize(display, window, 0b0011, [x, y, 0, 0])?;
                self.wait_place(display, &before, |now| (now.x, now.y) == (to.x, to.y))
            }
            Change::Size(to) => {
                let possible = 1..=32767;
                if !possible.contains(&to.width) || !possible.contains(&to.height) {
                    return Err(WindowError::Size { width: to.width, height: to.height }.into());
                }
                let before = self.restore_size(display, before)?;
                let border = self.border(display, window)?;
                let inner = |outer: u32, one: i32, other: i32| {
                    i32::try_from(outer).unwrap_or(i32::MAX).saturating_sub(one + other).max(1)
                };
                let width = inner(to.width, border.left, border.right);
                let height = inner(to.height, border.top, border.bottom);
                self.move_resize(display, window, 0b1100, [0, 0, width, height])?;
                self.wait_place(display, &before, |now| (now.width, now.height) == (to.width, to.height))
            }
        }
    }

    /// A window manager moves and sizes no window that fills the screen.
    fn restore_size(&self, display: &Display, before: proto::Window) -> Result<proto::Window, DisplayError> {
        if !before.maximized {
            return Ok(before);
        }
        self.maximize(display, before.id, STATE_REMOVE)?;
        self.wait(display, before.id, |now| !now.maximized && place_of(now) != place_of(&before))?;
        self.one(display, before.id)
    }

    fn maximize(&self, display: &Display, window: Window, action: u32) -> Result<(), DisplayError> {
        let both = [self.atoms._NET_WM_STATE_MAXIMIZED_VERT, self.atoms._NET_WM_STATE_MAXIMIZED_HORZ];
        send(display, window, self.atoms._NET_WM_STATE, [action, both[0], both[1], SOURCE_PAGER, 0])
    }

    /// `which` has a bit for each of x, y, width and height.
    fn move_resize(
        &self,
        display: &Display,
        window: Window,
        which: u32,
        values: [i32; 4],
    ) -> Result<(), DisplayError> {
        let flags = GRAVITY_NORTH_WEST | which << 8 | SOURCE_PAGER << 12;
        let [x, y, width, height] = values.map(i32::cast_unsigned);
        send(display, window, self.atoms._NET_MOVERESIZE_WINDOW, [flags, x, y, width, height])
    }

    /// Until it is so, or until patience ends: a window manager may have reasons not to.
    fn wait(
        &self,
        display: &Display,
        window: Window,
        done: impl Fn(&proto::Window) -> bool,
    ) -> Result<(), DisplayError> {
        if !self.wait_for(display, window, PATIENCE, done)? {
            tracing::debug!(window, "the window manager has not done it in time");
        }
        Ok(())
    }

    /// Whether it came to be so in that time.
    fn wait_for(
        &self,
        display: &Display,
        window: Window,
        patience: Duration,
        done: impl Fn(&proto::Window) -> bool,
    ) -> Result<bool, DisplayError> {
        let deadline = Instant::now() + patience;
        loop {
            if done(&self.one(display, window)?) {
                return Ok(true);
            }
            if display.next_event(deadline)?.is_none() {
                return Ok(false);
            }
        }
    }

    /// Until it is gone, or until its program asks its user something in a window that was not `listed` before.
    fn wait_closed(&self, display: &Display, window: Window, listed: &[Window]) -> Result<(), DisplayError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.ids(display)?;
            let asks = now.iter().any(|window| !listed.contains(window));
            if asks || !now.contains(&window) || display.next_event(deadline)?.is_none() {
                return Ok(());
            }
        }
    }

    /// The same for a place. What became of it may be another one than was asked for: windows of text have sizes in
    /// characters. It is the last one when nothing more happens.
    fn wait_place(
        &self,
        display: &Display,
        before: &proto::Window,
        done: impl Fn(&proto::Window) -> bool,
    ) -> Result<(), DisplayError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.one(display, before.id)?;
            if done(&now) {
                return Ok(());
            }
            let is_other = place_of(&now) != place_of(before);
            let deadline = if is_other { end.min(Instant::now() + SETTLED) } else { end };
            if display.next_event(deadline)?.is_none() {
                return Ok(());
            }
        }
    }
}

fn place_of(window: &proto::Window) -> Place {
    Place { x: window.x, y: window.y, width: window.width, height: window.height }
}

/// A message about a window to the window manager.
fn send(display: &Display, window: Window, kind: u32, data: [u32; 5]) -> Result<(), DisplayError> {
    let message = ClientMessageEvent::new(32, window, kind, data);
    let to = EventMask::SUBSTRUCTURE_REDIRECT | EventMask::SUBSTRUCTURE_NOTIFY;
    display.connection.send_event(false, display.root, to, message)?;
    display.connection.flush()?;
    Ok(())
}

pub(super) fn get(
    display: &Display,
    window: Window,
    property: u32,
    kind: u32,
    length: u32,
) -> Result<Cookie<'_, RustConnection, GetPropertyReply>, DisplayError> {
    Ok(display.connection.get_property(false, window, property, kind, 0, length)?)
}

fn four(property: &GetPropertyReply) -> Option<[u32; 4]> {
    property.value32()?.collect::<Vec<_>>().try_into().ok()
}

type Question<'d, R> = Cookie<'d, RustConnection, R>;

/// What is asked of a window, on its way.
struct Questions<'d> {
    name: Question<'d, GetPropertyReply>,
    old_name: Question<'d, GetPropertyReply>,
    class: Question<'d, GetPropertyReply>,
    kind: Question<'d, GetPropertyReply>,
    states: Question<'d, GetPropertyReply>,
    frame: Question<'d, GetPropertyReply>,
    shadow: Question<'d, GetPropertyReply>,
    geometry: Question<'d, x11rb::protocol::xproto::GetGeometryReply>,
    origin: Question<'d, x11rb::protocol::xproto::TranslateCoordinatesReply>,
}

impl Questions<'_> {
    /// `None` for what is no window of a program: the panel, the wallpaper.
    fn answer(
        self,
        atoms: &Atoms,
        id: Window,
        active: Option<Window>,
    ) -> Result<Option<proto::Window>, DisplayError> {
        let (name, old_name, class) = (self.name.reply()?, self.old_name.reply()?, self.class.reply()?);
        let (kind, states) = (self.kind.reply()?, self.states.reply()?);
        let (frame, shadow) = (self.frame.reply()?, self.shadow.reply()?);
        let (geometry, origin) = (self.geometry.reply()?, self.origin.reply()?);
        let has = |property: &GetPropertyReply, atom: u32| {
            property.value32().is_some_and(|mut atoms| atoms.any(|one| one == atom))
        };
        if has(&kind, atoms._NET_WM_WINDOW_TYPE_DESKTOP) || has(&kind, atoms._NET_WM_WINDOW_TYPE_DOCK) {
            return Ok(None);
        }
        let title = if name.value.is_empty() { &old_name.value } else { &name.value };
        let border = Border::new(four(&frame), four(&shadow));
        let outer = |inner: u16, one: i32, other: i32| {
            u32::try_from(i32::from(inner) + one + other).unwrap_or_default()
        };
        Ok(Some(proto::Window {
            id,
            title: String::from_utf8_lossy(title).into_owned(),
            app: class_of(&class.value),
            x: i32::from(origin.dst_x) - border.left,
            y: i32::from(origin.dst_y) - border.top,
            width: outer(geometry.width, border.left, border.right),
            height: outer(geometry.height, border.top, border.bottom),
            focused: active == Some(id),
            minimized: has(&states, atoms._NET_WM_STATE_HIDDEN),
            maximized: has(&states, atoms._NET_WM_STATE_MAXIMIZED_VERT)
                && has(&states, atoms._NET_WM_STATE_MAXIMIZED_HORZ),
        }))
    }
}

/// WM_CLASS is two texts, each with a zero at its end: the instance and the class.
fn class_of(property: &[u8]) -> String {
    let mut texts = property.split(|byte| *byte == 0);
    let instance = texts.next().unwrap_or_default();
    let class = texts.next().filter(|class| !class.is_empty()).unwrap_or(instance);
    String::from_utf8_lossy(class).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_has_the_frame_and_not_the_shadow() {
        assert_eq!(Border::new(None, None), Border::default());
        let framed = Border::new(Some([1, 2, 24, 3]), None);
        assert_eq!(framed, Border { left: 1, right: 2, top: 24, bottom: 3 });
        let shadowed = Border::new(Some([0; 4]), Some([26, 26, 23, 29]));
        assert_eq!(shadowed, Border { left: -26, right: -26, top: -23, bottom: -29 });
    }

    #[test]
    fn the_class_is_the_second_text() {
        assert_eq!(class_of(b"xterm\0XTerm\0"), "XTerm");
        assert_eq!(class_of(b"only\0"), "only");
        assert_eq!(class_of(b"only\0\0"), "only");
        assert_eq!(class_of(b""), "");
    }
}
