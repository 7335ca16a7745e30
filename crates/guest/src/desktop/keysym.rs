//! X keysyms: what a key means, as a number.
//!
//! `keysyms.txt` lists every keysym of the X Window System (`keysymdef.h` and `XF86keysym.h` of the X
//! protocol headers): name, value, and the character it stands for, if there is exactly one; both in
//! hexadecimal, sorted by name.

use std::fmt;

const TABLE: &str = include_str!("keysyms.txt");

/// Keysyms for characters that have none of their own are this plus the code point.
const UNICODE: u32 = 0x0100_0000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Keysym(pub(super) u32);

impl Keysym {
    pub(super) const NONE: Self = Self(0);
    pub(super) const BACK_SPACE: Self = Self(0xff08);
    pub(super) const TAB: Self = Self(0xff09);
    pub(super) const RETURN: Self = Self(0xff0d);
    pub(super) const ESCAPE: Self = Self(0xff1b);
    pub(super) const SHIFT_L: Self = Self(0xffe1);
    pub(super) const SHIFT_R: Self = Self(0xffe2);
    pub(super) const CAPS_LOCK: Self = Self(0xffe5);
    pub(super) const SHIFT_LOCK: Self = Self(0xffe6);
    pub(super) const ISO_LEVEL3_SHIFT: Self = Self(0xfe03);
    pub(super) const DELETE: Self = Self(0xffff);

    /// By X name ("Return", "eacute"), as a single character ("é"), or by code point ("U20AC").
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let mut characters = name.chars();
        if let (Some(character), None) = (characters.next(), characters.next()) {
            return Self::from_char(character);
        }
        if let Some(entry) = find(name) {
            return Some(entry.keysym);
        }
        let digits = name.strip_prefix("U+").or_else(|| name.strip_prefix('U'))?;
        let is_code_point = (4..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let code_point = u32::from_str_radix(digits, 16).ok().filter(|_| is_code_point)?;
        Self::from_char(char::from_u32(code_point)?)
    }

    /// None for control characters that no key stands for.
    pub(super) fn from_char(character: char) -> Option<Self> {
        match character {
            '\n' | '\r' => Some(Self::RETURN),
            '\t' => Some(Self::TAB),
            '\u{8}' => Some(Self::BACK_SPACE),
            '\u{1b}' => Some(Self::ESCAPE),
            '\u{7f}' => Some(Self::DELETE),
            // Latin-1 keysyms are their code points.
            ' '..='~' | '\u{a0}'..='\u{ff}' => Some(Self(character.into())),
            control if control.is_control() => None,
            other => Some(Self(UNICODE + u32::from(other))),
        }
    }

    /// The same keysym for all that stand for one character.
    pub(super) fn canonical(self, characters: &Characters) -> Self {
        match characters.of(self).and_then(Self::from_char) {
            Some(keysym) => keysym,
            None => self,
        }
    }
}

impl fmt::Display for Keysym {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.checked_sub(UNICODE).and_then(char::from_u32) {
            Some(character) => write!(formatter, "U+{:04X}", u32::from(character)),
            None => write!(formatter, "{:#x}", self.0),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    name: &'a str,
    keysym: Keysym,
    character: Option<char>,
}

fn parse(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split(' ');
    let name = fields.next()?;
    let keysym = Keysym(u32::from_str_radix(fields.next()?, 16).ok()?);
    let character =
        fields.next().and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
    Some(Entry { name, keysym, character })
}

/// Binary search over the lines of the table.
fn find(name: &str) -> Option<Entry<'static>> {
    let mut table = TABLE;
    while !table.is_empty() {
        let middle = table[..table.len() / 2].rfind('\n').map_or(0, |end| end + 1);
        let end = table[middle..].find('\n').map_or(table.len(), |end| middle + end);
        let entry = parse(&table[middle..end])?;
        match name.cmp(entry.name) {
            std::cmp::Ordering::Equal => return Some(entry),
            std::cmp::Ordering::Less => table = &table[..middle],
            std::cmp::Ordering::Greater => table = table.get(end + 1..)?,
        }
    }
    None
}

/// The characters of all keysyms that are not Unicode ones.
#[derive(Debug)]
pub(super) struct Characters(Vec<(Keysym, char)>);

impl Characters {
    pub(super) fn read() -> Self {
        let mut known: Vec<_> = TABLE
            .lines()
            .filter_map(parse)
            .filter_map(|entry| Some((entry.keysym, entry.character?)))
            .collect();
        known.sort_unstable();
        known.dedup();
        Self(known)
    }

    fn of(&self, keysym: Keysym) -> Option<char> {
        match keysym.0.checked_sub(UNICODE) {
            Some(code_point) => char::from_u32(code_point),
            None => {
                let at = self.0.binary_search_by_key(&keysym, |(keysym, _)| *keysym).ok()?;
                Some(self.0[at].1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_name_is_found() {
        let entries: Vec<Entry<'_>> = TABLE.lines().map(|line| parse(line).unwrap()).collect();
        assert!(entries.len() > 2400);
        assert!(entries.is_sorted_by(|a, b| a.name < b.name));
        for entry in entries {
            let found = find(entry.name).unwrap();
            assert_eq!((found.name, found.keysym), (entry.name, entry.keysym));
        }
    }

    #[test]
    fn names_are_found_in_every_form() {
        for (name, value) in [
            ("Return", 0xff0d),
            ("a", 0x61),
            ("A", 0x41),
            ("/", 0x2f),
            ("slash", 0x2f),
            ("é", 0xe9),
            ("eacute", 0xe9),
            ("F5", 0xffc2),
            ("Page_Up", 0xff55),
            ("Prior", 0xff55),
            ("XF86AudioMute", 0x1008_ff12),
            ("Super_L", 0xffeb),
            ("5", 0x35),
            ("U20AC", 0x0100_20ac),
            ("U+1F600", 0x0101_f600),
            ("€", 0x0100_20ac),
            ("EuroSign", 0x20ac),
            ("😀", 0x0101_f600),
            ("\n", 0xff0d),
        ] {
            assert_eq!(Keysym::from_name(name), Some(Keysym(value)), "{name}");
        }
        for name in ["", "return", "Ctrl", "NoSuchKey", "U20", "U+D800", "Uxyz1", "U+20AC ", "\u{1}"] {
            assert_eq!(Keysym::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn one_character_has_one_canonical_keysym() {
        let characters = Characters::read();
        let canonical = |value| Keysym(value).canonical(&characters).0;
        assert_eq!(canonical(0x20ac), 0x0100_20ac); // EuroSign
        assert_eq!(canonical(0x6c1), 0x0100_0430); // Cyrillic_a
        assert_eq!(canonical(0x0100_00e9), 0xe9);
        assert_eq!(canonical(0xff0d), 0xff0d);
        assert_eq!(canonical(0xfe51), 0xfe51); // dead_acute
    }
}
