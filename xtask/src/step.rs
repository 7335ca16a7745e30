//! Steps: one line each, how long they took, and the whole output of one that failed.

use std::io::{IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many lines of a failed command's output are shown.
const SHOWN: usize = 60;

pub(crate) fn say(text: &str) {
    // A closed terminal is no reason to stop working.
    drop(writeln!(std::io::stdout(), "{text}"));
}

/// Runs a command as one step. Its output is kept back, unless it fails.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<()> {
    output(name, command).map(drop)
}

/// The same, and returns what the command printed.
pub(crate) fn output(name: &str, command: &mut Command) -> Result<String> {
    let begun = Instant::now();
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start {program}: is it installed?"))?;
    let (sender, ended) = channel();
    let readers = [
        child.stdout.take().map(|pipe| read(pipe, sender.clone())),
        child.stderr.take().map(|pipe| read(pipe, sender.clone())),
    ];
    drop(sender);
    // Both pipes closed means the command is done; until then a line that counts.
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_secs(1)) {
        if std::io::stdout().is_terminal() && begun.elapsed() > Duration::from_secs(2) {
            progress(&format!("  ..   {name} {:>4} s", begun.elapsed().as_secs()));
        }
    }
    let texts = readers.map(|reader| reader.and_then(|reader| reader.join().ok()).unwrap_or_default());
    let status = child.wait().with_context(|| format!("failed to wait for {program}"))?;
    clear();
    if !status.success() {
        let text = texts.concat();
        let lines: Vec<&str> = text.lines().collect();
        say(&lines[lines.len().saturating_sub(SHOWN)..].join("\n"));
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!("{name}: `{program} {}` ended with {status}", arguments.join(" "));
    }
    done(name, begun);
    let [text, _] = texts;
    Ok(text)
}

/// Runs a command whose own output is the point, such as a test runner.
pub(crate) fn show(name: &str, command: &mut Command) -> Result<()> {
    let begun = Instant::now();
    say(&format!("  ..   {name}"));
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("failed to start {program}: is it installed?"))?;
    if !status.success() {
        bail!("{name}: {program} ended with {status}; its output is above");
    }
    done(name, begun);
    Ok(())
}

pub(crate) fn done(name: &str, begun: Instant) {
    say(&format!("  ok   {name} ({:.1} s)", begun.elapsed().as_secs_f64()));
}

fn read(
    mut pipe: impl Read + Send + 'static,
    ended: std::sync::mpsc::Sender<()>,
) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks ends like one that closes; the exit status decides.
        drop(pipe.read_to_end(&mut bytes));
        drop(ended);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn progress(text: &str) {
    drop(write!(std::io::stdout(), "\r{text}"));
    drop(std::io::stdout().flush());
}

fn clear() {
    if std::io::stdout().is_terminal() {
        drop(write!(std::io::stdout(), "\r\x1b[K"));
    }
}
