//! Waiting until the screen changes, or until it does not change any more.
//!
//! The X server tells what is drawn (DAMAGE), once until it is asked for the places: however fast a program draws, the
//! agent hears of it no faster than it asks.

use std::{
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    time::{Duration, Instant},
};

use roost_guest_proto::v1::{Region, ScreenEvent, WatchScreenRequest};
use rustix::pipe::PipeFlags;
use tokio::sync::mpsc;
use tonic::Status;
use x11rb::{
    connection::{Connection, RequestConnection},
    protocol::{
        Event,
        damage::{self, ConnectionExt as _, ReportLevel},
        xfixes::{self, ConnectionExt as _},
        xproto::Rectangle,
    },
};

use super::display::{Display, DisplayError, id_error};
use crate::system::blocking;

const LONGEST: Duration = Duration::from_secs(60);
/// The thickest text cursor that counts as one.
const CURSOR_THICKNESS: u16 = 2;

#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("{0} is nothing to wait for on a screen")]
    UnknownEvent(i32),
    #[error("{0} ms are too long to wait: at most 60000")]
    Time(u32),
    #[error("the call was dropped")]
    Dropped,
}

impl From<WatchError> for Status {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::UnknownEvent(_) | WatchError::Time(_) => Status::invalid_argument(error.to_string()),
            WatchError::Dropped => Status::cancelled(error.to_string()),
        }
    }
}

/// Runs what blocks a thread for as long as somebody listens to `output`. When nobody does any more, the other end of the
/// pipe that `work` is given is closed. `last` is what the listener is told at the end.
pub(super) fn while_heard<T: Send + 'static, R: Send + 'static>(
    output: mpsc::Sender<Result<T, Status>>,
    work: impl FnOnce(&OwnedFd) -> Result<R, DisplayError> + Send + 'static,
    last: impl FnOnce(Result<R, Status>) -> Option<Result<T, Status>> + Send + 'static,
) -> Result<(), Status> {
    let (pipe, kept) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| Status::resource_exhausted(format!("make a pipe: {error}")))?;
    let work = blocking(move || work(&pipe));
    tokio::spawn(async move {
        let mut work = pin!(work);
        let result = tokio::select! {
            result = &mut work => result,
            () = output.closed() => {
                drop(kept);
                return drop(work.await);
            }
        };
        if let Some(last) = last(result) {
            let _call_gone = output.send(last).await;
        }
    });
    Ok(())
}

/// A request known to make sense.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    until: Until,
    timeout: Duration,
    region: Option<Region>,
}

#[derive(Debug, Clone, Copy)]
enum Until {
    Changed,
    /// Nothing has changed for this long.
    Settled(Duration),
}

impl Watch {
    pub(super) fn new(request: WatchScreenRequest) -> Result<Self, WatchError> {
        let time = |ms: u32| {
            let time = Duration::from_millis(ms.into());
            if time > LONGEST { Err(WatchError::Time(ms)) } else { Ok(time) }
        };
        let until = match ScreenEvent::try_from(request.until) {
            Ok(ScreenEvent::Changed) => Until::Changed,
            Ok(ScreenEvent::Settled) => Until::Settled(time(request.quiet_ms)?),
            Ok(ScreenEvent::Unspecified) | Err(_) => return Err(WatchError::UnknownEvent(request.until)),
        };
        Ok(Self { until, timeout: time(request.timeout_ms)?, region: request.region })
    }

    /// Calls `begun` as soon as nothing is missed any more. Whether it came to what is waited for before the time was
    /// over. Ends early when the other end of `dropped` is closed.
    pub(super) fn wait(
        self,
        display: &Display,
        begun: impl FnOnce(),
        dropped: &OwnedFd,
    ) -> Result<bool, DisplayError> {
        let damage = Damage::new(display)?;
        begun();
        let begin = Instant::now();
        let end = begin + self.timeout;
        let mut last_change = begin;
        loop {
            let until = match self.until {
                Until::Changed => end,
                Until::Settled(quiet) if last_change + quiet <= end => last_change + quiet,
                Until::Settled(_) => end,
            };
            match display.next_event_or_closed(until, dropped.as_fd())? {
                Some(Event::DamageNotify(_)) => {
                    let changed = damage.take()?.iter().any(|place| counts(place, self.region));
                    match self.until {
                        Until::Changed if changed => return Ok(true),
                        Until::Settled(_) if changed => last_change = Instant::now(),
                        Until::Changed | Until::Settled(_) => {}
                    }
                }
                Some(_) => {}
                None => {
                    return Ok(match self.until {
                        Until::Changed => false,
                        Until::Settled(quiet) => last_change.elapsed() >= quiet,
                    });
                }
            }
        }
    }
}

