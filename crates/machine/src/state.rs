//! What the machine process decides, and nothing else: a pure function from a state and an event to the
//! next state and the actions to take. [`step`] is one total `match`; `vm` owns the only `State` of the
//! process, feeds it events one at a time and carries the actions out.
//!
//! ```text
//!  Preparing --Prepared--> Booting(Agent) --AgentUp--> Booting(Identity) --IdentitySet--> Booting(Desktop)
//!      |  |                   ^    ^                                                          |
//!      |  +--> Resuming ------+    |   Resuming is the short way: memory is loaded, and the    |
//!      |          |           |    |   agent and the desktop are there already                 |
//!      |          +-> Discarding --+   (or the memory is no good, and the computer boots)      |
//!      |                      ^    ^                                                          |
//!      |                      |    +---- GuestReset, AgentLost (counted) ---------------------+ DesktopReady
//!      |                      |                                                               v
//!      |                      +------------------ GuestReset -------------------------- Running(link)
//!      |                                                                                      |
//!      |          StopAsked (any time QEMU runs)                                              |
//!      |                      v                                                               |
//!      |                  Stopping(Asked -> Quitting -> Killing) <----------------------------+
//!      |                      |
//!      |   deadline, too many resets, agent refuses: Failing ---QemuExited---> Ended(Failed)
//!      v                      v
//!  Ended(Failed|Stopped)   Ended(Stopped)  <--- QEMU ended cleanly: the guest powered off
//!
//!  Running --SaveAsked--> Saving(Running) --Saved(suspend)--> Stopping(Saved) --> Ended(Stopped)
//!                             |  Saved(capture), SaveFailed
//!                             +--> Running
//! ```
//!
//! The happy path is the top line. The rest is what can go wrong:
//!
//! * **A boot hangs.** Each stage has a deadline. When the agent's passes, the guest is reset once (a kernel
//!   may hang early in its boot without any fault of the disk); when it passes again, or the desktop's
//!   does, the computer has failed.
//! * **The guest restarts.** By `reboot` or by a kernel panic (`panic=-1`); the two look alike from
//!   outside. A running computer goes back to booting and gets its identity again. While booting, restarts
//!   and lost agents count as setbacks: [`MAX_SETBACKS`] of them are a boot loop, which is a failure.
//! * **The agent goes away while the computer runs.** The computer stays `Running`: its programs may be
//!   fine. Calls to the guest answer UNAVAILABLE until the agent is back. If it comes back with another boot
//!   id, the guest restarted unseen and needs its identity.
//! * **QEMU ends.** With status 0 that is how a power-off by the guest, or a `quit`, looks: stopped. Any
//!   other end is a failure with QEMU's own words as the reason.
//! * **Saved memory is no good.** It does not load, or QEMU ends over it, or the guest that continues from it
//!   does not answer in time: that QEMU is ended and another one boots the same disk. Why is kept and told.
//! * **The guest changes while it is saved.** [`State::Saving`] holds the state the computer would be in
//!   without the save, and every event goes on changing that one.
//! * **A stop meets resistance.** The agent is asked; without an agent, ACPI is. At the deadline QEMU is
//!   told to quit, which closes the disk cleanly; if even that does nothing it is killed. What the guest
//!   had flushed is on the disk in each case, so each of them is `Stopped`.
//!
//! `Failing` and `Stopping` wait for [`Event::QemuExited`]: no end is ever reported while QEMU still has
//! the disk open.

use std::time::Duration;

use roost_machine_proto::v1::Phase;

/// From the start (or a restart) of the guest to the agent's first answer. The desktop image takes 15 to 25
/// s under emulation on an idle two-core machine; this leaves room for many booting at once.
pub const AGENT_DEADLINE: Duration = Duration::from_secs(180);
/// One call that takes milliseconds in a healthy guest.
pub const IDENTITY_DEADLINE: Duration = Duration::from_secs(60);
/// From the identity to the mapped panel.
pub const DESKTOP_DEADLINE: Duration = Duration::from_secs(300);
/// From the first instruction of a guest that continues to its agent's answer: normally a tenth of a second.
pub const CONTINUE_DEADLINE: Duration = Duration::from_secs(45);
/// From QEMU's start to the loaded memory. Gigabytes may have to come from a disk.
pub const LOAD_DEADLINE: Duration = Duration::from_secs(180);
/// From the request to power off to QEMU's end.
pub const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// From `quit` to QEMU's end: flushing the disk.
pub const QUIT_DEADLINE: Duration = Duration::from_secs(10);
/// Restarts and lost agents that one boot may have.
pub const MAX_SETBACKS: u8 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The disk is being made ready; there is no QEMU.
    Preparing,
    /// QEMU loads saved memory.
    Resuming,
    /// The saved memory is no good; QEMU has been told to die, and another one will boot.
    Discarding,
    Booting(Boot),
    /// Identity set and desktop seen. `boot_id` is the guest's, to notice a restart nobody reported.
    Running {
        boot_id: String,
        link: Link,
    },
    /// The memory is being saved. `then` is what the computer is apart from that.
    Saving {
        then: Box<State>,
        /// What the save is for.
        save: Save,
        /// Somebody asked for a stop meanwhile; it begins when the save is over.
        stop_asked: bool,
    },
    Stopping(Stop),
    /// QEMU has been told to die because of `reason`.
    Failing {
        reason: String,
    },
    Ended(Ending),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    pub stage: Stage,
    pub setbacks: u8,
    pub watchdog: Watchdog,
    pub origin: Origin,
}

