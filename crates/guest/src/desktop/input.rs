//! Pointer and keyboard, through the XTEST extension.
//!
//! A request is checked as a whole before anything is done. Requests take turns, so that one's keys never
//! mix with another's. What a request itself has pressed is let go when it fails or is dropped half-way;
//! what it leaves pressed on purpose stays pressed, since a drag may span requests.
//!
//! Typed text comes out the same whatever Caps Lock and the chosen layout are: both are switched off while
//! keys are pressed and put back afterwards.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use roost_guest_proto::v1::{Button, InputRequest, Scroll, input_action::Action};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use x11rb::{
    connection::{Connection, RequestConnection},
    protocol::{
        Event,
        xkb::{self, ConnectionExt as _},
        xproto::{
            self, AtomEnum, ChangeWindowAttributesAux, ClientMessageEvent, ConnectionExt as _, EventMask,
            KeyButMask, ModMask, Window,
        },
        xtest::{self, ConnectionExt as _},
    },
};

use super::{
    Session,
    display::{Display, DisplayError, DisplayHandle},
    keyboard::{Batch, Keycode, Keymap, Modifiers, NoKeyError, Spares, plan, symbols_of},
    keysym::{Characters, Keysym},
};
use crate::system::blocking;

/// More would keep everybody else's input waiting for minutes.
const TEXT_LIMIT: usize = 100_000;
const CHORD_LIMIT: usize = 16;
const SCROLL_LIMIT: u32 = 1000;
/// For a program that says when it has read its events, and for one that does not.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const NO_ANSWER_PAUSE: Duration = Duration::from_millis(100);
/// For a window manager that holds the pointer, and how often it is looked at. Under emulation on a busy host one has
/// taken seconds, and keys that are not kept back overtake the click.
const HELD_LIMIT: Duration = Duration::from_secs(10);
const HELD_PAUSE: Duration = Duration::from_millis(2);

const WHEEL_UP: u8 = 4;
const WHEEL_DOWN: u8 = 5;
const WHEEL_LEFT: u8 = 6;
const WHEEL_RIGHT: u8 = 7;

#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("`{0}` is no X keysym")]
    UnknownKeysym(String),
    #[error("a key chord needs 1-{CHORD_LIMIT} keys, not {0}")]
    ChordLength(usize),
    #[error("the character U+{code:04X} cannot be typed", code = u32::from(*.0))]
    Untypable(char),
    #[error("a text of {0} characters is too long: at most {TEXT_LIMIT} in one action")]
    TextLength(usize),
    #[error("{0} is no button")]
    UnknownButton(i32),
    #[error("{0} clicks of the wheel are too many: at most {SCROLL_LIMIT} in one action")]
    ScrollLength(u32),
    #[error("an action of an unknown kind")]
    UnknownAction,
    #[error(transparent)]
    NoKey(#[from] NoKeyError),
}

impl From<InputError> for Status {
    fn from(error: InputError) -> Self {
        match error {
            InputError::UnknownKeysym(_)
            | InputError::ChordLength(_)
            | InputError::Untypable(_)
            | InputError::TextLength(_)
            | InputError::UnknownButton(_)
            | InputError::ScrollLength(_)
            | InputError::UnknownAction => Status::invalid_argument(error.to_string()),
            InputError::NoKey(_) => Status::failed_precondition(error.to_string()),
        }
    }
}

/// An action known to make sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Move { x: i32, y: i32 },
    Press(u8),
    Release(u8),
    Click { button: u8, times: u32 },
    Type(Vec<Keysym>),
    TypeSlowly(Vec<Keysym>, Duration),
    Chord(Vec<Keysym>),
    Hold(Vec<Keysym>),
    LetGo(Vec<Keysym>),
    Pause(Duration),
}

