//! Auto-stop: a computer that nobody has used for its limit is stopped, with its memory; so is one that has run for as
//! long as it may.
//!
//! **What is use.** Every call to the guest on a user's behalf ([`crate::guest`]): commands for as long as they run,
//! and every frame of tunnels, screens and terminals. A start is, and so is a change of the limit. Reading status,
//! metrics, logs and events is not.
//!
//! **What is known.** When a computer was last used is kept in memory, because it changes with every frame, and
//! is written to its row at most every [`WRITE_EVERY`]. A server that starts has only the row. It neither stops a
//! computer early nor forgets it: the true last use was at most [`WRITE_EVERY`] after the one in the row, so that
//! much is added; and as the streams that were open have been cut, clients get [`GRACE`] (or the limit, where that
//! is shorter) from the start of the server to come back.
//!
//! **How long it may run** is counted by the clock, from its last start or restart, which is in its row: nothing moves
//! that deadline but a change of the limit.
//!
//! **When.** One task waits for the nearest deadline, and is woken by changes of computers. Use only moves deadlines
//! away, so it wakes nobody: the task looks again when the deadline it knew has come. Whether a computer is idle is
//! looked at once more in the transaction that begins its stop, so a call either keeps it up or finds it stopping.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use roost_api::{AutoStop, ChangeAutoStop, ComputerId, Event, Status, Timestamp};
use roost_store::{Begin, ComputerChange, ComputerRecord, EventScope, WorkflowKind};
use tokio::sync::Notify;

use crate::status::status;
use crate::{Control, Failure};

/// How often what was used is written down, at most.
const WRITE_EVERY: Duration = Duration::from_secs(15);
/// How long clients have to come back after the server has started.
const GRACE: Duration = Duration::from_secs(60);
/// When a stop that failed, or a database that did not answer, is tried again.
const AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Idle {
    began_at: Timestamp,
    known: Mutex<HashMap<ComputerId, Arc<Activity>>>,
    /// Some use is not written down yet.
    unwritten: Arc<Notify>,
}

impl Default for Idle {
    fn default() -> Self {
        Self { began_at: Timestamp::now(), known: Mutex::default(), unwritten: Arc::default() }
    }
}

/// The use of one computer.
#[derive(Debug)]
pub(crate) struct Activity {
    /// Microseconds of the wall clock; 0 is never.
    last: AtomicI64,
    /// Calls and commands that are under way.
    busy: AtomicUsize,
    is_written: AtomicBool,
    unwritten: Arc<Notify>,
    /// It is being stopped, or could not be: not before then.
    held_until: AtomicI64,
}

/// Something under way: until it is dropped the computer is in use.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        // The last use first: nobody may see neither.
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Activity {
    pub(crate) fn touch(&self) {
        self.last.fetch_max(Timestamp::now().as_micros(), Ordering::SeqCst);
        if self.is_written.swap(false, Ordering::SeqCst) {
            self.unwritten.notify_one();
        }
    }

    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.touch();
        Busy(self.clone())
    }

    fn last(&self) -> i64 {
        if self.busy.load(Ordering::SeqCst) > 0 {
            return Timestamp::now().as_micros();
        }
        self.last.load(Ordering::SeqCst)
    }
}

impl Idle {
    pub(crate) fn of(&self, computer: ComputerId) -> Arc<Activity> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Activity {
            last: AtomicI64::new(0),
            busy: AtomicUsize::new(0),
            is_written: AtomicBool::new(true),
            unwritten: self.unwritten.clone(),
            held_until: AtomicI64::new(0),
        };
        known.entry(computer).or_insert_with(|| Arc::new(new())).clone()
    }

    /// When the computer is to be stopped, in microseconds, and why; `None`: never.
    fn deadline(&self, record: &ComputerRecord) -> Option<(i64, Why)> {
        let idle = self.idle_deadline(record).map(|at| (at, Why::Idle));
        let life = life_deadline(record).map(|at| (at, Why::TimedOut));
        match (idle, life) {
            (Some(idle), Some(life)) => Some(if life.0 <= idle.0 { life } else { idle }),
            (idle, life) => idle.or(life),
        }
    }

    /// When it has been idle for its limit.
    fn idle_deadline(&self, record: &ComputerRecord) -> Option<i64> {
        if record.auto_stop == 0 {
            return None;
        }
        let limit = i64::from(record.auto_stop).saturating_mul(1_000_000);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let in_memory = known.get(&record.id).map_or(0, |activity| activity.last());
        let in_row = match record.last_active_at {
            // Of an earlier server, or of another one that is there too.
            Some(at) if at.as_micros() > in_memory => at.as_micros().saturating_add(micros(WRITE_EVERY)),
            _ => 0,
        };
        let started = record.started_at.unwrap_or(record.created_at).as_micros();
        let idle_since = in_memory.max(in_row).max(started);
        let grace = self.began_at.as_micros().saturating_add(micros(GRACE).min(limit));
        Some(idle_since.saturating_add(limit).max(grace))
    }
}

