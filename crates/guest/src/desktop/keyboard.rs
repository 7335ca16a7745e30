//! Which keys to press for a symbol: the pure part of typing.
//!
//! Text is typed with the keys of the current keymap where it has the characters, with Shift and AltGr as
//! needed. Characters it does not have are put on spare keys, codes that no key uses. Programs learn of a
//! new meaning by an event and then ask the server for the whole map, at some time of their own: giving a
//! spare key another meaning while strokes of the old one may still be unread would change what was typed.
//! So a plan is a list of [`Batch`]es. In each, all changes come before all strokes; a batch that gives a
//! used key a new meaning says so ([`Batch::reuses`]), and whoever carries it out waits for the programs
//! first. Meanings are kept until their key is the one that was unused for longest.

use std::collections::HashMap;

use super::keysym::{Characters, Keysym};

pub(super) type Keycode = u8;

/// Long texts go in pieces of this many strokes, so that the server has taken one before the next is sent.
const BATCH: usize = 256;
/// The key beside the left Shift that American keyboards do not have: the last choice.
const EXTRA_KEY: Keycode = 94;
/// Stands for "no key" in some programs.
const NO_KEY: Keycode = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Modifiers {
    pub(super) shift: bool,
    pub(super) level3: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stroke {
    pub(super) key: Keycode,
    pub(super) modifiers: Modifiers,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) changes: Vec<(Keycode, Keysym)>,
    pub(super) reuses: bool,
    pub(super) strokes: Vec<Stroke>,
}

/// The server's keymap (its first layout), as of one moment.
#[derive(Debug)]
pub(super) struct Keymap {
    keys: HashMap<Keysym, Stroke>,
    pub(super) shift: Option<Keycode>,
    pub(super) level3: Option<Keycode>,
    /// Codes without any meaning.
    free: Vec<Keycode>,
}

impl Keymap {
    /// `symbols` are rows of `per_key`, one for each key from `first` on: plain, Shift, two of the second
    /// layout, AltGr, Shift + AltGr.
    pub(super) fn new(first: Keycode, per_key: usize, symbols: &[u32], characters: &Characters) -> Self {
        let mut found: Vec<(Keysym, Stroke)> = Vec::new();
        let mut free = Vec::new();
        let levels = [(0, false, false), (1, true, false), (4, false, true), (5, true, true)];
        for (key, row) in (first..=Keycode::MAX).zip(symbols.chunks_exact(per_key.max(1))) {
            if row.iter().all(|symbol| *symbol == Keysym::NONE.0) {
                if key != NO_KEY {
                    free.push(key);
                }
                continue;
            }
            for (column, shift, level3) in levels {
                let Some(symbol) = row.get(column).map(|symbol| Keysym(*symbol)) else { continue };
                let stroke = Stroke { key, modifiers: Modifiers { shift, level3 } };
                if symbol != Keysym::NONE {
                    found.push((symbol.canonical(characters), stroke));
                }
            }
        }
        let plain = |symbol: Keysym| {
            let is = |(found, stroke): &&(Keysym, Stroke)| {
                *found == symbol && stroke.modifiers == Modifiers::default()
            };
            found.iter().find(is).map(|(_, stroke)| stroke.key)
        };
        let shift = plain(Keysym::SHIFT_L).or_else(|| plain(Keysym::SHIFT_R));
        let level3 = plain(Keysym::ISO_LEVEL3_SHIFT);
        found.retain(|(_, Stroke { modifiers, .. })| {
            (!modifiers.shift || shift.is_some()) && (!modifiers.level3 || level3.is_some())
        });
        let effort = |stroke: &Stroke| {
            (stroke.key == EXTRA_KEY, stroke.modifiers.level3, stroke.modifiers.shift, stroke.key)
        };
        let mut keys: HashMap<Keysym, Stroke> = HashMap::new();
        for (symbol, stroke) in found {
            keys.entry(symbol)
                .and_modify(|known| {
                    if effort(&stroke) < effort(known) {
                        *known = stroke;
                    }
                })
                .or_insert(stroke);
        }
        Self { keys, shift, level3, free }
    }
}

