//! Looking for files by their name, and for text in them.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use glob::{MatchOptions, Pattern};
use roost_guest_proto::v1::{FileMatch, SearchFilesRequest};

use super::{
    CHUNK, Replier,
    error::FileError,
    info, open_directory,
    place::{Asked, Opened},
    tree::{Directory, Entry, Visit, walk},
};

/// A line that is longer is looked at in parts.
const LONGEST_LINE: u64 = 64 * 1024;
/// How much of a line is shown.
const SHOWN: usize = 500;
/// Bytes at the beginning that say whether a file is text.
const PROBE: usize = 8 * 1024;

pub(super) struct Search {
    asked: Asked,
    directory: Directory,
    _opened: Opened,
    name: Option<Pattern>,
    content: Vec<u8>,
    ignore_case: bool,
    most: u32,
}

impl Search {
    pub(super) fn new(request: SearchFilesRequest) -> Result<Self, FileError> {
        let SearchFilesRequest { directory, name, content, ignore_case, most } = request;
        let (asked, opened, directory) = open_directory(directory.unwrap_or_default())?;
        let pattern = match name.as_str() {
            "" => None,
            name => Some(Pattern::new(name).map_err(|_| FileError::Pattern(name.to_owned()))?),
        };
        let content = if ignore_case { content.to_lowercase() } else { content };
        Ok(Self {
            asked,
            directory,
            _opened: opened,
            name: pattern,
            content: content.into_bytes(),
            ignore_case,
            most,
        })
    }

    pub(super) fn run(self, replies: &Replier<FileMatch>) -> Result<(), FileError> {
        let root = self.asked.text();
        let mut searching = Searching { search: &self, replies, found: 0 };
        match walk(&self.directory, Path::new(&root), &mut searching) {
            Err(FileError::Incomplete) => Ok(()), // enough, or nobody listens
            done => done,
        }
    }

    fn has_name(&self, name: &OsStr) -> bool {
        let options = MatchOptions {
            case_sensitive: !self.ignore_case,
            require_literal_separator: false,
            require_literal_leading_dot: false,
        };
        let matches = |pattern: &Pattern| pattern.matches_with(&name.to_string_lossy(), options);
        self.name.as_ref().is_none_or(matches)
    }

    fn is_in(&self, line: &[u8]) -> bool {
        let holds = |line: &[u8]| line.windows(self.content.len()).any(|part| part == self.content);
        if self.ignore_case {
            holds(String::from_utf8_lossy(line).to_lowercase().as_bytes())
        } else {
            holds(line)
        }
    }
}

struct Searching<'a> {
    search: &'a Search,
    replies: &'a Replier<FileMatch>,
    found: u32,
}

impl Visit for Searching<'_> {
    fn visit(&mut self, directory: &Directory, path: &Path, entry: &Entry) -> Result<bool, FileError> {
        if self.search.has_name(&entry.name) {
            if self.search.content.is_empty() {
                self.report(directory, path, entry, 0, String::new())?;
            } else if entry.metadata.is_file() {
                // Files that cannot be read, or go meanwhile, have nothing in them that could be found.
                if let Ok(file) = directory.file(&entry.name) {
                    self.look_into(file, directory, path, entry)?;
                }
            }
        }
        Ok(true)
    }
}

impl Searching<'_> {
    fn report(
        &mut self,
        directory: &Directory,
        path: &Path,
        entry: &Entry,
        line: u64,
        text: String,
    ) -> Result<(), FileError> {
        let info = info(&entry.name, &directory.path(&entry.name), &entry.metadata);
        let path = path.to_string_lossy().into_owned();
        self.replies.send(FileMatch { path, info: Some(info), line, text })?;
        self.found += 1;
        if self.found >= self.search.most { Err(FileError::Incomplete) } else { Ok(()) }
    }

    fn look_into(
        &mut self,
        file: File,
        directory: &Directory,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), FileError> {
        let mut reader = BufReader::with_capacity(CHUNK, file);
        if reader.fill_buf().is_ok_and(|probe| probe[..probe.len().min(PROBE)].contains(&0)) {
            return Ok(()); // no text
        }
        let mut line = Vec::new();
        let mut number = 1;
        while let Ok(1..) = read_line(&mut reader, &mut line) {
            if self.search.is_in(&line) {
                let shown = String::from_utf8_lossy(line.trim_ascii_end()).chars().take(SHOWN).collect();
                self.report(directory, path, entry, number, shown)?;
            }
            number += u64::from(line.ends_with(b"\n"));
        }
        Ok(())
    }
}

fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    reader.take(LONGEST_LINE).read_until(b'\n', line)
}
