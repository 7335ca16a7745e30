//! What the screen does not know of terminals, between a program's output and it.
//!
//! * Line drawing: a program chooses another character set, in which letters are lines and corners. What they mean
//!   reaches the screen as Unicode.
//! * The last column: whoever has written into it stays on it until the next character. The screen has its cursor behind
//!   it, so that what moves or erases from there must be told to begin on it. Without automatic wrap the next character
//!   goes there, too.

/// A screen that output goes to.
pub(super) trait Target {
    fn process(&mut self, bytes: &[u8]);
    fn is_behind_last_column(&self) -> bool;
    fn onto_last_column(&mut self);
}

#[derive(Debug, Clone)]
pub(super) struct Translator {
    state: State,
    active: Active,
    /// What DECSC keeps with the cursor.
    saved: Active,
    wraps: bool,
    /// A control sequence whose end has not come.
    held: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Active {
    /// Whether G0 and G1 are the drawing set.
    draws: [bool; 2],
    /// Which of them letters are of.
    shifted: bool,
}

/// How far into a sequence that is no text we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    Escape,
    /// The set that the next byte chooses is G0 or G1.
    Designate(usize),
    /// Another escape sequence with bytes between.
    Intermediate,
    Control,
    /// Text that is not shown, such as a title.
    Hidden,
}

const ESCAPE: u8 = 0x1b;
const BACKSPACE: u8 = 0x08;
/// Longer ones mean nothing to anybody.
const LONGEST_SEQUENCE: usize = 256;

impl Default for Translator {
    fn default() -> Self {
        let active = Active::default();
        Self { state: State::Text, active, saved: active, wraps: true, held: Vec::new() }
    }
}