/// Whether a place that was drawn to is of interest.
fn counts(place: &Rectangle, region: Option<Region>) -> bool {
    if place.width <= CURSOR_THICKNESS || place.height <= CURSOR_THICKNESS {
        return false;
    }
    let overlaps = |start: i16, length: u16, other: i32, other_length: u32| {
        let (start, other) = (i64::from(start), i64::from(other));
        start < other + i64::from(other_length) && other < start + i64::from(length)
    };
    region.is_none_or(|region| {
        overlaps(place.x, place.width, region.x, region.width)
            && overlaps(place.y, place.height, region.y, region.height)
    })
}

/// What has been drawn since it was last asked for.
struct Damage<'d> {
    display: &'d Display,
    damage: damage::Damage,
    places: xfixes::Region,
}

impl<'d> Damage<'d> {
    fn new(display: &'d Display) -> Result<Self, DisplayError> {
        let connection = &display.connection;
        for (name, what) in [
            (damage::X11_EXTENSION_NAME, "the DAMAGE extension"),
            (xfixes::X11_EXTENSION_NAME, "the XFIXES extension"),
        ] {
            if connection.extension_information(name)?.is_none() {
                return Err(DisplayError::Lacks(what));
            }
        }
        // A client says which version it speaks before it asks anything.
        connection.xfixes_query_version(2, 0)?.reply()?;
        connection.damage_query_version(1, 1)?.reply()?;
        let damage = connection.generate_id().map_err(id_error)?;
        let places = connection.generate_id().map_err(id_error)?;
        connection.xfixes_create_region(places, &[])?.check()?;
        connection.damage_create(damage, display.root, ReportLevel::NON_EMPTY)?.check()?;
        let damage = Self { display, damage, places };
        // As its watch begins, all of a window counts as drawn.
        damage.take()?;
        Ok(damage)
    }

    fn take(&self) -> Result<Vec<Rectangle>, DisplayError> {
        let connection = &self.display.connection;
        connection.damage_subtract(self.damage, x11rb::NONE, self.places)?;
        Ok(connection.xfixes_fetch_region(self.places)?.reply()?.rectangles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blinking_cursor_and_what_lies_elsewhere_do_not_count() {
        let place = |x, y, width, height| Rectangle { x, y, width, height };
        assert!(counts(&place(0, 0, 3, 3), None));
        assert!(!counts(&place(0, 0, 2, 20), None));
        assert!(!counts(&place(0, 0, 20, 1), None));
        let region = Some(Region { x: 100, y: 50, width: 10, height: 10 });
        assert!(counts(&place(90, 40, 11, 11), region));
        assert!(counts(&place(0, 0, 1000, 1000), region));
        for outside in [place(90, 40, 10, 20), place(110, 50, 10, 10), place(100, 60, 10, 10)] {
            assert!(!counts(&outside, region), "{outside:?}");
        }
        let whole = Some(Region { x: i32::MIN, y: i32::MIN, width: u32::MAX, height: u32::MAX });
        assert!(counts(&place(5, 5, 5, 5), whole));
    }

    #[test]
    fn only_what_makes_sense_is_waited_for() {
        let request = |until: ScreenEvent, quiet_ms, timeout_ms| WatchScreenRequest {
            until: until.into(),
            quiet_ms,
            timeout_ms,
            region: None,
        };
        Watch::new(request(ScreenEvent::Settled, 400, 60_000)).unwrap();
        Watch::new(request(ScreenEvent::Unspecified, 400, 1000)).unwrap_err();
        Watch::new(request(ScreenEvent::Changed, 0, 60_001)).unwrap_err();
        Watch::new(request(ScreenEvent::Settled, u32::MAX, 1000)).unwrap_err();
    }
}
