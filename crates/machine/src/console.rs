//! What the guest writes to its serial console, kept in two files of bounded size.
//!
//! `console.log` is this boot of QEMU, `console.log.1` the one before. A guest may write without end, so
//! when the file has grown to twice [`KEEP`] its older half is dropped. The content is the guest's and as
//! untrusted as it: lines handed out are stripped of control characters and cut to a length.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The newest output that is always kept of one boot, as long as there is that much.
pub const KEEP: u64 = 512 * 1024;
/// Lines longer than this are cut where they are shown.
const LINE_LIMIT: usize = 1000;
/// How the kernel begins its last line.
const PANIC: &str = "Kernel panic - not syncing: ";

#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    file: File,
    size: u64,
    /// The line being written now, as far as it matters to finding a panic.
    line: Vec<u8>,
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
        Ok(Self { path, file, size: 0, line: Vec::new(), panic: None })
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.look_for_panic(bytes);
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        if self.size >= 2 * KEEP {
            self.drop_older_half()?;
        }
        Ok(())
    }

    /// The newest lines, oldest first.
    pub fn newest_lines(&mut self, count: usize) -> std::io::Result<Vec<String>> {
        // A line is rarely as long as its limit; reading for all of them would read the whole file.
        let wanted = (count as u64).saturating_mul(160).clamp(4096, KEEP);
        let tail = self.tail(wanted)?;
        let text = String::from_utf8_lossy(&tail);
        let mut lines: Vec<String> = text.split('\n').map(readable).filter(|line| !line.is_empty()).collect();
        let older = lines.len().saturating_sub(count);
        Ok(lines.split_off(older))
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

    fn look_for_panic(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < LINE_LIMIT {
                    self.line.push(byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.line);
            if let Some((_, said)) = line.split_once(PANIC) {
                self.panic = Some(readable(said));
            }
            self.line.clear();
        }
    }
}

fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// One line as a person may see it: without terminal control sequences, cut to the limit.
fn readable(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line.chars().peekable();
    while let Some(char) = rest.next() {
        if char == '\u{1b}' {
            // ESC [ parameters final-byte; any other sequence is ESC and one character.
            if rest.next() == Some('[') {
                for parameter in rest.by_ref() {
                    if ('@'..='~').contains(&parameter) {
                        break;
                    }
                }
            }
        } else if char == '\t' {
            shown.push(' ');
        } else if !char.is_control() {
            shown.push(char);
        }
        if shown.len() >= LINE_LIMIT {
            shown.push('…');
            break;
        }
    }
    shown.truncate(shown.trim_end().len());
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(dir: &tempfile::TempDir) -> Console {
        Console::open(dir.path().join("console.log")).unwrap()
    }

    #[test]
    fn newest_lines_come_in_order_and_clean() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = console(&dir);
        console.write(b"one\r\n\x1b[32mtwo\x1b[0m\r\n\r\nthr").unwrap();
        console.write(b"ee").unwrap();
        assert_eq!(console.newest_lines(2).unwrap(), ["two", "three"]);
        assert_eq!(console.newest_lines(100).unwrap(), ["one", "two", "three"]);
        assert_eq!(console.newest_lines(0).unwrap(), Vec::<String>::new());
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
        assert_eq!(console.newest_lines(1).unwrap(), ["1999"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut console = console(&dir);
        for _ in 0..100 {
            console.write(&[b'y'; 1000]).unwrap();
        }
        let lines = console.newest_lines(5).unwrap();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].len() <= LINE_LIMIT + '…'.len_utf8());
    }

    #[test]
    fn each_boot_keeps_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        for boot in ["first", "second", "third"] {
            console(&dir).write(boot.as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("console.log"), "third");
        assert_eq!(read("console.log.1"), "second");
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
