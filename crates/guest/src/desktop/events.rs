//! What happens on the desktop: windows that come and go, what is copied, and whether somebody is there.
//!
//! The X server tells of all of it; nothing is asked at intervals.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use roost_guest_proto::v1::{
    DesktopEvent, UserIdle, WatchDesktopRequest, WindowChange, WindowEvent, desktop_event::Event as Told,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use x11rb::{
    connection::{Connection, RequestConnection},
    protocol::{
        Event,
        sync::{
            self, Alarm, ChangeAlarmAux, ConnectionExt as _, Counter, CreateAlarmAux, Int64, TESTTYPE,
            VALUETYPE,
        },
        xfixes::{self, ConnectionExt as _, SelectionEventMask},
        xproto::{AtomEnum, ChangeWindowAttributesAux, ConnectionExt as _, EventMask, Window},
    },
};

use super::{
    clipboard,
    display::{Display, DisplayAddress, DisplayError, DisplayHandle, id_error},
    readiness::Readiness,
    watch::while_heard,
    windows::{Windows, get},
};

/// Each has a thread and a connection to the X server, which has room for some hundred.
const LISTENERS: usize = 32;
const QUEUED: usize = 16;

/// How long is waited for an event before it is waited for again.
const TURN: Duration = Duration::from_secs(3600);

x11rb::atom_manager! {
    Atoms: AtomsCookie {
        CLIPBOARD,
        _NET_ACTIVE_WINDOW,
        _NET_CLIENT_LIST,
        _NET_WM_PID,
    }
}

/// Who listens to the desktop.
#[derive(Debug)]
pub(crate) struct Listeners {
    handle: Arc<DisplayHandle<()>>,
    places: Arc<Semaphore>,
}

impl Listeners {
    pub(crate) fn new(address: DisplayAddress, readiness: Readiness) -> Self {
        let handle = Arc::new(DisplayHandle::new(address, readiness, |_| Ok(())));
        Self { handle, places: Arc::new(Semaphore::new(LISTENERS)) }
    }

    /// Until the receiver is dropped.
    pub(crate) fn listen(
        &self,
        request: WatchDesktopRequest,
    ) -> Result<ReceiverStream<Result<DesktopEvent, Status>>, Status> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{LISTENERS} listen to what happens on the desktop already"))
        })?;
        let (output, outputs) = mpsc::channel(QUEUED);
        let (handle, told) = (self.handle.clone(), output.clone());
        let work = move |pipe: &OwnedFd| {
            let _place = place;
            let tell = |event| told.blocking_send(Ok(event)).is_ok();
            watch(&handle.another()?, || handle.another(), request, tell, pipe)
        };
        while_heard(output, work, |result| result.err().map(Err))?;
        Ok(ReceiverStream::new(outputs))
    }
}

/// Tells what happens, first of all that nothing is missed from now on, until nobody listens. `another` makes a
/// connection to the same display.
fn watch(
    display: &Display,
    another: impl Fn() -> Result<Display, DisplayError>,
    request: WatchDesktopRequest,
    mut tell: impl FnMut(DesktopEvent) -> bool,
    dropped: &OwnedFd,
) -> Result<(), DisplayError> {
    let atoms = Atoms::new(&display.connection)?.reply()?;
    let mut windows = match request.windows {
        true => Some(Known::new(display, atoms)?),
        false => None,
    };
    if request.clipboard {
        listen_to_clipboard(display, atoms)?;
    }
    let mut idle = match request.idle_ms {
        0 => None,
        after => Some(Idle::new(display, after)?),
    };
    if !tell(DesktopEvent { event: None }) {
        return Ok(());
    }
    let mut events: Vec<Told> =
        idle.as_mut().map(|idle| idle.begin(display)).transpose()?.into_iter().flatten().collect();
    loop {
        for event in events.drain(..) {
            if !tell(DesktopEvent { event: Some(event) }) {
                return Ok(());
            }
        }
        let Some(event) = display.next_event_or_closed(Instant::now() + TURN, dropped.as_fd())? else {
            continue;
        };
        match event {
            Event::PropertyNotify(change) if change.window == display.root => {
                let counts = [atoms._NET_CLIENT_LIST, atoms._NET_ACTIVE_WINDOW].contains(&change.atom);
                if let (true, Some(windows)) = (counts, &mut windows) {
                    events = windows.changes(display)?;
                }
            }
            Event::XfixesSelectionNotify(_) => {
                // Whoever has copied something may not answer; that it was copied is told all the same.
                let length = clipboard::read(another()?).map_or(0, |text| text.len());
                events.push(Told::ClipboardBytes(length.try_into().unwrap_or(u64::MAX)));
            }
            Event::SyncAlarmNotify(notice) => {
                if let Some(idle) = &mut idle {
                    events.extend(idle.alarm(display, notice.alarm, milliseconds(notice.counter_value))?);
                }
            }
            _ => {}
        }
    }
}

fn listen_to_clipboard(display: &Display, atoms: Atoms) -> Result<(), DisplayError> {
    let connection = &display.connection;
    if connection.extension_information(xfixes::X11_EXTENSION_NAME)?.is_none() {
        return Err(DisplayError::Lacks("the XFIXES extension"));
    }
    connection.xfixes_query_version(2, 0)?.reply()?;
    let mask = SelectionEventMask::SET_SELECTION_OWNER;
    connection.xfixes_select_selection_input(display.root, atoms.CLIPBOARD, mask)?.check()?;
    Ok(())
}

