//! Scripts that computers run once, when they run for the first time.
//!
//! The guest knows whether a script was begun, and whether it has ended: that is in files on its disk, and who runs it
//! holds a lock. So the server only starts a command that begins the script unless it was begun, waits for the lock and
//! says how it ended. It may do so as often as it likes: after a crash, after a stop in which the script's memory was
//! saved, beside another server, and in a clone or a restored computer. Those have the row of their source anew: a script
//! that was at work when they were made goes on in them too, one that had ended is not run again, and one that had not
//! begun yet begins. A script that a restart interrupts is not run again either: it has failed.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use roost_api::{ApiError, ComputerId, ErrorCode, Setup, SetupStatus, Status, TenantId, Timestamp};
use roost_store::{ComputerRecord, Desired, Observed, SetupChange, SetupState};
use serde_json::Value;

use crate::exec::ExecCommand;
use crate::status::status;
use crate::{Control, Failure};

const LONGEST_SCRIPT: usize = 64 * 1024;
/// How long a script may take before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Before an agent that does not answer is asked again: at first, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long to wait for a database that does not answer.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Begins the script on its standard input unless it was begun, waits for its end, and prints its exit code, a line end
/// and the last of what it said. Whoever holds the lock runs the script; this command hands it on to that, so that there
/// is no moment in which a second one could begin it, and none in which this command's end loses it. The programs that
/// the script leaves behind do not hold the lock. Ends with [`INTERRUPTED`] where the script was begun and has no end.
const RUN: &str = r#"
dir="$HOME/.local/state/roost/setup"
mkdir -p "$dir" && chmod 700 "$dir" && cd "$dir" || exit 1
exec 9>>lock
flock 9 || exit 1
if [ ! -e begun ]; then
    cat >script.part && chmod 700 script.part && mv script.part script || exit 1
    setsid /bin/bash -lc '
        : >begun && sync begun . || exit 1
        cd "$HOME"
        "$0/script" </dev/null >"$0/output" 2>&1 9>&-
        echo "$?" >"$0/exit.part" && mv "$0/exit.part" "$0/exit"
    ' "$dir" </dev/null >/dev/null 2>&1 &
    exec 9>&- 9>>lock
    flock 9 || exit 1
fi
[ -e exit ] || exit 75
cat exit
tail -c 65536 output
"#;
/// EX_TEMPFAIL of sysexits: the script does not end with it, this is the waiting command's own exit code.
const INTERRUPTED: i32 = 75;

/// The computers whose script this server follows.
#[derive(Debug, Default)]
pub(crate) struct Setups(Mutex<HashSet<ComputerId>>);

/// The place of the one follower of a computer's script.
#[derive(Debug)]
struct Place {
    control: Control,
    computer: ComputerId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let setups = &self.control.inner.setups;
        setups.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.computer);
        // The computer may have been started anew while it was leaving.
        self.control.inner.hub.wake();
    }
}

impl Control {
    /// How far the script of a computer is.
    pub async fn setup(&self, record: &ComputerRecord) -> Result<Setup, Failure> {
        let (id, tenant) = (record.id, record.tenant_id);
        let Some(found) = self.inner.store.setup(id).await? else {
            return Ok(Setup {
                computer_id: id,
                status: None,
                exit_code: None,
                output: None,
                error: None,
                started_at: None,
                ended_at: None,
            });
        };
        let open = |sealed: &String| self.open_setup("output", tenant, id, sealed);
        Ok(Setup {
            computer_id: id,
            status: Some(setup_status(found.state)),
            exit_code: found.exit_code,
            output: found.output.as_ref().map(open).transpose()?,
            error: found.error,
            started_at: found.started_at,
            ended_at: found.ended_at,
        })
    }

    /// The script of a computer that is being made, sealed for it.
    pub(crate) fn new_setup(
        &self,
        tenant: TenantId,
        computer: ComputerId,
        script: Option<Value>,
    ) -> Result<Option<String>, Failure> {
        let Some(script) = checked(script)? else { return Ok(None) };
        self.seal_setup("script", tenant, computer, &script).map(Some)
    }