/// Why a computer is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Idle,
    /// It has run for as long as it may.
    TimedOut,
}

/// When it has run for as long as it may.
fn life_deadline(record: &ComputerRecord) -> Option<i64> {
    let limit = i64::from(record.timeout).checked_mul(1_000_000).filter(|limit| *limit > 0)?;
    let started = record.started_at.unwrap_or(record.created_at).as_micros();
    Some(started.saturating_add(limit))
}

impl Control {
    /// How long a computer that runs may run on.
    pub(crate) fn remaining_ms(&self, record: &ComputerRecord) -> Option<i64> {
        let deadline = life_deadline(record).filter(|_| status(record) == Status::Running)?;
        Some(deadline.saturating_sub(Timestamp::now().as_micros()).max(0) / 1000)
    }

    pub fn auto_stop(&self, record: &ComputerRecord) -> AutoStop {
        AutoStop::after(record.auto_stop)
    }

    /// The idle clock begins anew.
    pub async fn change_auto_stop(
        &self,
        id: ComputerId,
        request: ChangeAutoStop,
    ) -> Result<AutoStop, Failure> {
        let change = ComputerChange { auto_stop: Some(request.wanted()?), ..ComputerChange::default() };
        self.touch(id);
        let record = self.inner.store.change_computer(id, &change).await?;
        self.inner.hub.notify(id);
        Ok(self.auto_stop(&record.ok_or_else(Failure::computer_not_found)?))
    }

    /// The computer is being used now. Whatever speaks to the guest through this control plane says so by itself.
    pub(crate) fn touch(&self, computer: ComputerId) {
        self.inner.idle.of(computer).touch();
    }

    /// Writes use down, now and then, for as long as this control plane lives.
    pub(crate) fn keep_activity(&self) {
        let control = Arc::downgrade(&self.inner);
        let unwritten = self.inner.idle.unwritten.clone();
        tokio::spawn(async move {
            loop {
                // Nothing is used: nothing is done.
                unwritten.notified().await;
                tokio::time::sleep(WRITE_EVERY).await;
                let Some(inner) = control.upgrade() else { return };
                Control { inner }.write_activity().await;
            }
        });
    }