pub(super) fn check(request: InputRequest) -> Result<Vec<Step>, InputError> {
    let mut steps = Vec::with_capacity(request.actions.len());
    for action in request.actions {
        match action.action.ok_or(InputError::UnknownAction)? {
            Action::Move(point) => steps.push(Step::Move { x: point.x, y: point.y }),
            Action::Press(button) => steps.push(Step::Press(button_number(button)?)),
            Action::Release(button) => steps.push(Step::Release(button_number(button)?)),
            Action::Scroll(scroll) => add_scroll(scroll, &mut steps)?,
            Action::TypeText(text) => steps.push(Step::Type(check_text(&text)?)),
            Action::TypeSlowly(slowly) => {
                let delay = Duration::from_millis(slowly.delay_ms.into());
                steps.push(Step::TypeSlowly(check_text(&slowly.text)?, delay));
            }
            Action::Key(chord) => steps.push(Step::Chord(check_chord(&chord.keysyms)?)),
            Action::HoldKeys(chord) => steps.push(Step::Hold(check_chord(&chord.keysyms)?)),
            Action::ReleaseKeys(chord) => steps.push(Step::LetGo(check_chord(&chord.keysyms)?)),
            Action::PauseMs(pause) => steps.push(Step::Pause(Duration::from_millis(pause.into()))),
        }
    }
    Ok(steps)
}

fn button_number(button: i32) -> Result<u8, InputError> {
    match Button::try_from(button) {
        Ok(Button::Left) => Ok(1),
        Ok(Button::Middle) => Ok(2),
        Ok(Button::Right) => Ok(3),
        Ok(Button::Unspecified) | Err(_) => Err(InputError::UnknownButton(button)),
    }
}

fn add_scroll(scroll: Scroll, steps: &mut Vec<Step>) -> Result<(), InputError> {
    let wheels = [(scroll.dx, WHEEL_LEFT, WHEEL_RIGHT), (scroll.dy, WHEEL_UP, WHEEL_DOWN)];
    for (clicks, negative, positive) in wheels {
        let times = clicks.unsigned_abs();
        if times > SCROLL_LIMIT {
            return Err(InputError::ScrollLength(times));
        }
        if times > 0 {
            steps.push(Step::Click { button: if clicks < 0 { negative } else { positive }, times });
        }
    }
    Ok(())
}

fn check_text(text: &str) -> Result<Vec<Keysym>, InputError> {
    match symbols_of(text) {
        Ok(symbols) if symbols.len() > TEXT_LIMIT => Err(InputError::TextLength(symbols.len())),
        Ok(symbols) => Ok(symbols),
        Err(character) => Err(InputError::Untypable(character)),
    }
}

fn check_chord(names: &[String]) -> Result<Vec<Keysym>, InputError> {
    if names.is_empty() || names.len() > CHORD_LIMIT {
        return Err(InputError::ChordLength(names.len()));
    }
    let known = |name: &String| {
        Keysym::from_name(name)
            .filter(|keysym| *keysym != Keysym::NONE)
            .ok_or_else(|| InputError::UnknownKeysym(name.clone()))
    };
    names.iter().map(known).collect()
}

/// Held by the request whose keys are being pressed.
pub(super) type Turn = Arc<tokio::sync::Mutex<()>>;

/// What happens between two pauses.
type Stretch = Vec<Step>;

pub(super) async fn perform(
    handle: Arc<DisplayHandle<Session>>,
    turn: Turn,
    steps: Vec<Step>,
    stop: CancellationToken,
) -> Result<(), Status> {
    let _turn = tokio::select! {
        turn = turn.lock_owned() => turn,
        () = stop.cancelled() => return Err(dropped()),
    };
    let desktop = handle.clone();
    let session = blocking(move || desktop.current()).await?;
    let mut pressed = Pressed::default();
    match perform_steps(&session, steps, &stop, &mut pressed).await {
        Ok(()) => Ok(()),
        Err(status) => {
            // What `DisplayError::Lost` became; there is nothing to let go on a connection that is no more.
            if status.code() == Code::Unavailable {
                handle.forget(&session);
                return Err(status);
            }
            let release = blocking(move || session.hands.release(&session.display, pressed));
            if let Err(error) = release.await {
                tracing::warn!(%error, "let go of keys and buttons after an error");
            }
            Err(status)
        }
    }
}

