//! Bytes that come in pieces, as text.

/// Holds back the bytes of a character that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    held: Vec<u8>,
}

impl Utf8 {
    /// The text that is complete with these bytes; bytes that can never be UTF-8 become U+FFFD.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[..valid]));
                    match error.error_len() {
                        Some(length) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            self.held.drain(..valid + length);
                        }
                        None => {
                            self.held.drain(..valid);
                            return text;
                        }
                    }
                }
            }
        }
    }

    /// What is left at the end of the stream.
    pub(super) fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Utf8;

    #[test]
    fn any_split_gives_the_same_text() {
        let text = "aé日🦀z";
        for size in 1..=text.len() {
            let mut utf8 = Utf8::default();
            let mut out = String::new();
            for piece in text.as_bytes().chunks(size) {
                out.push_str(&utf8.push(piece));
            }
            out.push_str(&utf8.finish());
            assert_eq!(out, text, "pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_text_is_marked_once() {
        let mut utf8 = Utf8::default();
        assert_eq!(utf8.push(b"a\xffb\xe6"), "a\u{fffd}b");
        assert_eq!(utf8.finish(), "\u{fffd}");
    }
}