    async fn write_activity(&self) {
        let idle = &self.inner.idle;
        let mut used = Vec::new();
        {
            let mut known = idle.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|computer, activity| {
                let was_written = activity.is_written.swap(true, Ordering::SeqCst);
                if let Some(last) = Timestamp::from_micros(activity.last())
                    && !was_written
                {
                    used.push((*computer, last));
                }
                if activity.busy.load(Ordering::SeqCst) > 0 {
                    activity.touch(); // it is written again, also while nothing passes through
                }
                // What nobody holds and was written once more is in its row. A stop holds its own.
                !was_written || Arc::strong_count(activity) > 1
            });
        }
        if let Err(error) = self.inner.store.record_activity(&used).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "failed to write down which computers were used; trying again");
            for (computer, _) in used {
                let activity = idle.of(computer);
                activity.is_written.store(false, Ordering::SeqCst);
                activity.unwritten.notify_one();
            }
        }
    }

    /// Waits for the nearest deadline, for as long as this control plane lives.
    pub(crate) fn stop_idle_computers(&self) {
        let mut changes = self.inner.hub.subscribe_to_all();
        let control = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                changes.mark_unchanged();
                let nearest = {
                    let Some(inner) = control.upgrade() else { return };
                    Control { inner }.stop_what_is_idle().await
                };
                let changed = match nearest {
                    Some(wait) => tokio::time::timeout(wait, changes.changed()).await.unwrap_or(Ok(())),
                    None => changes.changed().await,
                };
                if changed.is_err() {
                    return;
                }
            }
        });
    }

    /// Begins to stop what is idle; how long until there may be more.
    async fn stop_what_is_idle(&self) -> Option<Duration> {
        let computers = match self.inner.store.auto_stopping().await {
            Ok(computers) => computers,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "failed to look for idle computers; trying again");
                return Some(AGAIN);
            }
        };
        let idle = &self.inner.idle;
        let now = Timestamp::now().as_micros();
        let mut nearest: Option<i64> = None;
        for record in computers.iter().filter(|record| status(record) == Status::Running) {
            let Some((deadline, _)) = idle.deadline(record) else { continue };
            let activity = idle.of(record.id);
            let mut deadline = deadline.max(activity.held_until.load(Ordering::SeqCst));
            if deadline <= now {
                deadline = now.saturating_add(micros(AGAIN));
                activity.held_until.store(deadline, Ordering::SeqCst);
                self.stop_in_background(record.id, activity);
            }
            nearest = Some(nearest.map_or(deadline, |nearest| nearest.min(deadline)));
        }
        let wait = nearest?.saturating_sub(now);
        Some(Duration::from_micros(u64::try_from(wait).unwrap_or(0)))
    }

    fn stop_in_background(&self, computer: ComputerId, activity: Arc<Activity>) {
        let control = self.clone();
        tokio::spawn(async move {
            match control.stop_if_idle(computer).await {
                // It was stopped, which holds up nothing of its next start, or it is used and has another deadline.
                Ok(()) => {
                    activity.held_until.store(0, Ordering::SeqCst);
                    control.inner.hub.wake();
                }
                Err(failure) => {
                    tracing::warn!(%computer, failure = &failure as &dyn std::error::Error,
                        "an idle computer could not be stopped; trying again in a minute");
                }
            }
        });
    }

    async fn stop_if_idle(&self, id: ComputerId) -> Result<(), Failure> {
        let idle = &self.inner.idle;
        let mut reason = Why::Idle;
        loop {
            let begun = self.inner.store.begin_workflow(id, WorkflowKind::Stop, None, |record| {
                if record.intended.is_some_and(WorkflowKind::is_brief) {
                    return Err(NotNow::Moment);
                }
                match idle.deadline(record).filter(|(at, _)| *at <= Timestamp::now().as_micros()) {
                    Some((_, why)) if status(record) == Status::Running => {
                        reason = why;
                        Ok(())
                    }
                    Some(_) | None => Err(NotNow::InUse),
                }
            });
            match begun.await? {
                Begin::Begun(workflow) => {
                    self.inner.hub.notify(id);
                    // Told first: a stop is quick. After a crash in between it goes on all the same.
                    if let Err(failure) = self.tell_auto_stopped(id, reason).await {
                        let failure = &failure as &dyn std::error::Error;
                        tracing::error!(computer = %id, failure, "failed to record an auto-stop");
                    }
                    return Ok(self.run_workflow(workflow).ended().await?);
                }
                // Somebody came, or another stop, start or delete was first.
                Begin::Missing | Begin::Refused(NotNow::InUse) => return Ok(()),
                Begin::Refused(NotNow::Moment) => self.moment(id).await?,
            }
        }
    }

    async fn tell_auto_stopped(&self, id: ComputerId, why: Why) -> Result<(), Failure> {
        let record = self.record(id).await?;
        let event = match why {
            Why::Idle => {
                tracing::info!(computer = %id, idle_seconds = record.auto_stop, "idle, and is being stopped");
                Event::AutoStopped { idle_seconds: record.auto_stop }
            }
            Why::TimedOut => {
                tracing::info!(computer = %id, seconds = record.timeout, "has run long enough, and is being stopped");
                Event::TimedOut { timeout_sec: record.timeout }
            }
        };
        self.emit(&EventScope::of(&record), &event).await
    }
}

/// Why an idle computer is not stopped after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotNow {
    /// Work of a moment is done on it.
    Moment,
    InUse,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
