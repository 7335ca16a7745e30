//! What the guest writes to its serial console, kept in two files of bounded size.
//!
//! `console.log` is this boot of QEMU, `console.log.1` the one before. A guest may write without end, so
//! when the file has grown to twice [`KEEP`] its older half is dropped. Each line begins with its time
//! ([`roost_machine_proto::ConsoleLine`]).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use roost_api::Timestamp;
use roost_machine_proto::{ConsoleLine, LINE_LIMIT, readable, stamp};
use tokio::sync::broadcast;

/// The newest output that is always kept of one boot, as long as there is that much.
pub const KEEP: u64 = 512 * 1024;
/// How far a follower may be behind before lines are skipped for it.
const FOLLOWED_LINES: usize = 1000;
/// How the kernel begins its last line.
const PANIC: &str = "Kernel panic - not syncing: ";

#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    file: File,
    size: u64,
    /// The line being written now, as far as it is shown, and when it began.
    line: Vec<u8>,
    line_began: Option<Timestamp>,
    completed: broadcast::Sender<ConsoleLine>,
    panic: Option<String>,
}

impl Console {
    /// Starts a new `console.log` and keeps the last one as `console.log.1`.
    pub fn open(path: impl Into<PathBuf>) -> std::io::Result<Self> {
        let path = path.into();
        match std::fs::rename(&path, previous(&path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::options().read(true).append(true).create(true).open(&path)?;
        let (completed, _) = broadcast::channel(FOLLOWED_LINES);
        Ok(Self { path, file, size: 0, line: Vec::new(), line_began: None, completed, panic: None })
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let stamped = self.take_in(bytes);
        self.file.write_all(&stamped)?;
        self.size += stamped.len() as u64;
        if self.size >= 2 * KEEP {
            self.drop_older_half()?;
        }
        Ok(())
    }

    /// The newest lines, oldest first.
    pub fn newest_lines(&mut self, count: usize) -> std::io::Result<Vec<ConsoleLine>> {
        // A line is rarely as long as its limit; reading for all of them would read the whole file.
        let wanted = (count as u64).saturating_mul(160).clamp(4096, KEEP);
        Ok(ConsoleLine::newest(&self.tail(wanted)?, count))
    }

    /// The newest lines that are complete, and each line from now on when it is.
    pub fn follow(
        &mut self,
        count: usize,
    ) -> std::io::Result<(Vec<ConsoleLine>, broadcast::Receiver<ConsoleLine>)> {
        let is_unfinished = self.line_began.is_some();
        let mut lines = self.newest_lines(count + usize::from(is_unfinished))?;
        if is_unfinished {
            lines.pop();
        }
        let older = lines.len().saturating_sub(count);
        Ok((lines.split_off(older), self.completed.subscribe()))
    }

    /// What the kernel said when it stopped, once for each time it did.
    pub fn take_panic(&mut self) -> Option<String> {
        self.panic.take()
    }

    fn tail(&mut self, bytes: u64) -> std::io::Result<Vec<u8>> {
        let mut tail = Vec::new();
        self.file.seek(SeekFrom::Start(self.size.saturating_sub(bytes)))?;
        (&self.file).take(bytes).read_to_end(&mut tail)?;
        Ok(tail)
    }

    fn drop_older_half(&mut self) -> std::io::Result<()> {
        let tail = self.tail(KEEP)?;
        let unfinished = self.path.with_extension("log.tmp");
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&unfinished)?;
        file.write_all(&tail)?;
        drop(file);
        std::fs::rename(&unfinished, &self.path)?;
        self.file = File::options().read(true).append(true).open(&self.path)?;
        self.size = tail.len() as u64;
        Ok(())
    }

    /// What is to be written for `bytes`: lines that begin get their time. Those that end are told of.
    fn take_in(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut stamped = Vec::with_capacity(bytes.len() + 64);
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                // Nothing to see yet.
                b'\r' if self.line_began.is_none() => {}
                _ => {
                    if self.line_began.is_none() {
                        let now = Timestamp::now();
                        self.line_began = Some(now);
                        stamped.extend_from_slice(stamp(now).as_bytes());
                    }
                    if self.line.len() < LINE_LIMIT {
                        self.line.push(byte);
                    }
                }
            }
            stamped.push(byte);
        }
        stamped
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        if let Some((_, said)) = line.split_once(PANIC) {
            self.panic = Some(readable(said));
        }
        let text = readable(&line);
        let at = self.line_began.take();
        self.line.clear();
        if !text.is_empty() {
            // Nobody has to listen.
            drop(self.completed.send(ConsoleLine { at, text }));
        }
    }
}

fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(dir: &tempfile::TempDir) -> Console {
        Console::open(dir.path().join("console.log")).unwrap()
    }

    fn newest(console: &mut Console, count: usize) -> Vec<String> {
        console.newest_lines(count).unwrap().into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn lines_have_the_time_at_which_they_began_and_are_followed_when_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = console(&dir);
        let before = Timestamp::now();
        console.write(b"one\r\n\r\ntw").unwrap();
        let (lines, mut more) = console.follow(5).unwrap();
        assert_eq!(lines.len(), 1, "an unfinished line comes when it ends: {lines:?}");
        assert!(lines[0].text == "one" && lines[0].at.unwrap() >= before);
        assert!(more.try_recv().is_err());
        console.write(b"o\nthree\n").unwrap();
        let two = more.try_recv().unwrap();
        assert_eq!((two.text.as_str(), more.try_recv().unwrap().text.as_str()), ("two", "three"));
        assert!(more.try_recv().is_err());
        // What is read back is what was told.
        assert_eq!(console.newest_lines(2).unwrap()[0], two);
        assert_eq!(console.follow(1).unwrap().0[0].text, "three");
    }

    #[test]
    fn newest_lines_come_in_order_and_clean() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = console(&dir);
        console.write(b"one\r\n\x1b[32mtwo\x1b[0m\r\n\r\nthr").unwrap();
        console.write(b"ee").unwrap();
        assert_eq!(newest(&mut console, 2), ["two", "three"]);
        assert_eq!(newest(&mut console, 100), ["one", "two", "three"]);
        assert_eq!(newest(&mut console, 0), Vec::<String>::new());
    }

    #[test]
    fn a_flood_stays_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = console(&dir);
        let line = [b'x'; 4095];
        for number in 0..2000 {
            console.write(&line).unwrap();
            console.write(format!("\n{number}\n").as_bytes()).unwrap();
            assert!(std::fs::metadata(dir.path().join("console.log")).unwrap().len() < 2 * KEEP + 8192);
        }
        assert_eq!(newest(&mut console, 1), ["1999"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = console(&dir);
        for _ in 0..100 {
            console.write(&[b'y'; 1000]).unwrap();
        }
        let lines = newest(&mut console, 5);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].len() <= LINE_LIMIT + '…'.len_utf8());
    }

    #[test]
    fn each_boot_keeps_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        for boot in ["first", "second", "third"] {
            console(&dir).write(boot.as_bytes()).unwrap();
        }
        let read = |name: &str| {
            let log = std::fs::read(dir.path().join(name)).unwrap();
            ConsoleLine::newest(&log, 9).into_iter().map(|line| line.text).collect::<Vec<_>>()
        };
        assert_eq!(read("console.log"), ["third"]);
        assert_eq!(read("console.log.1"), ["second"]);
    }

    #[test]
    fn a_panic_is_found_across_writes_and_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = console(&dir);
        console.write(b"[    2.0] Kernel panic - not sync").unwrap();
        assert_eq!(console.take_panic(), None);
        console.write(b"ing: VFS: no root\r\nmore").unwrap();
        assert_eq!(console.take_panic().as_deref(), Some("VFS: no root"));
        assert_eq!(console.take_panic(), None);
    }
}