fn dropped() -> Status {
    Status::cancelled("the call was dropped")
}

async fn perform_steps(
    session: &Arc<Session>,
    steps: Vec<Step>,
    stop: &CancellationToken,
    pressed: &mut Pressed,
) -> Result<(), Status> {
    let mut stretch = Stretch::new();
    for step in steps {
        match step {
            Step::Pause(pause) => {
                perform_stretch(session, std::mem::take(&mut stretch), pressed).await?;
                rest(pause, stop).await?;
            }
            Step::TypeSlowly(symbols, delay) => {
                perform_stretch(session, std::mem::take(&mut stretch), pressed).await?;
                let mut symbols = symbols.into_iter().peekable();
                while let Some(symbol) = symbols.next() {
                    perform_stretch(session, vec![Step::Type(vec![symbol])], pressed).await?;
                    if symbols.peek().is_some() {
                        rest(delay, stop).await?;
                    }
                }
            }
            step => stretch.push(step),
        }
    }
    perform_stretch(session, stretch, pressed).await
}

async fn rest(pause: Duration, stop: &CancellationToken) -> Result<(), Status> {
    tokio::select! {
        () = tokio::time::sleep(pause) => Ok(()),
        () = stop.cancelled() => Err(dropped()),
    }
}

async fn perform_stretch(
    session: &Arc<Session>,
    stretch: Stretch,
    pressed: &mut Pressed,
) -> Result<(), Status> {
    if stretch.is_empty() {
        return Ok(());
    }
    let session = session.clone();
    let mut moved = std::mem::take(pressed);
    let work = move || -> Result<_, Status> {
        let result = session.hands.perform(&session.display, &stretch, &mut moved);
        Ok((moved, result))
    };
    let (returned, result) = blocking(work).await?;
    *pressed = returned;
    result.map_err(Status::from)
}

/// Keys and buttons that a request has pressed and not released.
#[derive(Debug, Default)]
struct Pressed(Vec<Contact>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    Key(Keycode),
    Button(u8),
}

x11rb::atom_manager! {
    Atoms: AtomsCookie {
        WM_PROTOCOLS,
        _NET_ACTIVE_WINDOW,
        _NET_WM_PING,
    }
}

/// What presses the keys.
#[derive(Debug)]
pub(super) struct Hands {
    atoms: Atoms,
    characters: Characters,
    keyboard: Mutex<KeyboardState>,
}

#[derive(Debug, Default)]
struct KeyboardState {
    spares: Spares,
    pings: u32,
}

impl Hands {
    pub(super) fn new(display: &Display) -> Result<Self, DisplayError> {
        let connection = &display.connection;
        if connection.extension_information(xtest::X11_EXTENSION_NAME)?.is_none() {
            return Err(DisplayError::Lacks("the XTEST extension"));
        }
        if connection.extension_information(xkb::X11_EXTENSION_NAME)?.is_none()
            || !connection.xkb_use_extension(1, 0)?.reply()?.supported
        {
            return Err(DisplayError::Lacks("the XKB extension"));
        }
        let atoms = Atoms::new(connection)?.reply()?;
        Ok(Self { atoms, characters: Characters::read(), keyboard: Mutex::default() })
    }

