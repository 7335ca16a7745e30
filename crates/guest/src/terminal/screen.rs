//! What a terminal shows, as a terminal would have it: kept so that whoever comes later sees the same.

use std::{
    fmt::Write,
    num::NonZeroU16,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::translate::{Target, Translator};
use crate::process::Size;

/// Lines above the screen.
const SCROLLBACK: usize = 1000;

pub(super) struct Screen {
    parser: vt100::Parser,
    translator: Translator,
    size: Size,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Screen {
    pub(super) fn new(size: Size) -> Self {
        Self { parser: parser(size, SCROLLBACK), translator: Translator::default(), size }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        let mut translator = std::mem::take(&mut self.translator);
        self.guarded(|parser| translator.write(bytes, parser));
        self.translator = translator;
    }

    pub(super) fn resize(&mut self, size: Size) {
        self.size = size;
        self.guarded(|parser| parser.set_size(nonzero(size.rows), nonzero(size.columns)));
    }

    /// Programs may write anything. If some of it is too much for the parser, what was shown is lost, and nothing
    /// else.
    fn guarded(&mut self, change: impl FnOnce(&mut vt100::Parser)) {
        if catch_unwind(AssertUnwindSafe(|| change(&mut self.parser))).is_err() {
            tracing::error!("a terminal's output could not be followed; its screen starts anew");
            self.parser = parser(self.size, SCROLLBACK);
        }
    }

    /// What makes any terminal of this size look and behave like this one.
    pub(super) fn picture(&self) -> Vec<u8> {
        let screen = self.parser.screen();
        let mut main = parser(self.size, 0);
        *main.screen_mut() = screen.clone();
        // The scrollback belongs to the screen below the alternate one.
        main.process(LEAVE_ALTERNATE);
        // A full reset.
        let mut picture = "\x1bc".to_owned();
        write_scrollback(main.screen_mut(), &mut picture);
        picture += &main.screen().contents_formatted();
        if screen.alternate_screen() {
            picture += ENTER_ALTERNATE;
            picture += &screen.contents_formatted();
        }
        picture += &screen.input_mode_formatted();
        picture += &self.translator.restore();
        picture.into_bytes()
    }
}

impl Target for vt100::Parser {
    fn process(&mut self, bytes: &[u8]) {
        Self::process(self, bytes);
    }

    fn is_behind_last_column(&self) -> bool {
        let (_, columns) = self.screen().size();
        self.screen().cursor_position().1 >= columns.get()
    }

    fn onto_last_column(&mut self) {
        let (_, columns) = self.screen().size();
        Self::process(self, format!("\x1b[{columns}G").as_bytes());
    }
}

const LEAVE_ALTERNATE: &[u8] = b"\x1b[?47l";
/// Keeps the cursor of the screen below, as the program did.
const ENTER_ALTERNATE: &str = "\x1b[?1049h";

/// The lines above the screen, then as many empty ones as move them all out of sight.
fn write_scrollback(screen: &mut vt100::Screen, picture: &mut String) {
    let lines = screen.scrollback_len();
    if lines == 0 {
        return;
    }
    let (rows, columns) = screen.size();
    for above in (1..=lines).rev() {
        screen.set_scrollback(above);
        let line = screen.rows_formatted(0, columns.get()).next().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(picture, "{line}\x1b[m\r\n");
    }
    screen.set_scrollback(0);
    picture.extend(std::iter::repeat_n("\r\n", usize::from(rows.get()) - 1));
}

fn parser(size: Size, scrollback: usize) -> vt100::Parser {
    vt100::Parser::new(nonzero(size.rows), nonzero(size.columns), scrollback)
}

fn nonzero(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: Size = Size { rows: 5, columns: 20 };

    /// A new terminal that was shown the picture.
    fn copy(screen: &Screen) -> Screen {
        let mut copy = Screen::new(screen.size);
        copy.write(&screen.picture());
        copy
    }

    fn lines_above(screen: &Screen) -> Vec<String> {
        let mut screen = screen.parser.screen().clone();
        let count = screen.scrollback_len();
        let mut lines = Vec::new();
        for above in (1..=count).rev() {
            screen.set_scrollback(above);
            lines.push(screen.rows(0, SIZE.columns).next().unwrap());
        }
        lines
    }

    fn assert_same(one: &Screen, other: &Screen) {
        let (one, other) = (one.parser.screen(), other.parser.screen());
        for row in 0..SIZE.rows {
            for column in 0..SIZE.columns {
                assert_eq!(one.cell(row, column), other.cell(row, column), "row {row}, column {column}");
            }
        }
        assert_eq!(one.cursor_position(), other.cursor_position());
        assert_eq!(one.alternate_screen(), other.alternate_screen());
        assert_eq!(one.input_mode_formatted(), other.input_mode_formatted());
        assert_eq!(one.hide_cursor(), other.hide_cursor());
    }

    #[test]
    fn a_copy_has_the_same_screen_and_scrollback() {
        let mut screen = Screen::new(SIZE);
        for line in 0..12 {
            screen.write(format!("\x1b[3{}mline {line}\x1b[m\r\n", line % 8).as_bytes());
        }
        screen.write(b"\x1b[1;4mlast \xe6\x97\xa5\x1b[?1h\x1b[?2004h");
        let copy = copy(&screen);
        assert_same(&screen, &copy);
        assert_eq!(lines_above(&screen).len(), 8);
        assert_eq!(lines_above(&screen), lines_above(&copy));
    }

    #[test]
    fn below_the_alternate_screen_is_the_other_one() {
        let mut screen = Screen::new(SIZE);
        screen.write(b"shell\r\n$ vim\x1b[?1049h\x1b[2J\x1b[Hfile\x1b[3;7H\x1b[?1002h\x1b[?1006h");
        let mut copy = copy(&screen);
        assert_same(&screen, &copy);
        for screen in [&mut screen, &mut copy] {
            screen.write(b"\x1b[?1006l\x1b[?1002l\x1b[?1049l");
        }
        assert_same(&screen, &copy);
        assert_eq!(copy.parser.screen().contents(), "shell\n$ vim");
    }

    #[test]
    fn lines_that_are_drawn_with_letters_are_lines() {
        let mut screen = Screen::new(SIZE);
        screen.write(b"\x1b(0lqqk\x1b(B plain\r\n\x1b(0");
        let mut copy = copy(&screen);
        assert_same(&screen, &copy);
        assert_eq!(copy.parser.screen().contents(), "┌──┐ plain");
        // The set is still chosen.
        copy.write(b"x");
        assert_eq!(copy.parser.screen().contents(), "┌──┐ plain\n│");
    }

    #[test]
    fn the_cursor_stays_on_the_last_column() {
        let place = |output: &[u8]| {
            let mut screen = Screen::new(SIZE);
            screen.write(&[b'x'; 20]);
            screen.write(output);
            let (row, column) = screen.parser.screen().cursor_position();
            (row, column, screen.parser.screen().contents())
        };
        let full = "x".repeat(20);
        assert_eq!(place(b"\x08"), (0, 18, full.clone()));
        assert_eq!(place(b"\x1b[3D"), (0, 16, full.clone()));
        assert_eq!(place(b"\x1b[31m\x1b[K"), (0, 19, "x".repeat(19)));
        // A colour between does not matter to the wrap.
        assert_eq!(place(b"\x1b[31my"), (1, 1, format!("{full}y")));
        assert_eq!(place(b"\x1b[?7lyz").2, format!("{}z", "x".repeat(19)));
        assert_eq!(place(b"\x1b[?7l\x1b[?7hyz").2, format!("{full}yz"));
    }

    #[test]
    fn a_resized_screen_is_copied_too() {
        let mut screen = Screen::new(Size { rows: 10, columns: 40 });
        screen.write(b"a\r\nb\r\nc\r\nd\r\ne\r\nf\r\ng\r\n0123456789012345678901234");
        screen.resize(SIZE);
        assert_same(&screen, &copy(&screen));
    }

    proptest! {
        #[test]
        fn no_output_whatever_breaks_it(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    "\x1b\\[[?]?[0-9;]{0,6}[a-zA-Z@`]".prop_map(String::into_bytes),
                    "[a-z\u{65e5}\u{301}\r\n\t\x08]{0,30}".prop_map(String::into_bytes),
                ],
                0..30,
            ),
            rows in 1u16..12,
            columns in 1u16..30,
        ) {
            let mut screen = Screen::new(SIZE);
            for (index, piece) in pieces.iter().enumerate() {
                screen.write(piece);
                if index % 7 == 3 {
                    screen.resize(Size { rows, columns });
                }
            }
            let picture = screen.picture();
            prop_assert!(picture.starts_with(b"\x1bc"));
        }
    }
}