/// The spare keys in use, least recently used first.
#[derive(Debug, Default)]
pub(super) struct Spares {
    used: Vec<(Keycode, Keysym)>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the keyboard has no key for {0} and none to spare")]
pub(crate) struct NoKeyError(pub(super) Keysym);

impl Spares {
    /// Whether the keymap still is what this believes: somebody else may have loaded another.
    pub(super) fn agree_with(&self, keymap: &Keymap) -> bool {
        self.used.iter().all(|(key, symbol)| keymap.keys.get(symbol).is_some_and(|known| known.key == *key))
    }

    fn touch(&mut self, symbol: Keysym) -> Option<Keycode> {
        let at = self.used.iter().position(|(_, used)| *used == symbol)?;
        let entry = self.used.remove(at);
        self.used.push(entry);
        Some(entry.0)
    }
}

/// The batches that type `symbols`, in order. `spares` then is as it will be after them.
pub(super) fn plan(
    symbols: &[Keysym],
    keymap: &Keymap,
    spares: &mut Spares,
    characters: &Characters,
) -> Result<Vec<Batch>, NoKeyError> {
    let mut batches = Vec::new();
    let mut batch = Batch::default();
    // Spare keys with strokes in this batch.
    let mut busy: Vec<Keycode> = Vec::new();
    for symbol in symbols {
        let symbol = symbol.canonical(characters);
        if batch.strokes.len() == BATCH {
            batches.push(std::mem::take(&mut batch));
            busy.clear();
        }
        let stroke = match spares.touch(symbol) {
            Some(key) => Stroke { key, modifiers: Modifiers::default() },
            None => match keymap.keys.get(&symbol) {
                // A spare key's former meaning is still in this keymap.
                Some(stroke) if spares.used.iter().all(|(key, _)| *key != stroke.key) => *stroke,
                _ => {
                    let unused =
                        keymap.free.iter().rev().find(|key| spares.used.iter().all(|(used, _)| used != *key));
                    let (key, reuses) = match unused {
                        Some(key) => (*key, false),
                        None => {
                            if spares.used.iter().all(|(key, _)| busy.contains(key)) && !busy.is_empty() {
                                batches.push(std::mem::take(&mut batch));
                                busy.clear();
                            }
                            if spares.used.is_empty() {
                                return Err(NoKeyError(symbol));
                            }
                            let oldest = spares.used.iter().position(|(key, _)| !busy.contains(key));
                            (spares.used.remove(oldest.unwrap_or(0)).0, true)
                        }
                    };
                    spares.used.push((key, symbol));
                    batch.changes.push((key, symbol));
                    batch.reuses |= reuses;
                    Stroke { key, modifiers: Modifiers::default() }
                }
            },
        };
        if spares.used.iter().any(|(key, _)| *key == stroke.key) {
            busy.push(stroke.key);
        }
        batch.strokes.push(stroke);
    }
    if !batch.strokes.is_empty() {
        batches.push(batch);
    }
    Ok(batches)
}

/// Text as the keys a person would press.
pub(super) fn symbols_of(text: &str) -> Result<Vec<Keysym>, char> {
    let mut symbols = Vec::with_capacity(text.len());
    let mut previous = None;
    for character in text.chars() {
        // A line ends once, however it is written.
        if !(character == '\n' && previous == Some('\r')) {
            symbols.push(Keysym::from_char(character).ok_or(character)?);
        }
        previous = Some(character);
    }
    Ok(symbols)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 'a' as u32;

    /// Keys 10-12: letters with AltGr; 50 Shift, 92 AltGr, 94 the extra key; `free` codes from 200.
    fn keymap(free: usize) -> Keymap {
        let mut rows = vec![[0xffff_ffffu32; 6]; 248];
        let mut set = |key: usize, row: [u32; 6]| rows[key - 8] = row;
        set(10, [A, A - 32, 0, 0, 0x20ac, 0]);
        set(11, ['1'.into(), '!'.into(), 0, 0, 0, 0]);
        set(12, [','.into(), '<'.into(), 0, 0, 0, 0]);
        set(36, [0xff0d, 0, 0, 0, 0, 0]);
        set(50, [0xffe1, 0, 0, 0, 0, 0]);
        set(87, [0xffb1, '1'.into(), 0, 0, 0, 0]);
        set(92, [0xfe03, 0, 0, 0, 0, 0]);
        set(94, ['<'.into(), '>'.into(), 0, 0, 0, 0]);
        for key in 200..200 + free {
            set(key, [0; 6]);
        }
        set(8, [0; 6]);
        Keymap::new(8, 6, &rows.concat(), &Characters::read())
    }

    fn typed(text: &str, keymap: &Keymap, spares: &mut Spares) -> Result<Vec<Batch>, NoKeyError> {
        plan(&symbols_of(text).unwrap(), keymap, spares, &Characters::read())
    }

    fn stroke(key: Keycode, shift: bool, level3: bool) -> Stroke {
        Stroke { key, modifiers: Modifiers { shift, level3 } }
    }

    /// What a person would read: carries out the batches on a model of the keymap.
    fn read_back(batches: &[Batch], keymap: &Keymap, meanings: &mut HashMap<Keycode, Keysym>) -> Vec<Keysym> {
        let mut read = Vec::new();
        for batch in batches {
            for (key, symbol) in &batch.changes {
                let old = meanings.insert(*key, *symbol);
                assert!(old.is_none() || batch.reuses, "a new meaning for a used key without saying so");
            }
            for stroke in &batch.strokes {
                read.push(match meanings.get(&stroke.key) {
                    Some(symbol) => *symbol,
                    None => *keymap.keys.iter().find(|(_, known)| *known == stroke).unwrap().0,
                });
            }
        }
        read
    }

    #[test]
    fn the_keymap_is_used_with_its_modifiers() {
        let batches = typed("aA€<1!\r\n\n", &keymap(0), &mut Spares::default()).unwrap();
        let strokes = [
            stroke(10, false, false),
            stroke(10, true, false),
            stroke(10, false, true),
            stroke(12, true, false),  // rather than the extra key
            stroke(11, false, false), // rather than the numeric pad
            stroke(11, true, false),
            stroke(36, false, false),
            stroke(36, false, false),
        ];
        assert_eq!(batches, [Batch { strokes: strokes.to_vec(), ..Batch::default() }]);
    }

    #[test]
    fn spare_keys_keep_their_meaning_while_there_are_enough() {
        let keymap = keymap(3);
        let mut spares = Spares::default();
        let first = typed("éaöé", &keymap, &mut spares).unwrap();
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].changes, [(202, Keysym(0xe9)), (201, Keysym(0xf6))]);
        assert!(!first[0].reuses);
        assert_eq!(first[0].strokes[0], first[0].strokes[3]);
        let again = typed("ö", &keymap, &mut spares).unwrap();
        assert!(again[0].changes.is_empty());
    }

    #[test]
    fn the_least_recently_used_key_gets_the_new_meaning() {
        let keymap = keymap(2);
        let mut spares = Spares::default();
        typed("éöé", &keymap, &mut spares).unwrap();
        let next = typed("ü", &keymap, &mut spares).unwrap();
        assert_eq!(next[0].changes, [(200, Keysym(0xfc))]); // was ö
        assert!(next[0].reuses);
    }

    #[test]
    fn any_text_reads_back_whatever_the_number_of_spare_keys() {
        let text: String = ('\u{4e00}'..'\u{4e40}').chain("aé\n€A".chars()).cycle().take(1000).collect();
        let characters = Characters::read();
        for free in [1, 2, 3, 7, 30] {
            let keymap = keymap(free);
            let mut spares = Spares::default();
            let mut meanings = HashMap::new();
            for part in [text.as_str(), "aé", &text] {
                let batches = typed(part, &keymap, &mut spares).unwrap();
                let wanted = symbols_of(part).unwrap();
                let wanted: Vec<Keysym> = wanted.iter().map(|symbol| symbol.canonical(&characters)).collect();
                assert_eq!(read_back(&batches, &keymap, &mut meanings), wanted);
                assert!(batches.iter().all(|batch| batch.strokes.len() <= BATCH));
            }
        }
    }

    #[test]
    fn without_a_key_there_is_an_error() {
        assert_eq!(typed("é", &keymap(0), &mut Spares::default()), Err(NoKeyError(Keysym(0xe9))));
    }

    #[test]
    fn control_characters_without_a_key_are_refused() {
        assert_eq!(symbols_of("a\u{1}"), Err('\u{1}'));
        assert_eq!(symbols_of("\t\u{8}").unwrap(), [Keysym::TAB, Keysym::BACK_SPACE]);
    }

    #[test]
    fn a_foreign_keymap_is_noticed() {
        let mut spares = Spares::default();
        typed("é", &keymap(1), &mut spares).unwrap();
        assert!(!spares.agree_with(&keymap(1)));
    }
}