    /// Returns when the server has taken the last step.
    fn perform(&self, display: &Display, steps: &[Step], pressed: &mut Pressed) -> Result<(), DisplayError> {
        // Turns are taken outside; the lock only says so to the compiler.
        let mut keyboard = self.keyboard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fingers = Fingers { display, pressed };
        let mut buttons_up = KeyButMask::default();
        for step in steps {
            if matches!(step, Step::Type(_) | Step::Chord(_) | Step::Hold(_) | Step::LetGo(_)) {
                await_pointer(display, std::mem::take(&mut buttons_up))?;
            }
            match step {
                Step::Move { x, y } => fingers.move_to(*x, *y)?,
                Step::Press(button) => {
                    fingers.press(Contact::Button(*button))?;
                    buttons_up = buttons_up.remove(button_mask(*button));
                }
                Step::Release(button) => {
                    fingers.release(Contact::Button(*button))?;
                    buttons_up |= button_mask(*button);
                }
                Step::Click { button, times } => {
                    buttons_up |= button_mask(*button);
                    for _ in 0..*times {
                        fingers.press(Contact::Button(*button))?;
                        fingers.release(Contact::Button(*button))?;
                    }
                }
                Step::Type(symbols) => {
                    let locks = Locks::open(display)?;
                    let typed = self.type_symbols(&mut fingers, &mut keyboard, symbols);
                    locks.restore(display)?;
                    typed?;
                }
                Step::Chord(symbols) => {
                    // A chord with a lock key in it is about that lock.
                    let about_locks =
                        symbols.iter().any(|s| matches!(*s, Keysym::CAPS_LOCK | Keysym::SHIFT_LOCK));
                    let locks = if about_locks { Locks::default() } else { Locks::open(display)? };
                    let done = self.chord_keys(display, &mut keyboard, symbols).and_then(|keys| {
                        fingers.press_all(&keys)?;
                        fingers.release_those(&keys)
                    });
                    locks.restore(display)?;
                    done?;
                }
                // What is held is held for what comes later, under whatever locks there are then.
                Step::Hold(symbols) => {
                    fingers.press_all(&self.chord_keys(display, &mut keyboard, symbols)?)?;
                }
                Step::LetGo(symbols) => {
                    fingers.release_those(&self.chord_keys(display, &mut keyboard, symbols)?)?;
                }
                // Split off by `perform_steps`.
                Step::TypeSlowly(..) | Step::Pause(_) => {}
            }
        }
        synchronize(display)?;
        await_pointer(display, buttons_up)
    }

    fn release(&self, display: &Display, mut pressed: Pressed) -> Result<(), DisplayError> {
        let mut fingers = Fingers { display, pressed: &mut pressed };
        fingers.release_all()?;
        synchronize(display)
    }

    fn type_symbols(
        &self,
        fingers: &mut Fingers<'_>,
        keyboard: &mut KeyboardState,
        symbols: &[Keysym],
    ) -> Result<(), DisplayError> {
        let (keymap, batches) = self.plan(fingers.display, keyboard, symbols)?;
        let mut held = Modifiers::default();
        for batch in &batches {
            self.prepare(fingers.display, keyboard, batch)?;
            for stroke in &batch.strokes {
                fingers.hold(&keymap, &mut held, stroke.modifiers)?;
                fingers.press(Contact::Key(stroke.key))?;
                fingers.release(Contact::Key(stroke.key))?;
            }
            synchronize(fingers.display)?;
        }
        fingers.hold(&keymap, &mut held, Modifiers::default())
    }