/// Where a boot began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Kernel,
    /// In a saved memory. It has one try; the next way is the kernel.
    Memory,
}

/// What a save is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// The computer ends.
    Suspend,
    /// The computer goes on.
    Capture,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// No agent yet.
    Agent,
    /// The agent has been told who it is and has not confirmed.
    Identity { boot_id: String },
    /// The agent waits for the desktop on our behalf.
    Desktop { boot_id: String },
}

/// Whether this boot's one reset by deadline is still to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watchdog {
    Armed,
    Spent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Up,
    Down,
}

/// How far a stop has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The guest has been asked.
    Asked,
    /// QEMU has been asked.
    Quitting,
    /// QEMU has been sent SIGKILL.
    Killing,
    /// Memory and disk are saved, and QEMU, whose guest stands still, has been asked to end.
    Saved,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    Stopped,
    Failed { reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The disk is ready, and so is the memory where the computer can continue from one.
    Prepared(Origin),
    /// The guest runs on from its memory.
    Resumed,
    ResumeFailed {
        reason: String,
    },
    SaveAsked(Save),
    /// As asked. After a capture the guest runs.
    Saved,
    /// The guest runs on.
    SaveFailed,
    PrepareFailed {
        reason: String,
    },
    /// QEMU or its network could not be started. There is no QEMU.
    StartFailed {
        reason: String,
    },
    QemuExited(QemuExit),
    /// QMP: the guest powered itself off. QEMU's end follows.
    GuestShutdown,
    /// QMP: the guest restarted. `panic` is the kernel's last word on the console of this boot, if it had one.
    GuestReset {
        panic: Option<String>,
    },
    /// A connection to the agent stands and it answered.
    AgentUp {
        boot_id: String,
    },
    /// The connection ended.
    AgentLost,
    IdentitySet,
    IdentityFailed {
        reason: String,
    },
    DesktopReady,
    DesktopFailed {
        reason: String,
    },
    /// The agent did not take the request to power off.
    PowerOffFailed,
    /// By an RPC or a signal.
    StopAsked,
    /// The one deadline that was set last.
    DeadlinePassed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuExit {
    /// Status 0: the guest powered off, or QEMU was told to quit.
    Clean,
    /// Anything else, in words.
    Crashed { reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Starts QEMU and its network; answered by `StartFailed` or, in the end, `QemuExited`. From memory it is
    /// answered by `Resumed` or `ResumeFailed` before that.
    StartQemu(Origin),
    /// Keep in mind, and tell, why the saved memory was not continued from.
    TellMemoryLost(String),
    /// Answered by `Saved` or `SaveFailed`.
    Save,
    /// Whoever asked for a save is told that it is not possible now.
    RefuseSave(&'static str),
    /// Replaces the one deadline.
    SetDeadline(Duration),
    ClearDeadline,
    /// Each of these calls to the agent replaces the one before, whose answer is then never seen.
    SetIdentity,
    WaitDesktop,
    PowerOff,
    /// Let the calls of others through to the guest.
    OpenGuest,
    /// Refuse them.
    CloseGuest,
    /// End the connection to the agent of a guest that restarted; connecting starts over.
    DropLink,
    /// QMP `system_reset`.
    Reset,
    /// QMP `system_powerdown`: the ACPI button.
    PowerButton,
    /// QMP `quit`.
    Quit,
    /// SIGKILL to QEMU.
    Kill,
}

impl State {
    pub fn phase(&self) -> Phase {
        match self {
            State::Preparing => Phase::Preparing,
            State::Resuming | State::Discarding | State::Booting(_) => Phase::Booting,
            State::Running { .. } => Phase::Running,
            State::Saving { then, .. } => then.phase(),
            State::Stopping(_) | State::Failing { .. } => Phase::Stopping,
            State::Ended(Ending::Stopped) => Phase::Stopped,
            State::Ended(Ending::Failed { .. }) => Phase::Failed,
        }
    }
}

impl Boot {
    pub fn first() -> Self {
        Boot { stage: Stage::Agent, setbacks: 0, watchdog: Watchdog::Armed, origin: Origin::Kernel }
    }

    pub fn continued() -> Self {
        Boot { origin: Origin::Memory, ..Boot::first() }
    }
}

/// The next state and what to do to get there, in order.
pub fn step(state: State, event: Event) -> (State, Vec<Action>) {
    use Action::{
        ClearDeadline, CloseGuest, DropLink, Kill, OpenGuest, PowerButton, PowerOff, Quit, RefuseSave, Reset,
        SetDeadline, SetIdentity, StartQemu, WaitDesktop,
    };
    use Event as E;
    use State as S;

    match (state, event) {
        // Nothing leaves the end.
        (ended @ S::Ended(_), _) => (ended, vec![]),

        // QEMU ended over the saved memory, or was told to because of it: the next one boots.
        (S::Resuming, E::QemuExited(exit)) => {
            let reason = match exit {
                QemuExit::Clean => "QEMU ended while it loaded it".to_owned(),
                QemuExit::Crashed { reason } => reason,
            };
            (S::Booting(Boot::first()), boot_instead(Some(reason)))
        }
        (
            S::Booting(Boot { origin: Origin::Memory, stage: Stage::Agent, .. }),
            E::QemuExited(QemuExit::Crashed { reason }),
        ) => (S::Booting(Boot::first()), boot_instead(Some(reason))),
        (S::Discarding, E::QemuExited(_)) => (S::Booting(Boot::first()), boot_instead(None)),
        // QEMU's end is an end everywhere; the state only says which.
        (S::Failing { reason }, E::QemuExited(_)) => (failed(reason), vec![ClearDeadline, CloseGuest]),
        // This kill was ours, or everything was saved before.
        (S::Stopping(Stop::Killing | Stop::Saved), E::QemuExited(_)) => {
            (S::Ended(Ending::Stopped), vec![ClearDeadline, CloseGuest])
        }
        (_, E::QemuExited(QemuExit::Clean)) => (S::Ended(Ending::Stopped), vec![ClearDeadline, CloseGuest]),
        (_, E::QemuExited(QemuExit::Crashed { reason })) => (failed(reason), vec![ClearDeadline, CloseGuest]),
        (_, E::StartFailed { reason }) => (failed(reason), vec![ClearDeadline, CloseGuest]),

        (S::Preparing, E::Prepared(Origin::Kernel)) => (S::Booting(Boot::first()), boot_instead(None)),
        (S::Preparing, E::Prepared(Origin::Memory)) => {
            (S::Resuming, vec![StartQemu(Origin::Memory), SetDeadline(LOAD_DEADLINE)])
        }
        (S::Preparing, E::PrepareFailed { reason }) => (failed(reason), vec![]),
        // There is no QEMU to stop, and what was prepared is found again by the next start.
        (S::Preparing, E::StopAsked) => (S::Ended(Ending::Stopped), vec![]),
        (
            S::Preparing,
            E::Resumed
            | E::ResumeFailed { .. }
            | E::Saved
            | E::SaveFailed
            | E::GuestShutdown
            | E::GuestReset { .. }
            | E::AgentUp { .. }
            | E::AgentLost
            | E::IdentitySet
            | E::IdentityFailed { .. }
            | E::DesktopReady
            | E::DesktopFailed { .. }
            | E::PowerOffFailed
            | E::DeadlinePassed,
        ) => (S::Preparing, vec![]),

        (
            state @ (S::Preparing | S::Resuming | S::Discarding | S::Stopping(_) | S::Failing { .. }),
            E::SaveAsked(_),
        ) => (state, vec![RefuseSave("the computer is not running")]),
        (state @ S::Booting(_), E::SaveAsked(_)) => {
            (state, vec![RefuseSave("the computer is starting; try again when it runs")])
        }
        (state @ S::Saving { .. }, E::SaveAsked(_)) => {
            (state, vec![RefuseSave("the computer is being saved already; try again in a moment")])
        }
        (running @ S::Running { .. }, E::SaveAsked(save)) => {
            (S::Saving { then: Box::new(running), save, stop_asked: false }, vec![Action::Save])
        }

        (S::Resuming, E::Resumed) => (S::Booting(Boot::continued()), vec![SetDeadline(CONTINUE_DEADLINE)]),
        (S::Resuming, E::ResumeFailed { reason }) => discard(reason),
        (S::Resuming, E::DeadlinePassed) => {
            discard(format!("it was not loaded in {} s", LOAD_DEADLINE.as_secs()))
        }
        // The memory is still there, or else the computer continues for less than a moment.
        (S::Resuming | S::Discarding, E::StopAsked) => {
            (S::Stopping(Stop::Killing), vec![Kill, ClearDeadline])
        }
        (
            state @ (S::Resuming | S::Discarding),
            E::Prepared(_)
            | E::PrepareFailed { .. }
            | E::Resumed
            | E::ResumeFailed { .. }
            | E::Saved
            | E::SaveFailed
            | E::GuestShutdown
            | E::GuestReset { .. }
            | E::AgentUp { .. }
            | E::AgentLost
            | E::IdentitySet
            | E::IdentityFailed { .. }
            | E::DesktopReady
            | E::DesktopFailed { .. }
            | E::PowerOffFailed
            | E::DeadlinePassed,
        ) => (state, vec![]),

        (S::Saving { save: Save::Suspend, .. }, E::Saved) => {
            (S::Stopping(Stop::Saved), vec![CloseGuest, Quit, SetDeadline(QUIT_DEADLINE)])
        }
        (S::Saving { then, stop_asked, .. }, E::Saved | E::SaveFailed) => {
            if stop_asked {
                step(*then, E::StopAsked)
            } else {
                (*then, vec![])
            }
        }
        (S::Saving { then, save, .. }, E::StopAsked) => (S::Saving { then, save, stop_asked: true }, vec![]),
        (S::Saving { then, save, stop_asked }, event) => {
            let (then, actions) = step(*then, event);
            (S::Saving { then: Box::new(then), save, stop_asked }, actions)
        }

        (S::Booting(boot), E::AgentUp { boot_id }) => (
            S::Booting(Boot { stage: Stage::Identity { boot_id }, ..boot }),
            vec![SetIdentity, SetDeadline(IDENTITY_DEADLINE)],
        ),
        (
            S::Booting(Boot { stage: Stage::Identity { boot_id }, setbacks, watchdog, origin }),
            E::IdentitySet,
        ) => (
            S::Booting(Boot { stage: Stage::Desktop { boot_id }, setbacks, watchdog, origin }),
            vec![WaitDesktop, SetDeadline(DESKTOP_DEADLINE)],
        ),
        (S::Booting(Boot { stage: Stage::Desktop { boot_id }, .. }), E::DesktopReady) => {
            (S::Running { boot_id, link: Link::Up }, vec![ClearDeadline, OpenGuest])
        }
        (S::Booting(Boot { stage: Stage::Identity { .. }, origin, .. }), E::IdentityFailed { reason }) => {
            give_up(origin, format!("the agent did not take the computer's identity: {reason}"))
        }
        (S::Booting(Boot { stage: Stage::Desktop { .. }, origin, .. }), E::DesktopFailed { reason }) => {
            give_up(origin, format!("the desktop did not start: {reason}"))
        }
        (S::Booting(boot), E::GuestReset { panic }) => setback(boot, || match panic {
            Some(panic) => format!("the guest's kernel stopped: {panic}"),
            None => "the guest keeps restarting and never gets to its desktop".to_owned(),
        }),
        (S::Booting(boot @ Boot { stage: Stage::Agent, .. }), E::AgentLost) => (S::Booting(boot), vec![]),
        (
            S::Booting(boot @ Boot { stage: Stage::Identity { .. } | Stage::Desktop { .. }, .. }),
            E::AgentLost,
        ) => setback(boot, || "the agent in the guest keeps ending before the desktop is up".to_owned()),
        (S::Booting(Boot { origin: Origin::Memory, .. }), E::DeadlinePassed) => {
            discard("the guest that continued from it did not answer".to_owned())
        }
        (S::Booting(boot), E::DeadlinePassed) => match (&boot.stage, boot.watchdog) {
            (Stage::Agent, Watchdog::Armed) => (
                S::Booting(Boot { watchdog: Watchdog::Spent, ..boot }),
                vec![Reset, SetDeadline(AGENT_DEADLINE)],
            ),
            (Stage::Agent, Watchdog::Spent) => fail(format!(
                "the guest's agent did not answer within {} s, and not after a reset either",
                AGENT_DEADLINE.as_secs()
            )),
            (Stage::Identity { .. }, _) => fail(format!(
                "the guest's agent did not take the computer's identity within {} s",
                IDENTITY_DEADLINE.as_secs()
            )),
            (Stage::Desktop { .. }, _) => {
                fail(format!("the desktop was not up within {} s", DESKTOP_DEADLINE.as_secs()))
            }
        },
        // With an agent the guest shuts down in order now; without one ACPI is tried, and the agent asked
        // when it comes up.
        (S::Booting(Boot { stage, .. }), E::StopAsked) => {
            (S::Stopping(Stop::Asked), ask_to_power_off(stage != Stage::Agent))
        }
        (S::Booting(_), E::GuestShutdown) => (S::Stopping(Stop::Asked), vec![SetDeadline(QUIT_DEADLINE)]),
        // Answers of calls that have been replaced, and news of a time gone by.
        (
            boot @ S::Booting(_),
            E::Prepared(_)
            | E::PrepareFailed { .. }
            | E::Resumed
            | E::ResumeFailed { .. }
            | E::Saved
            | E::SaveFailed
            | E::IdentitySet
            | E::IdentityFailed { .. }
            | E::DesktopReady
            | E::DesktopFailed { .. }
            | E::PowerOffFailed,
        ) => (boot, vec![]),

        (S::Running { boot_id, .. }, E::AgentLost) => {
            (S::Running { boot_id, link: Link::Down }, vec![CloseGuest])
        }
        (S::Running { boot_id, .. }, E::AgentUp { boot_id: seen }) if seen == boot_id => {
            (S::Running { boot_id, link: Link::Up }, vec![OpenGuest])
        }
        (S::Running { .. }, E::AgentUp { boot_id }) => (
            S::Booting(Boot { stage: Stage::Identity { boot_id }, ..Boot::first() }),
            vec![CloseGuest, SetIdentity, SetDeadline(IDENTITY_DEADLINE)],
        ),
        (S::Running { .. }, E::GuestReset { .. }) => {
            (S::Booting(Boot::first()), vec![CloseGuest, DropLink, SetDeadline(AGENT_DEADLINE)])
        }
        (S::Running { link, .. }, E::StopAsked) => {
            (S::Stopping(Stop::Asked), ask_to_power_off(link == Link::Up))
        }
        (S::Running { .. }, E::GuestShutdown) => {
            (S::Stopping(Stop::Asked), vec![CloseGuest, SetDeadline(QUIT_DEADLINE)])
        }
        (
            running @ S::Running { .. },
            E::Prepared(_)
            | E::PrepareFailed { .. }
            | E::Resumed
            | E::ResumeFailed { .. }
            | E::Saved
            | E::SaveFailed
            | E::IdentitySet
            | E::IdentityFailed { .. }
            | E::DesktopReady
            | E::DesktopFailed { .. }
            | E::PowerOffFailed
            | E::DeadlinePassed,
        ) => (running, vec![]),

        // The agent is there only now, or the guest took the request for a restart.
        (S::Stopping(Stop::Asked), E::AgentUp { .. }) => (S::Stopping(Stop::Asked), vec![PowerOff]),
        (S::Stopping(Stop::Asked), E::GuestReset { .. }) => (S::Stopping(Stop::Asked), vec![DropLink]),
        (S::Stopping(Stop::Asked), E::PowerOffFailed) => (S::Stopping(Stop::Asked), vec![PowerButton]),
        (S::Stopping(Stop::Asked), E::DeadlinePassed) => {
            (S::Stopping(Stop::Quitting), vec![Quit, SetDeadline(QUIT_DEADLINE)])
        }
        (S::Stopping(Stop::Quitting | Stop::Saved), E::DeadlinePassed) => {
            (S::Stopping(Stop::Killing), vec![Kill, ClearDeadline])
        }
        (
            stopping @ S::Stopping(_),
            E::Prepared(_)
            | E::PrepareFailed { .. }
            | E::Resumed
            | E::ResumeFailed { .. }
            | E::Saved
            | E::SaveFailed
            | E::GuestShutdown
            | E::GuestReset { .. }
            | E::AgentUp { .. }
            | E::AgentLost
            | E::IdentitySet
            | E::IdentityFailed { .. }
            | E::DesktopReady
            | E::DesktopFailed { .. }
            | E::PowerOffFailed
            | E::StopAsked
            | E::DeadlinePassed,
        ) => (stopping, vec![]),

        // Killed already; only its end is of interest. A stop asked now changes nothing: the failure is
        // what there is to tell.
        (
            failing @ S::Failing { .. },
            E::Prepared(_)
            | E::PrepareFailed { .. }
            | E::Resumed
            | E::ResumeFailed { .. }
            | E::Saved
            | E::SaveFailed
            | E::GuestShutdown
            | E::GuestReset { .. }
            | E::AgentUp { .. }
            | E::AgentLost
            | E::IdentitySet
            | E::IdentityFailed { .. }
            | E::DesktopReady
            | E::DesktopFailed { .. }
            | E::PowerOffFailed
            | E::StopAsked
            | E::DeadlinePassed,
        ) => (failing, vec![]),
    }
}

fn failed(reason: String) -> State {
    State::Ended(Ending::Failed { reason })
}

fn fail(reason: String) -> (State, Vec<Action>) {
    (State::Failing { reason }, vec![Action::ClearDeadline, Action::CloseGuest, Action::Kill])
}

/// Gives up what continued from memory for a boot, or a boot for good.
fn give_up(origin: Origin, reason: String) -> (State, Vec<Action>) {
    match origin {
        Origin::Kernel => fail(reason),
        Origin::Memory => discard(reason),
    }
}

fn discard(reason: String) -> (State, Vec<Action>) {
    let actions =
        vec![Action::ClearDeadline, Action::CloseGuest, Action::TellMemoryLost(reason), Action::Kill];
    (State::Discarding, actions)
}

/// A start at the kernel; `lost` says why not from memory, if that was tried and nothing is told yet.
fn boot_instead(lost: Option<String>) -> Vec<Action> {
    let mut actions: Vec<Action> = lost.map(Action::TellMemoryLost).into_iter().collect();
    actions.extend([Action::StartQemu(Origin::Kernel), Action::SetDeadline(AGENT_DEADLINE)]);
    actions
}

fn ask_to_power_off(agent: bool) -> Vec<Action> {
    let ask = if agent { Action::PowerOff } else { Action::PowerButton };
    vec![Action::CloseGuest, ask, Action::SetDeadline(STOP_DEADLINE)]
}

/// Back to waiting for the agent, unless this boot has been set back too often.
fn setback(boot: Boot, reason: impl FnOnce() -> String) -> (State, Vec<Action>) {
    let setbacks = boot.setbacks + 1;
    if setbacks > MAX_SETBACKS {
        return give_up(boot.origin, reason());
    }
    (
        State::Booting(Boot { stage: Stage::Agent, setbacks, ..boot }),
        vec![Action::DropLink, Action::SetDeadline(AGENT_DEADLINE)],
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn up(boot_id: &str) -> Event {
        Event::AgentUp { boot_id: boot_id.to_owned() }
    }

    fn crash() -> Event {
        Event::QemuExited(QemuExit::Crashed { reason: "QEMU was killed by signal 9".to_owned() })
    }

    /// Feeds the events and gives the end state with the actions of the last step.
    fn after(events: impl IntoIterator<Item = Event>) -> (State, Vec<Action>) {
        let mut at = (State::Preparing, vec![]);
        for event in events {
            at = step(at.0, event);
        }
        at
    }

    fn booted() -> Vec<Event> {
        vec![Event::Prepared(Origin::Kernel), up("a"), Event::IdentitySet, Event::DesktopReady]
    }

    fn running_and(events: impl IntoIterator<Item = Event>) -> (State, Vec<Action>) {
        after(booted().into_iter().chain(events))
    }

    fn stopped() -> State {
        State::Ended(Ending::Stopped)
    }

    #[test]
    fn the_happy_path() {
        let (state, actions) = after([Event::Prepared(Origin::Kernel)]);
        assert_eq!(state, State::Booting(Boot::first()));
        assert_eq!(actions, [Action::StartQemu(Origin::Kernel), Action::SetDeadline(AGENT_DEADLINE)]);
        let (_, actions) = after([Event::Prepared(Origin::Kernel), up("a")]);
        assert_eq!(actions, [Action::SetIdentity, Action::SetDeadline(IDENTITY_DEADLINE)]);
        let (_, actions) = after([Event::Prepared(Origin::Kernel), up("a"), Event::IdentitySet]);
        assert_eq!(actions, [Action::WaitDesktop, Action::SetDeadline(DESKTOP_DEADLINE)]);
        let (state, actions) = running_and([]);
        assert_eq!(state, State::Running { boot_id: "a".to_owned(), link: Link::Up });
        assert_eq!(actions, [Action::ClearDeadline, Action::OpenGuest]);
        let (state, actions) = running_and([Event::StopAsked]);
        assert_eq!(state, State::Stopping(Stop::Asked));
        assert_eq!(actions, [Action::CloseGuest, Action::PowerOff, Action::SetDeadline(STOP_DEADLINE)]);
        let end = [Event::StopAsked, Event::GuestShutdown, Event::QemuExited(QemuExit::Clean)];
        assert_eq!(running_and(end).0, stopped());
    }

    #[test]
    fn a_silent_boot_is_reset_once_and_then_fails() {
        let (state, actions) = after([Event::Prepared(Origin::Kernel), Event::DeadlinePassed]);
        assert_eq!(state, State::Booting(Boot { watchdog: Watchdog::Spent, ..Boot::first() }));
        assert_eq!(actions, [Action::Reset, Action::SetDeadline(AGENT_DEADLINE)]);
        let (state, actions) =
            after([Event::Prepared(Origin::Kernel), Event::DeadlinePassed, Event::DeadlinePassed]);
        let State::Failing { reason } = &state else { panic!("{state:?}") };
        assert!(reason.contains("180 s"), "{reason}");
        assert!(actions.contains(&Action::Kill));
        let reason = reason.clone();
        assert_eq!(step(state, crash()).0, State::Ended(Ending::Failed { reason }));
    }

    #[test]
    fn a_boot_loop_ends_with_the_kernels_words() {
        let reset = || Event::GuestReset { panic: Some("VFS: no root".to_owned()) };
        let (state, actions) = after([Event::Prepared(Origin::Kernel), reset(), reset()]);
        assert_eq!(state, State::Booting(Boot { setbacks: 2, ..Boot::first() }));
        assert_eq!(actions, [Action::DropLink, Action::SetDeadline(AGENT_DEADLINE)]);
        let (state, _) = after([Event::Prepared(Origin::Kernel), reset(), reset(), reset()]);
        assert_eq!(state, State::Failing { reason: "the guest's kernel stopped: VFS: no root".to_owned() });
    }

    #[test]
    fn an_agent_lost_while_booting_is_a_setback_once() {
        // The call that was in progress and the connection both report it.
        let (state, _) =
            after([Event::Prepared(Origin::Kernel), up("a"), Event::AgentLost, Event::AgentLost]);
        assert_eq!(state, State::Booting(Boot { setbacks: 1, ..Boot::first() }));
    }

    #[test]
    fn a_running_computer_outlasts_its_agent() {
        let (state, actions) = running_and([Event::AgentLost]);
        assert_eq!(state, State::Running { boot_id: "a".to_owned(), link: Link::Down });
        assert_eq!(actions, [Action::CloseGuest]);
        let (state, actions) = running_and([Event::AgentLost, up("a")]);
        assert_eq!(state, State::Running { boot_id: "a".to_owned(), link: Link::Up });
        assert_eq!(actions, [Action::OpenGuest], "the same boot has its identity");
    }

    #[test]
    fn a_restarted_guest_gets_its_identity_before_anyone_may_call_it() {
        let (state, actions) = running_and([Event::AgentLost, up("b")]);
        assert_eq!(state.phase(), Phase::Booting);
        assert_eq!(
            actions,
            [Action::CloseGuest, Action::SetIdentity, Action::SetDeadline(IDENTITY_DEADLINE)]
        );
        let (state, actions) = running_and([Event::GuestReset { panic: None }]);
        assert_eq!(state, State::Booting(Boot::first()));
        assert_eq!(actions, [Action::CloseGuest, Action::DropLink, Action::SetDeadline(AGENT_DEADLINE)]);
    }

    #[test]
    fn a_stop_goes_from_asking_to_quitting_to_killing() {
        let ask = || vec![Event::Prepared(Origin::Kernel), Event::StopAsked];
        assert!(after(ask()).1.contains(&Action::PowerButton), "no agent to ask");
        let then = |events: Vec<Event>| after(ask().into_iter().chain(events));
        assert_eq!(then(vec![up("a")]).1, [Action::PowerOff]);
        assert_eq!(then(vec![up("a"), Event::PowerOffFailed]).1, [Action::PowerButton]);
        assert_eq!(then(vec![Event::StopAsked]), (State::Stopping(Stop::Asked), vec![]));
        let (state, actions) = then(vec![Event::DeadlinePassed]);
        assert_eq!(state, State::Stopping(Stop::Quitting));
        assert_eq!(actions, [Action::Quit, Action::SetDeadline(QUIT_DEADLINE)]);
        let (state, actions) = then(vec![Event::DeadlinePassed, Event::DeadlinePassed]);
        assert_eq!(state, State::Stopping(Stop::Killing));
        assert_eq!(actions, [Action::Kill, Action::ClearDeadline]);
        assert_eq!(step(state, crash()).0, stopped());
        assert_eq!(after([Event::StopAsked]).0, stopped(), "before QEMU there is nothing to stop");
    }

    #[test]
    fn qemus_end_is_the_computers() {
        let failed = State::Ended(Ending::Failed { reason: "QEMU was killed by signal 9".to_owned() });
        assert_eq!(running_and([crash()]).0, failed);
        assert_eq!(running_and([Event::StopAsked, crash()]).0, failed, "not by our hand");
        assert_eq!(running_and([Event::QemuExited(QemuExit::Clean)]).0, stopped());
        assert_eq!(running_and([Event::GuestShutdown]).0.phase(), Phase::Stopping);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let text = || "[ab]";
        prop_oneof![
            prop_oneof![Just(Origin::Kernel), Just(Origin::Memory)].prop_map(Event::Prepared),
            Just(Event::Resumed),
            text().prop_map(|reason| Event::ResumeFailed { reason }),
            prop_oneof![Just(Save::Suspend), Just(Save::Capture)].prop_map(Event::SaveAsked),
            Just(Event::Saved),
            Just(Event::SaveFailed),
            text().prop_map(|reason| Event::PrepareFailed { reason }),
            text().prop_map(|reason| Event::StartFailed { reason }),
            Just(Event::QemuExited(QemuExit::Clean)),
            text().prop_map(|reason| Event::QemuExited(QemuExit::Crashed { reason })),
            Just(Event::GuestShutdown),
            proptest::option::of(text()).prop_map(|panic| Event::GuestReset { panic }),
            text().prop_map(|boot_id| Event::AgentUp { boot_id }),
            Just(Event::AgentLost),
            Just(Event::IdentitySet),
            text().prop_map(|reason| Event::IdentityFailed { reason }),
            Just(Event::DesktopReady),
            text().prop_map(|reason| Event::DesktopFailed { reason }),
            Just(Event::PowerOffFailed),
            Just(Event::StopAsked),
            Just(Event::DeadlinePassed),
        ]
    }

    /// The state apart from a save that goes on.
    fn apart(state: &State) -> &State {
        match state {
            State::Saving { then, .. } => then,
            other => other,
        }
    }

    #[test]
    fn memory_is_the_short_way_and_has_one_try() {
        let resume = || vec![Event::Prepared(Origin::Memory)];
        let then = |events: Vec<Event>| after(resume().into_iter().chain(events));
        assert_eq!(then(vec![]).1, [Action::StartQemu(Origin::Memory), Action::SetDeadline(LOAD_DEADLINE)]);
        let (state, actions) = then(vec![Event::Resumed]);
        assert_eq!(
            (state, actions),
            (State::Booting(Boot::continued()), vec![Action::SetDeadline(CONTINUE_DEADLINE)])
        );
        let (state, _) = then(vec![Event::Resumed, up("a"), Event::IdentitySet, Event::DesktopReady]);
        assert_eq!(state, State::Running { boot_id: "a".to_owned(), link: Link::Up });

        let boots = |lost: Option<&str>| boot_instead(lost.map(str::to_owned));
        let no_good = || Event::ResumeFailed { reason: "damaged".to_owned() };
        let (state, actions) = then(vec![no_good()]);
        assert_eq!(state, State::Discarding);
        assert!(actions.contains(&Action::TellMemoryLost("damaged".to_owned())), "{actions:?}");
        assert_eq!(then(vec![no_good(), crash()]), (State::Booting(Boot::first()), boots(None)));
        assert_eq!(then(vec![no_good(), Event::StopAsked, crash()]).0, stopped());
        let killed = boots(Some("QEMU was killed by signal 9"));
        assert_eq!(then(vec![crash()]), (State::Booting(Boot::first()), killed.clone()));
        assert_eq!(then(vec![Event::Resumed, crash()]), (State::Booting(Boot::first()), killed));
        for silent in [
            vec![Event::Resumed],
            vec![Event::Resumed, up("a")],
            vec![Event::Resumed, up("a"), Event::IdentitySet],
        ] {
            let (state, actions) = then(silent.into_iter().chain([Event::DeadlinePassed]).collect());
            assert_eq!(state, State::Discarding);
            assert!(actions.contains(&Action::Kill));
        }
        // Once it runs, its end is an end.
        let ran = vec![Event::Resumed, up("a"), Event::IdentitySet, Event::DesktopReady, crash()];
        assert!(matches!(then(ran).0, State::Ended(Ending::Failed { .. })));
    }

    #[test]
    fn a_save_ends_the_computer_or_changes_nothing() {
        let suspend = || Event::SaveAsked(Save::Suspend);
        let capture = || Event::SaveAsked(Save::Capture);
        assert_eq!(running_and([suspend()]).1, [Action::Save]);
        let (state, actions) = running_and([suspend(), Event::Saved]);
        assert_eq!(state, State::Stopping(Stop::Saved));
        assert_eq!(actions, [Action::CloseGuest, Action::Quit, Action::SetDeadline(QUIT_DEADLINE)]);
        assert_eq!(running_and([suspend(), Event::Saved, crash()]).0, stopped(), "all was saved before");
        let running = running_and([]).0;
        for unchanged in [
            vec![suspend(), Event::SaveFailed],
            vec![capture(), Event::Saved],
            vec![capture(), Event::SaveFailed],
        ] {
            assert_eq!(running_and(unchanged), (running.clone(), vec![]));
        }
        assert!(matches!(running_and([capture(), suspend()]).1.as_slice(), [Action::RefuseSave(_)]));
        assert!(matches!(
            after([Event::Prepared(Origin::Kernel), capture()]).1.as_slice(),
            [Action::RefuseSave(_)]
        ));
        // What happens meanwhile counts afterwards.
        let (state, actions) = running_and([capture(), Event::AgentLost]);
        assert_eq!((state.phase(), actions), (Phase::Running, vec![Action::CloseGuest]));
        let (state, _) = running_and([capture(), Event::AgentLost, Event::Saved]);
        assert_eq!(state, State::Running { boot_id: "a".to_owned(), link: Link::Down });
        let (state, actions) = running_and([capture(), Event::StopAsked, Event::Saved]);
        assert_eq!(state, State::Stopping(Stop::Asked));
        assert!(actions.contains(&Action::PowerOff));
    }

    proptest! {
        /// Whatever happens in whatever order.
        #[test]
        fn every_history_keeps_the_promises(events in proptest::collection::vec(any_event(), 0..60)) {
            let mut state = State::Preparing;
            let (mut alive, mut open, mut deadline, mut identity) = (false, false, false, false);
            for event in events {
                let before = state.clone();
                alive &= !matches!(event, Event::QemuExited(_) | Event::StartFailed { .. });
                if event == Event::DeadlinePassed {
                    if !deadline {
                        continue; // it cannot pass when there is none
                    }
                    deadline = false;
                }
                let forgets = matches!(event, Event::GuestReset { .. }) && !matches!(before, State::Ended(_));
                let confirms = event == Event::IdentitySet
                    && matches!(apart(&before), State::Booting(Boot { stage: Stage::Identity { .. }, .. }));
                let (next, actions) = step(state, event);
                identity = (identity && !forgets) || confirms;
                for action in &actions {
                    match action {
                        Action::StartQemu(_) => {
                            prop_assert!(!alive, "one QEMU at a time");
                            (alive, identity) = (true, false);
                        }
                        Action::OpenGuest => open = true,
                        Action::CloseGuest => open = false,
                        Action::SetDeadline(_) => deadline = true,
                        Action::ClearDeadline => deadline = false,
                        Action::SetIdentity => identity = false,
                        _ => {}
                    }
                }
                if open {
                    prop_assert!(matches!(apart(&next), State::Running { .. }), "only a running guest may be called");
                    prop_assert!(identity, "and only when it knows who it is");
                }
                match (&before, &next) {
                    (State::Ended(_), _) => prop_assert_eq!(&before, &next),
                    (State::Failing { .. }, _) => {
                        prop_assert!(matches!(next, State::Failing { .. } | State::Ended(_)), "failing");
                    }
                    (State::Stopping(_), _) => {
                        prop_assert!(matches!(next, State::Stopping(_) | State::Ended(_)));
                    }
                    _ => {}
                }
                // No wait without an end, except for what a kill or the user brings about.
                let waits = matches!(
                    apart(&next),
                    State::Resuming
                        | State::Booting(_)
                        | State::Stopping(Stop::Asked | Stop::Quitting | Stop::Saved)
                );
                prop_assert_eq!(waits, deadline, "{:?}", next);
                state = next;
            }
        }
    }
}
