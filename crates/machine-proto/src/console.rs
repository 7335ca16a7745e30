//! The form of `console.log`: each line begins with when the guest began it, and is the guest's otherwise.
//!
//! The content is as untrusted as the guest: what is handed out is stripped of control characters and cut to a length.

use roost_api::Timestamp;

/// Lines longer than this are cut where they are shown.
pub const LINE_LIMIT: usize = 1000;

/// A line as a person may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleLine {
    /// When the guest began it, by the host's clock; `None` where its begin is lost.
    pub at: Option<Timestamp>,
    pub text: String,
}

impl ConsoleLine {
    /// A line of `console.log`; `None` for one in which there is nothing to see.
    pub fn parse(line: &str) -> Option<Self> {
        let stamped = line.split_once(' ').and_then(|(at, text)| Some((at.parse().ok()?, text)));
        let (at, text) = stamped.map_or((None, line), |(at, text)| (Some(at), text));
        let text = readable(text);
        (!text.is_empty()).then_some(Self { at, text })
    }

    /// The last `count` lines of a part of `console.log`.
    pub fn newest(log: &[u8], count: usize) -> Vec<Self> {
        let log = String::from_utf8_lossy(log);
        let mut lines: Vec<Self> = log.split('\n').filter_map(Self::parse).collect();
        let older = lines.len().saturating_sub(count);
        lines.split_off(older)
    }
}

/// What stands before a line that begins now.
pub fn stamp(at: Timestamp) -> String {
    format!("{at} ")
}

/// Without terminal control sequences, cut to the limit.
pub fn readable(line: &str) -> String {
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

    #[test]
    fn lines_are_read_with_and_without_their_time() {
        let at = Timestamp::from_micros(1_700_000_000_123_456);
        let line = format!("{}\u{1b}[32mready\u{1b}[0m\r", stamp(at.unwrap()));
        assert_eq!(ConsoleLine::parse(&line), Some(ConsoleLine { at, text: "ready".to_owned() }));
        let plain = ConsoleLine { at: None, text: "two words".to_owned() };
        assert_eq!(ConsoleLine::parse("two words"), Some(plain));
        assert_eq!(ConsoleLine::parse(&stamp(at.unwrap())), None);
        assert_eq!(ConsoleLine::parse("\r"), None);
        let newest = ConsoleLine::newest(b"a\n\nb\nc", 2);
        assert_eq!(newest.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    }
}