    /// The keys of a chord, in the order in which they are pressed.
    fn chord_keys(
        &self,
        display: &Display,
        keyboard: &mut KeyboardState,
        symbols: &[Keysym],
    ) -> Result<Vec<Contact>, DisplayError> {
        let (keymap, batches) = self.plan(display, keyboard, symbols)?;
        // All keys are down at once, so each needs its own.
        let [batch] = &batches[..] else {
            return Err(InputError::from(NoKeyError(symbols[symbols.len() - 1])).into());
        };
        self.prepare(display, keyboard, batch)?;
        let has_shift = symbols.iter().any(|s| matches!(*s, Keysym::SHIFT_L | Keysym::SHIFT_R));
        let mut keys = Vec::new();
        for stroke in &batch.strokes {
            let shift = keymap.shift.filter(|_| stroke.modifiers.shift && !has_shift);
            let level3 = keymap.level3.filter(|_| stroke.modifiers.level3);
            for key in [shift, level3, Some(stroke.key)].into_iter().flatten().map(Contact::Key) {
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        Ok(keys)
    }

    fn plan(
        &self,
        display: &Display,
        keyboard: &mut KeyboardState,
        symbols: &[Keysym],
    ) -> Result<(Keymap, Vec<Batch>), DisplayError> {
        let connection = &display.connection;
        // Read anew every time: it is a few kilobytes, and anybody may have changed it.
        let (first, last) = (connection.setup().min_keycode, connection.setup().max_keycode);
        let map = connection.get_keyboard_mapping(first, last - first + 1)?.reply()?;
        let keymap = Keymap::new(first, usize::from(map.keysyms_per_keycode), &map.keysyms, &self.characters);
        if !keyboard.spares.agree_with(&keymap) {
            keyboard.spares = Spares::default();
        }
        let batches =
            plan(symbols, &keymap, &mut keyboard.spares, &self.characters).map_err(InputError::from)?;
        Ok((keymap, batches))
    }

    fn prepare(
        &self,
        display: &Display,
        keyboard: &mut KeyboardState,
        batch: &Batch,
    ) -> Result<(), DisplayError> {
        if batch.reuses {
            self.await_programs(display, keyboard)?;
        }
        if batch.changes.is_empty() {
            return Ok(());
        }
        for (key, symbol) in &batch.changes {
            // Twice: alone it would be the lower case of a pair when it has one.
            display.connection.change_keyboard_mapping(1, *key, 2, &[symbol.0, symbol.0])?;
        }
        synchronize(display)
    }

    /// Waits until the program with the focus has read every event sent to it so far. Those that take part
    /// in the window manager's pings answer in the order of their events; for the others there is nothing
    /// to wait for but time.
    fn await_programs(&self, display: &Display, keyboard: &mut KeyboardState) -> Result<(), DisplayError> {
        let Some(window) = self.answering_window(display)? else {
            std::thread::sleep(NO_ANSWER_PAUSE);
            return Ok(());
        };
        let connection = &display.connection;
        let listen = |mask| {
            let attributes = ChangeWindowAttributesAux::new().event_mask(mask);
            connection.change_window_attributes(display.root, &attributes).map(|_| ())
        };
        // Answers are sent to the root window.
        listen(EventMask::SUBSTRUCTURE_NOTIFY)?;
        keyboard.pings = keyboard.pings.wrapping_add(1);
        let number = keyboard.pings;
        let data = [self.atoms._NET_WM_PING, number, window, 0, 0];
        let ping = ClientMessageEvent::new(32, window, self.atoms.WM_PROTOCOLS, data);
        connection.send_event(false, window, EventMask::NO_EVENT, ping)?;
        connection.flush()?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        while let Some(event) = display.next_event(deadline)? {
            if let Event::ClientMessage(message) = event
                && message.type_ == self.atoms.WM_PROTOCOLS
                && message.data.as_data32()[..2] == [self.atoms._NET_WM_PING, number]
            {
                break;
            }
        }
        listen(EventMask::NO_EVENT)?;
        Ok(())
    }

    fn answering_window(&self, display: &Display) -> Result<Option<Window>, DisplayError> {
        let connection = &display.connection;
        let property = |window, property, kind| connection.get_property(false, window, property, kind, 0, 64);
        let active = property(display.root, self.atoms._NET_ACTIVE_WINDOW, AtomEnum::WINDOW)?.reply()?;
        let Some(window) = active.value32().and_then(|mut windows| windows.next()).filter(|w| *w != 0) else {
            return Ok(None);
        };
        let protocols = match property(window, self.atoms.WM_PROTOCOLS, AtomEnum::ATOM)?.reply() {
            Ok(protocols) => protocols,
            // Closed in the meantime.
            Err(x11rb::errors::ReplyError::X11Error(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let answers =
            protocols.value32().is_some_and(|mut atoms| atoms.any(|atom| atom == self.atoms._NET_WM_PING));
        Ok(answers.then_some(window))
    }
}

/// The state bit of a button; the sideways wheel has none.
fn button_mask(button: u8) -> KeyButMask {
    match button {
        1 => KeyButMask::BUTTON1,
        2 => KeyButMask::BUTTON2,
        3 => KeyButMask::BUTTON3,
        4 => KeyButMask::BUTTON4,
        5 => KeyButMask::BUTTON5,
        _ => KeyButMask::default(),
    }
}

/// Waits until buttons that were released are up. A window manager holds the pointer while it looks at a
/// click (a synchronous grab): what the pointer does next is queued meanwhile, but keys are not, and would
/// overtake the click. X tells nobody when the queue is through; the state of the buttons shows it.
fn await_pointer(display: &Display, up: KeyButMask) -> Result<(), DisplayError> {
    if up == KeyButMask::default() {
        return Ok(());
    }
    let deadline = Instant::now() + HELD_LIMIT;
    loop {
        let pointer = display.connection.query_pointer(display.root)?.reply()?;
        if pointer.mask & up == KeyButMask::default() || Instant::now() > deadline {
            return Ok(());
        }
        std::thread::sleep(HELD_PAUSE);
    }
}

/// The server has done everything asked so far; events nobody asked for are thrown away.
fn synchronize(display: &Display) -> Result<(), DisplayError> {
    display.connection.get_input_focus()?.reply()?;
    while let Some(event) = display.connection.poll_for_event()? {
        if let Event::Error(error) = event {
            tracing::warn!(?error, "the X server refused a step of an input");
        }
    }
    Ok(())
}

/// Caps Lock and the layout as they were, while keys are pressed without them.
#[derive(Debug, Default)]
struct Locks {
    caps: bool,
    group: u8,
}

impl Locks {
    fn open(display: &Display) -> Result<Self, DisplayError> {
        let state = display.connection.xkb_get_state(xkb::ID::USE_CORE_KBD.into())?.reply()?;
        let locks =
            Self { caps: state.locked_mods.contains(ModMask::LOCK), group: state.locked_group.into() };
        if locks.caps || locks.group != 0 {
            Self::default().set(display, locks.caps)?;
        }
        Ok(locks)
    }

    fn restore(self, display: &Display) -> Result<(), DisplayError> {
        if self.caps || self.group != 0 { self.set(display, self.caps) } else { Ok(()) }
    }

    fn set(&self, display: &Display, change_caps: bool) -> Result<(), DisplayError> {
        let none = ModMask::from(0u8);
        let affected = if change_caps { ModMask::LOCK } else { none };
        let caps = if self.caps { ModMask::LOCK } else { none };
        display.connection.xkb_latch_lock_state(
            xkb::ID::USE_CORE_KBD.into(),
            affected,
            caps,
            true,
            xkb::Group::from(self.group),
            none,
            false,
            0,
        )?;
        Ok(())
    }
}

/// Sends the events and remembers what is down.
struct Fingers<'a> {
    display: &'a Display,
    pressed: &'a mut Pressed,
}

impl Fingers<'_> {
    fn send(&self, kind: u8, detail: u8, x: i16, y: i16) -> Result<(), DisplayError> {
        let Display { connection, root, .. } = self.display;
        connection.xtest_fake_input(kind, detail, x11rb::CURRENT_TIME, *root, x, y, 0)?;
        Ok(())
    }

    /// The server keeps the pointer on the screen; it only has to fit the request.
    fn move_to(&self, x: i32, y: i32) -> Result<(), DisplayError> {
        let clamp = |value: i32| i16::try_from(value.max(0)).unwrap_or(i16::MAX);
        self.send(xproto::MOTION_NOTIFY_EVENT, 0, clamp(x), clamp(y))
    }

    fn press(&mut self, contact: Contact) -> Result<(), DisplayError> {
        match contact {
            Contact::Key(key) => self.send(xproto::KEY_PRESS_EVENT, key, 0, 0)?,
            Contact::Button(button) => self.send(xproto::BUTTON_PRESS_EVENT, button, 0, 0)?,
        }
        self.pressed.0.push(contact);
        Ok(())
    }

    fn release(&mut self, contact: Contact) -> Result<(), DisplayError> {
        match contact {
            Contact::Key(key) => self.send(xproto::KEY_RELEASE_EVENT, key, 0, 0)?,
            Contact::Button(button) => self.send(xproto::BUTTON_RELEASE_EVENT, button, 0, 0)?,
        }
        self.pressed.0.retain(|pressed| *pressed != contact);
        Ok(())
    }

    fn press_all(&mut self, contacts: &[Contact]) -> Result<(), DisplayError> {
        contacts.iter().try_for_each(|contact| self.press(*contact))
    }

    fn release_those(&mut self, contacts: &[Contact]) -> Result<(), DisplayError> {
        contacts.iter().rev().try_for_each(|contact| self.release(*contact))
    }

    fn release_all(&mut self) -> Result<(), DisplayError> {
        while let Some(contact) = self.pressed.0.last().copied() {
            self.release(contact)?;
        }
        Ok(())
    }

    /// Changes the modifiers that are held to those that are wanted.
    fn hold(&mut self, keymap: &Keymap, held: &mut Modifiers, wanted: Modifiers) -> Result<(), DisplayError> {
        let keys = [(keymap.shift, held.shift, wanted.shift), (keymap.level3, held.level3, wanted.level3)];
        for (key, held, wanted) in keys {
            match (key, held, wanted) {
                (Some(key), false, true) => self.press(Contact::Key(key))?,
                (Some(key), true, false) => self.release(Contact::Key(key))?,
                (None, _, _) | (Some(_), true, true) | (Some(_), false, false) => {}
            }
        }
        *held = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use roost_guest_proto::v1::{InputAction, KeyChord, Point, TypeSlowly};

    use super::*;

    fn request(actions: Vec<Action>) -> InputRequest {
        InputRequest {
            actions: actions.into_iter().map(|action| InputAction { action: Some(action) }).collect(),
        }
    }

    fn chord(keysyms: &[&str]) -> Action {
        Action::Key(KeyChord { keysyms: keysyms.iter().map(|name| (*name).to_owned()).collect() })
    }

    #[test]
    fn actions_become_steps() {
        let steps = check(request(vec![
            Action::Move(Point { x: -1, y: 5000 }),
            Action::Press(Button::Left.into()),
            Action::Release(Button::Right.into()),
            Action::Scroll(Scroll { dx: -2, dy: 3 }),
            Action::Scroll(Scroll { dx: 0, dy: 0 }),
            chord(&["Control_L", "c"]),
            Action::PauseMs(5),
            Action::TypeSlowly(TypeSlowly { text: "a".into(), delay_ms: 9 }),
        ]))
        .unwrap();
        assert_eq!(
            steps,
            [
                Step::Move { x: -1, y: 5000 },
                Step::Press(1),
                Step::Release(3),
                Step::Click { button: WHEEL_LEFT, times: 2 },
                Step::Click { button: WHEEL_DOWN, times: 3 },
                Step::Chord(vec![Keysym(0xffe3), Keysym(0x63)]),
                Step::Pause(Duration::from_millis(5)),
                Step::TypeSlowly(vec![Keysym(0x61)], Duration::from_millis(9)),
            ]
        );
    }

    #[test]
    fn one_wrong_action_refuses_the_request() {
        let many = vec!["a"; CHORD_LIMIT + 1];
        for wrong in [
            chord(&["Control_L", "NoSuchKey"]),
            chord(&[]),
            chord(&many),
            Action::Press(0),
            Action::Press(9),
            Action::TypeText("\u{1}".into()),
            Action::TypeText("x".repeat(TEXT_LIMIT + 1)),
            Action::Scroll(Scroll { dx: 0, dy: i32::MIN }),
        ] {
            let actions = vec![Action::TypeText("fine".into()), wrong.clone()];
            assert!(check(request(actions)).is_err(), "{wrong:?}");
        }
        assert!(check(InputRequest { actions: vec![InputAction { action: None }] }).is_err());
    }
}
