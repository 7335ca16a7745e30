//! The last words of a program that is run: its standard error, line by line.

use std::collections::VecDeque;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

const LINES: usize = 10;
const LINE_LIMIT: u64 = 2000;

/// The newest lines of a stream.
#[derive(Debug, Default)]
pub struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    /// Reads to the end, showing every line to `each` and keeping the newest.
    pub async fn read(stream: impl AsyncRead + Unpin, each: impl Fn(&str)) -> Self {
        let mut tail = Self::default();
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut stream).take(LINE_LIMIT).read_until(b'\n', &mut line).await {
                Ok(0) => return tail,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!("cannot read the standard error of a program: {error}");
                    return tail;
                }
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            if !text.is_empty() {
                each(text);
                tail.lines.push_back(text.to_owned());
                if tail.lines.len() > LINES {
                    tail.lines.pop_front();
                }
            }
        }
    }

    pub fn last(&self) -> Option<&str> {
        self.lines.back().map(String::as_str)
    }

    /// All that is kept, in one line.
    pub fn joined(&self) -> String {
        self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_lines_are_kept() {
        let text = (0..30).map(|number| format!("line {number}\n\n")).collect::<String>();
        let tail = Tail::read(text.as_bytes(), |_| {}).await;
        assert_eq!(tail.last(), Some("line 29"));
        assert_eq!(tail.joined().split("; ").count(), LINES);
    }
}