impl Translator {
    pub(super) fn write(&mut self, bytes: &[u8], screen: &mut impl Target) {
        let matters = |byte: &u8| matches!(*byte, ESCAPE | BACKSPACE | 0x0e);
        let is_plain = self.state == State::Text && self.active == Active::default() && self.wraps;
        if is_plain && !bytes.iter().any(matters) {
            return screen.process(bytes);
        }
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.next(byte, &mut out, screen);
        }
        screen.process(&out);
    }

    /// What a terminal that was just reset must be told to go on from here.
    pub(super) fn restore(&self) -> String {
        let mut told = String::new();
        for (set, name) in ['(', ')'].into_iter().enumerate() {
            if self.active.draws[set] {
                told.extend(['\x1b', name, '0']);
            }
        }
        if self.active.shifted {
            told.push('\x0e');
        }
        if !self.wraps {
            told.push_str("\x1b[?7l");
        }
        told
    }

    fn next(&mut self, byte: u8, out: &mut Vec<u8>, screen: &mut impl Target) {
        match (self.state, byte) {
            (_, ESCAPE) => {
                out.append(&mut self.held);
                self.state = State::Escape;
            }
            // Cancelled.
            (_, 0x18 | 0x1a) => {
                out.append(&mut self.held);
                self.state = State::Text;
            }
            (State::Control, _) => return self.control(byte, out, screen),
            (State::Text, BACKSPACE) => settle(out, screen),
            (State::Text, 0x0e | 0x0f) => self.active.shifted = byte == 0x0e,
            (State::Text, _) => {
                let begins_character = byte >= 0x20 && !(0x7f..0xc0).contains(&byte);
                if !self.wraps && begins_character {
                    settle(out, screen);
                }
                if self.active.draws[usize::from(self.active.shifted)]
                    && let Some(drawn) = drawing(byte)
                {
                    return out.extend_from_slice(drawn.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
            (State::Escape, b'[') => {
                // What comes before its end may have to be told first.
                out.pop();
                self.held.extend_from_slice(&[ESCAPE, b'[']);
                self.state = State::Control;
                return;
            }
            (State::Escape, b'(') => self.state = State::Designate(0),
            (State::Escape, b')') => self.state = State::Designate(1),
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => self.state = State::Hidden,
            (State::Escape | State::Intermediate, 0x20..=0x2f) => self.state = State::Intermediate,
            (State::Escape, _) => {
                match byte {
                    b'7' => self.saved = self.active,
                    b'8' => self.active = self.saved,
                    b'c' => *self = Self::default(),
                    _ => {}
                }
                self.state = State::Text;
            }
            (State::Designate(set), 0x30..=0x7e) => {
                self.active.draws[set] = byte == b'0';
                self.state = State::Text;
            }
            (State::Intermediate, 0x30..=0x7e) | (State::Hidden, 0x07) => self.state = State::Text,
            (State::Designate(_) | State::Intermediate | State::Hidden, _) => {}
        }
        out.push(byte);
    }

    fn control(&mut self, byte: u8, out: &mut Vec<u8>, screen: &mut impl Target) {
        self.held.push(byte);
        if !(0x40..=0x7e).contains(&byte) && self.held.len() < LONGEST_SEQUENCE {
            return;
        }
        match byte {
            // Left; erase; insert and delete.
            b'D' | b'K' | b'J' | b'X' | b'@' | b'P' => settle(out, screen),
            b'h' | b'l' if self.held.starts_with(b"\x1b[?") => {
                let modes = self.held[3..self.held.len() - 1].split(|byte| *byte == b';');
                if modes.into_iter().any(|mode| mode == b"7") {
                    self.wraps = byte == b'h';
                }
            }
            _ => {}
        }
        out.append(&mut self.held);
        // One that was too long ends where the screen's own parser says: as hidden bytes it can do no harm here.
        self.state = if (0x40..=0x7e).contains(&byte) { State::Text } else { State::Intermediate };
    }
}

fn settle(out: &mut Vec<u8>, screen: &mut impl Target) {
    screen.process(out);
    out.clear();
    if screen.is_behind_last_column() {
        screen.onto_last_column();
    }
}

/// The DEC special graphics.
fn drawing(byte: u8) -> Option<char> {
    const DRAWN: [char; 32] = [
        '\u{a0}', '◆', '▒', '␉', '␌', '␍', '␊', '°', '±', '␤', '␋', '┘', '┐', '┌', '└', '┼', '⎺', '⎻', '─',
        '⎼', '⎽', '├', '┤', '┴', '┬', '│', '≤', '≥', 'π', '≠', '£', '·',
    ];
    DRAWN.get(usize::from(byte.checked_sub(0x5f)?)).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Keeps what it is given.
    impl Target for Vec<u8> {
        fn process(&mut self, bytes: &[u8]) {
            self.extend_from_slice(bytes);
        }

        fn is_behind_last_column(&self) -> bool {
            false
        }

        fn onto_last_column(&mut self) {}
    }

    fn shown(pieces: &[&[u8]]) -> String {
        let (mut translator, mut out) = (Translator::default(), Vec::new());
        for piece in pieces {
            translator.write(piece, &mut out);
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn letters_are_lines_while_the_set_is_chosen() {
        assert_eq!(shown(&[b"lqk\x1b(0lqkA\x1b(Blqk"]), "lqk\x1b(0┌─┐A\x1b(Blqk");
        assert_eq!(shown(&[b"\x1b)0x\x0ex\x0fx"]), "\x1b)0x\x0e│\x0fx");
        // What is no text is left alone, however it comes.
        assert_eq!(shown(&[b"\x1b(0\x1b[3", b"1mq\x1b]0;title\x07q"]), "\x1b(0\x1b[31m─\x1b]0;title\x07─");
        assert_eq!(shown(&[b"\x1b(", b"0q\xe6\x9d", b"\xb1~"]), "\x1b(0─東·");
        assert_eq!(shown(&[b"\x1b(0\x1b7\x1b(Bq\x1b8q\x1bcq"]), "\x1b(0\x1b7\x1b(Bq\x1b8─\x1bcq");
    }

    #[test]
    fn who_comes_later_is_told() {
        let (mut translator, mut out) = (Translator::default(), Vec::new());
        translator.write(b"\x1b)0\x0e\x1b[?25;7l", &mut out);
        assert_eq!(translator.restore(), "\x1b)0\x0e\x1b[?7l");
        let mut later = Translator::default();
        later.write(translator.restore().as_bytes(), &mut out);
        assert_eq!((later.active, later.wraps), (translator.active, translator.wraps));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_it_is_cut(
            pieces in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "\x1b[()\\[?0-9;a-zA-Z]{0,5}".prop_map(String::into_bytes),
            ], 0..10),
        ) {
            let bytes = pieces.concat();
            let (mut whole, mut out) = (Translator::default(), Vec::new());
            whole.write(&bytes, &mut out);
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(String::from_utf8_lossy(&out), shown(&pieces));
        }
    }
}