/// The windows that are known to be there.
struct Known {
    windows: Windows,
    atoms: Atoms,
    there: BTreeMap<Window, WindowEvent>,
    focused: Option<Window>,
}

impl Known {
    fn new(display: &Display, atoms: Atoms) -> Result<Self, DisplayError> {
        // Listened to before the first look, so that nothing is missed in between.
        let listen = ChangeWindowAttributesAux::new().event_mask(EventMask::PROPERTY_CHANGE);
        display.connection.change_window_attributes(display.root, &listen)?.check()?;
        let mut known =
            Self { windows: Windows::new(display)?, atoms, there: BTreeMap::new(), focused: None };
        known.changes(display)?;
        Ok(known)
    }

    /// What is otherwise than it was at the last look.
    fn changes(&mut self, display: &Display) -> Result<Vec<Told>, DisplayError> {
        let listed = self.windows.list(display)?;
        let mut told = Vec::new();
        let mut tell = |change: WindowChange, window: &WindowEvent| {
            told.push(Told::Window(WindowEvent { change: change.into(), ..window.clone() }));
        };
        self.there.retain(|id, window| {
            let stays = listed.iter().any(|window| window.id == *id);
            if !stays {
                tell(WindowChange::Closed, window);
            }
            stays
        });
        // From the lowest: the order in which they came.
        for window in listed.iter().rev() {
            let pid = match self.there.get(&window.id) {
                Some(known) => known.pid,
                None => self.pid(display, window.id)?,
            };
            let now = WindowEvent { change: 0, id: window.id, pid, title: window.title.clone() };
            if !self.there.contains_key(&window.id) {
                tell(WindowChange::Opened, &now);
            }
            if window.focused && self.focused != Some(window.id) {
                tell(WindowChange::Focused, &now);
            }
            self.there.insert(window.id, now);
        }
        self.focused = listed.iter().find(|window| window.focused).map(|window| window.id);
        Ok(told)
    }

    /// As the program says it; 0 where it does not.
    fn pid(&self, display: &Display, window: Window) -> Result<u32, DisplayError> {
        let property = get(display, window, self.atoms._NET_WM_PID, AtomEnum::CARDINAL.into(), 1)?.reply();
        match property.map_err(DisplayError::from) {
            Ok(property) => Ok(property.value32().and_then(|mut values| values.next()).unwrap_or(0)),
            // Closed in the meantime.
            Err(DisplayError::Request(_)) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Whether somebody uses pointer or keyboard. The X server counts the milliseconds without, and gives an alarm when
/// the counter passes a value.
struct Idle {
    after: Duration,
    counter: Counter,
    begins: Alarm,
    ends: Alarm,
    /// When the last input was, while nobody is there.
    since: Option<Instant>,
}

impl Idle {
    fn new(display: &Display, after_ms: u32) -> Result<Self, DisplayError> {
        let connection = &display.connection;
        if connection.extension_information(sync::X11_EXTENSION_NAME)?.is_none() {
            return Err(DisplayError::Lacks("the SYNC extension"));
        }
        connection.sync_initialize(3, 1)?.reply()?;
        let counters = connection.sync_list_system_counters()?.reply()?.counters;
        let counter = counters.iter().find(|counter| counter.name == b"IDLETIME");
        let counter = counter.ok_or(DisplayError::Lacks("a counter of idle time"))?.counter;
        let alarm = |test: TESTTYPE, value: u32| {
            let alarm = connection.generate_id().map_err(id_error)?;
            let what = CreateAlarmAux::new()
                .counter(counter)
                .value_type(VALUETYPE::ABSOLUTE)
                .value(Int64 { hi: 0, lo: value })
                .test_type(test)
                .delta(Int64 { hi: 0, lo: 0 })
                .events(1);
            connection.sync_create_alarm(alarm, &what)?.check()?;
            Ok::<_, DisplayError>(alarm)
        };
        let begins = alarm(TESTTYPE::POSITIVE_TRANSITION, after_ms)?;
        let ends = alarm(TESTTYPE::NEGATIVE_TRANSITION, after_ms - 1)?;
        Ok(Self { after: Duration::from_millis(after_ms.into()), counter, begins, ends, since: None })
    }

    /// Nobody may have been there for long.
    fn begin(&mut self, display: &Display) -> Result<Option<Told>, DisplayError> {
        let idle = milliseconds(display.connection.sync_query_counter(self.counter)?.reply()?.counter_value);
        Ok((idle >= self.after).then(|| self.inactive(idle)))
    }

    fn alarm(
        &mut self,
        display: &Display,
        alarm: Alarm,
        idle: Duration,
    ) -> Result<Option<Told>, DisplayError> {
        // An alarm without a step may rest once it was given.
        display.connection.sync_change_alarm(alarm, &ChangeAlarmAux::new())?.check()?;
        Ok(match self.since {
            None if alarm == self.begins => Some(self.inactive(idle)),
            Some(since) if alarm == self.ends => {
                self.since = None;
                Some(Told::Idle(UserIdle { idle: false, ms: whole(since.elapsed()) }))
            }
            _ => None,
        })
    }

    fn inactive(&mut self, idle: Duration) -> Told {
        self.since = Instant::now().checked_sub(idle).or_else(|| Some(Instant::now()));
        Told::Idle(UserIdle { idle: true, ms: whole(idle) })
    }
}

fn milliseconds(value: Int64) -> Duration {
    Duration::from_millis(u64::from(value.hi.max(0).cast_unsigned()) << 32 | u64::from(value.lo))
}

fn whole(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