    /// The same with the script of another computer of the tenant. One that is gone has none.
    pub(crate) async fn setup_of(
        &self,
        tenant: TenantId,
        source: ComputerId,
        computer: ComputerId,
    ) -> Result<Option<String>, Failure> {
        let Some(found) = self.inner.store.setup(source).await? else { return Ok(None) };
        let script = self.open_setup("script", tenant, source, &found.script)?;
        self.seal_setup("script", tenant, computer, &script).map(Some)
    }

    fn seal_setup(
        &self,
        what: &str,
        tenant: TenantId,
        computer: ComputerId,
        text: &str,
    ) -> Result<String, Failure> {
        self.inner.config.seal_key.seal(&context(what, tenant, computer), text.as_bytes())
    }

    fn open_setup(
        &self,
        what: &str,
        tenant: TenantId,
        computer: ComputerId,
        sealed: &str,
    ) -> Result<String, Failure> {
        let opened = self.inner.config.seal_key.open(&context(what, tenant, computer), sealed);
        opened.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
            let what =
                format!("the {what} of the setup of computer {computer} opens with no key of this server");
            Failure::internal(std::io::Error::other(what))
        })
    }

    /// Follows scripts, for as long as this control plane lives.
    pub(crate) fn keep_setting_up(&self) {
        let mut changes = self.inner.hub.subscribe_to_all();
        let control = std::sync::Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                changes.mark_unchanged();
                let Some(inner) = control.upgrade() else { return };
                let looked = (Control { inner }).begin_setting_up().await;
                let waited = match looked {
                    Ok(()) => changes.changed().await,
                    Err(failure) => {
                        later(&failure, "failed to look for scripts to run; trying again");
                        tokio::time::timeout(AFTER_FAILURE, changes.changed()).await.unwrap_or(Ok(()))
                    }
                };
                if waited.is_err() {
                    return;
                }
            }
        });
    }

    async fn begin_setting_up(&self) -> Result<(), Failure> {
        for computer in self.inner.store.setting_up().await? {
            let mut setups = self.inner.setups.0.lock().unwrap_or_else(PoisonError::into_inner);
            if setups.insert(computer) {
                let place = Place { control: self.clone(), computer };
                let left = self.inner.engine.left();
                tokio::spawn(async move { left.run_until_cancelled(place.follow()).await });
            }
        }
        Ok(())
    }
}

impl Place {
    /// Until the script has ended, or the computer does not run any more.
    async fn follow(self) {
        let mut changes = self.control.inner.hub.subscribe(self.computer);
        let mut pause = PAUSE;
        loop {
            changes.mark_unchanged();
            match self.follow_once().await {
                Ok(Next::Done) => return,
                // The hub lives as long as this control plane.
                Ok(Next::NotYet) => drop(changes.changed().await),
                Err(failure) => {
                    later(&failure, "failed to follow the script of a computer; trying again");
                    drop(tokio::time::timeout(pause, changes.changed()).await);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// An error says nothing about the script: it may go on.
    async fn follow_once(&self) -> Result<Next, Failure> {
        let (control, computer) = (&self.control, self.computer);
        let store = &control.inner.store;
        let Some(record) = store.computer(computer).await? else { return Ok(Next::Done) };
        if record.desired != Desired::Running || record.observed != Observed::Running {
            return Ok(Next::Done); // its next start brings another follower
        }
        if status(&record) != Status::Running {
            return Ok(Next::NotYet);
        }
        let Some(setup) = store.setup(computer).await? else { return Ok(Next::Done) };
        match setup.state {
            SetupState::Waiting | SetupState::Running => {}
            SetupState::Completed | SetupState::Failed => return Ok(Next::Done),
        }
        let script = control.open_setup("script", record.tenant_id, computer, &setup.script)?;
        self.record(SetupChange::Running).await?;
        let started = setup.started_at.unwrap_or_else(Timestamp::now);
        let taken = Timestamp::now().as_micros().saturating_sub(started.as_micros());
        let left = PATIENCE.saturating_sub(Duration::from_micros(u64::try_from(taken).unwrap_or(0)));
        if left.is_zero() {
            return self.end(too_long()).await;
        }
        // It counts as use of the computer for as long as it runs, as every command does.
        let argv = ["/bin/bash", "-c", RUN].map(str::to_owned).to_vec();
        let command = ExecCommand { argv, timeout: Some(left), stdin: true, ..ExecCommand::default() };
        let ended = control.run_apart(computer, command, Some(script)).await?;
        let change = match (ended.timed_out, ended.exit_code) {
            (true, _) => too_long(),
            (false, 0) => match parse(&ended.stdout) {
                Some((exit_code, output)) => {
                    let output = control.seal_setup("output", record.tenant_id, computer, output)?;
                    SetupChange::Ended { exit_code, output }
                }
                None => SetupChange::Failed("how it ended cannot be read in the computer".to_owned()),
            },
            (false, INTERRUPTED) => SetupChange::Failed(
                "it was interrupted: the computer was restarted, or somebody ended it".to_owned(),
            ),
            (false, code) => SetupChange::Failed(format!(
                "it could not be run (exit code {code}): {}",
                ended.stderr.trim()
            )),
        };
        self.end(change).await
    }

    async fn end(&self, change: SetupChange) -> Result<Next, Failure> {
        self.record(change).await?;
        Ok(Next::Done)
    }

    async fn record(&self, change: SetupChange) -> Result<(), Failure> {
        let inner = &self.control.inner;
        if inner.store.record_setup(self.computer, &change).await? {
            let computer = self.computer;
            match &change {
                SetupChange::Running => {}
                SetupChange::Ended { exit_code, .. } => {
                    tracing::info!(%computer, exit_code, "its script has ended")
                }
                SetupChange::Failed(why) => {
                    tracing::warn!(%computer, why, "its script did not come to its end")
                }
            }
            inner.hub.wake();
        }
        Ok(())
    }
}

enum Next {
    /// It is on its way to run.
    NotYet,
    Done,
}

fn too_long() -> SetupChange {
    let minutes = PATIENCE.as_secs() / 60;
    SetupChange::Failed(format!("it had not ended after {minutes} minutes; it may run on in the computer"))
}

/// The exit code, and what follows it.
fn parse(text: &str) -> Option<(i32, &str)> {
    let (code, output) = text.split_once('\n')?;
    Some((code.trim().parse().ok()?, output))
}

/// A script as callers give it: `None` where there is none.
fn checked(script: Option<Value>) -> Result<Option<String>, ApiError> {
    let wrong =
        |problem: &str| Err(ApiError::new(ErrorCode::InvalidSetupFile, format!("setup_file {problem}")));
    match script {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() > LONGEST_SCRIPT => {
            wrong(&format!("is larger than {LONGEST_SCRIPT} bytes; have it fetch the rest"))
        }
        Some(Value::String(text)) if text.contains('\0') => {
            wrong("holds a NUL character, which no script has")
        }
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => wrong("is not text: give the script itself"),
    }
}

/// A value opens only as this part of this computer's setup.
pub(crate) fn context(what: &str, tenant: TenantId, computer: ComputerId) -> String {
    format!("setup-{what}/{tenant}/{computer}")
}

pub(crate) fn setup_status(state: SetupState) -> SetupStatus {
    match state {
        SetupState::Waiting => SetupStatus::Waiting,
        SetupState::Running => SetupStatus::Running,
        SetupState::Completed => SetupStatus::Completed,
        SetupState::Failed => SetupStatus::Failed,
    }
}

fn later(failure: &Failure, what: &str) {
    tracing::warn!(failure = failure as &dyn std::error::Error, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_script() {
        let text = |text: &str| checked(Some(Value::String(text.to_owned())));
        assert_eq!(text("echo hi\n").unwrap().as_deref(), Some("echo hi\n"));
        assert_eq!(checked(None).unwrap(), None);
        assert_eq!(checked(Some(Value::Null)).unwrap(), None);
        assert_eq!(text(" \n").unwrap(), None);
        assert!(text(&"x".repeat(LONGEST_SCRIPT)).is_ok());
        for wrong in [text(&"x".repeat(LONGEST_SCRIPT + 1)), text("a\0b"), checked(Some(Value::Bool(true)))] {
            assert_eq!(wrong.unwrap_err().code, ErrorCode::InvalidSetupFile);
        }
    }

    #[test]
    fn how_it_ended_is_read() {
        assert_eq!(parse("0\nhi\nho"), Some((0, "hi\nho")));
        assert_eq!(parse("127\n"), Some((127, "")));
        assert_eq!(parse("x\nhi"), None);
        assert_eq!(parse(""), None);
    }
}
