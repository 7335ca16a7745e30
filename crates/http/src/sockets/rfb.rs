//! What a viewer who may only watch sends to the desktop's RFB server, without everything that is an input.
//!
//! The viewer's bytes are read as messages of RFB 3.8 (RFC 6143) and its registered extensions. Nothing is passed
//! on but whole messages of a few harmless kinds, so a hand-made viewer gains nothing by splitting or disguising
//! one: what the server gets is framed by us. The encodings a viewer asks for are reduced to pictures, pointer
//! shapes and sizes; an extension that would change how its messages are to be read is never agreed on.

/// `RFB 003.008\n`: the version every viewer of today speaks. In older ones the server chooses the security.
const VERSION: &[u8; 12] = b"RFB 003.008\n";
const SECURITY_NONE: u8 = 1;

const SET_PIXEL_FORMAT: u8 = 0;
const SET_ENCODINGS: u8 = 2;
const UPDATE_REQUEST: u8 = 3;
const KEY_EVENT: u8 = 4;
const POINTER_EVENT: u8 = 5;
const CUT_TEXT: u8 = 6;
const CONTINUOUS_UPDATES: u8 = 150;
const FENCE: u8 = 248;
const XVP: u8 = 250;
const SET_DESKTOP_SIZE: u8 = 251;
const QEMU: u8 = 255;
const QEMU_KEY_EVENT: u8 = 0;

/// A viewer knows some dozens.
const MOST_ENCODINGS: usize = 1024;
const LONGEST_FENCE: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Version,
    Security,
    /// Whether it shares the desktop with others.
    Init,
    Message,
}

/// Why a viewer is sent away. The text is for the close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("only RFB 3.8 may watch this desktop")]
    Version,
    #[error("this desktop has no password; choose security type 1")]
    Security,
    #[error("too many encodings")]
    Encodings,
    #[error("a fence longer than 64 bytes")]
    Fence,
    #[error("a message of a kind that a viewer who only watches may not send")]
    Unknown,
}

/// Reads what one viewer sends.
#[derive(Debug)]
pub(super) struct ViewOnly {
    expected: Expected,
    /// The beginning of a message that is not complete.
    held: Vec<u8>,
    /// How much of a dropped message is still to come.
    skip: usize,
}

/// What is known of the message that `held` begins with.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Its kind or length needs this many bytes, or the message itself does.
    Needs(usize),
    Pass(usize),
    Drop(usize),
    /// SetEncodings, to be rewritten.
    Encodings(usize),
}

impl Default for ViewOnly {
    fn default() -> Self {
        Self { expected: Expected::Version, held: Vec::new(), skip: 0 }
    }
}

impl ViewOnly {
    /// What the server may see of these bytes and of what was held back before.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, Violation> {
        let mut passed = Vec::new();
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if self.skip > 0 {
                return Ok(passed);
            }
            let needed = match self.step()? {
                Step::Needs(needed) => needed,
                Step::Pass(length) => {
                    let message = self.take(length);
                    passed.extend(self.settle(message)?);
                    continue;
                }
                Step::Drop(length) => {
                    let held = self.held.len().min(length);
                    self.held.drain(..held);
                    self.skip = length - held;
                    continue;
                }
                Step::Encodings(length) => {
                    let message = self.take(length);
                    passed.extend(harmless_encodings(&message));
                    continue;
                }
            };
            if bytes.is_empty() {
                return Ok(passed);
            }
            let taken = needed.saturating_sub(self.held.len()).min(bytes.len());
            self.held.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.held.split_off(length);
        std::mem::replace(&mut self.held, rest)
    }

    /// Moves on from what was complete, and corrects it where it is about others.
    fn settle(&mut self, mut message: Vec<u8>) -> Result<Vec<u8>, Violation> {
        match self.expected {
            Expected::Version if message == VERSION => self.expected = Expected::Security,
            Expected::Version => return Err(Violation::Version),
            Expected::Security if message == [SECURITY_NONE] => self.expected = Expected::Init,
            Expected::Security => return Err(Violation::Security),
            Expected::Init => {
                // Who asks to be alone would send the others away.
                message = vec![1];
                self.expected = Expected::Message;
            }
            Expected::Message => {}
        }
        Ok(message)
    }

    fn step(&self) -> Result<Step, Violation> {
        let held = &self.held;
        let fixed =
            |length: usize| if held.len() < length { Step::Needs(length) } else { Step::Pass(length) };
        match self.expected {
            Expected::Version => return Ok(fixed(VERSION.len())),
            Expected::Security | Expected::Init => return Ok(fixed(1)),
            Expected::Message => {}
        }
        let Some(kind) = held.first() else { return Ok(Step::Needs(1)) };
        // The length of what is dropped need not be complete: the rest is skipped as it comes.
        let step = match *kind {
            SET_PIXEL_FORMAT => fixed(20),
            UPDATE_REQUEST | CONTINUOUS_UPDATES => fixed(10),
            KEY_EVENT => Step::Drop(8),
            POINTER_EVENT => Step::Drop(6),
            XVP => Step::Drop(4),
            CUT_TEXT => match held.get(4..8) {
                // Negative for the extended clipboard, whose length it is then.
                Some(length) => Step::Drop(8 + be_i32(length).unsigned_abs() as usize),
                None => Step::Needs(8),
            },
            SET_DESKTOP_SIZE => match held.get(6) {
                Some(screens) => Step::Drop(8 + 16 * usize::from(*screens)),
                None => Step::Needs(7),
            },
            QEMU => match held.get(1) {
                Some(&QEMU_KEY_EVENT) => Step::Drop(12),
                Some(_) => return Err(Violation::Unknown),
                None => Step::Needs(2),
            },
            SET_ENCODINGS => match held.get(2..4) {
                Some(count) => {
                    let count = usize::from(u16::from_be_bytes([count[0], count[1]]));
                    if count > MOST_ENCODINGS {
                        return Err(Violation::Encodings);
                    }
                    let length = 4 + 4 * count;
                    if held.len() < length { Step::Needs(length) } else { Step::Encodings(length) }
                }
                None => Step::Needs(4),
            },
            FENCE => match held.get(8) {
                Some(length) if usize::from(*length) > LONGEST_FENCE => return Err(Violation::Fence),
                Some(length) => fixed(9 + usize::from(*length)),
                None => Step::Needs(9),
            },
            _ => return Err(Violation::Unknown),
        };
        Ok(step)
    }
}

fn be_i32(bytes: &[u8]) -> i32 {
    bytes.try_into().map_or(0, i32::from_be_bytes)
}

/// SetEncodings with those of `message` that only say how to show something.
fn harmless_encodings(message: &[u8]) -> Vec<u8> {
    let kept: Vec<&[u8]> =
        message[4..].chunks_exact(4).filter(|encoding| is_harmless(be_i32(encoding))).collect();
    let count = u16::try_from(kept.len()).unwrap_or(u16::MAX); // there are no more than came
    let mut message = vec![SET_ENCODINGS, 0];
    message.extend_from_slice(&count.to_be_bytes());
    message.extend(kept.into_iter().flatten());
    message
}

fn is_harmless(encoding: i32) -> bool {
    match encoding {
        // Raw, CopyRect, RRE, CoRRE, Hextile, zlib, Tight, ZlibHex, ZRLE, JPEG, ZYWRLE, H.264
        0..=2 | 4..=8 | 16 | 17 | 21 | 50 => true,
        // JPEG quality and subsampling, compression
        -32..=-23 | -512..=-412 | -768..=-763 | -256..=-247 => true,
        // TightPNG, the pointer's shape in its forms, its place
        -260 | -239 | -240 | -314 | -232 | 0x574d_5664 | 0x574d_5665 => true,
        // The desktop's size and name, the end of an update
        -223 | -308 | -307 | -224 => true,
        // Fences and continuous updates, which say when to send
        -312 | -313 => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HELLO: &[u8] = b"RFB 003.008\n\x01\x00";
    const GREETED: &[u8] = b"RFB 003.008\n\x01\x01";

    fn filtered(bytes: &[u8]) -> Result<Vec<u8>, Violation> {
        let mut viewer = ViewOnly::default();
        viewer.push(&[HELLO, bytes].concat()).map(|passed| passed[GREETED.len()..].to_vec())
    }

    fn encodings(list: &[i32]) -> Vec<u8> {
        let mut message = vec![SET_ENCODINGS, 0];
        message.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
        message.extend(list.iter().flat_map(|encoding| encoding.to_be_bytes()));
        message
    }

    fn cut_text(length: i32, text: &[u8]) -> Vec<u8> {
        [&[CUT_TEXT, 0, 0, 0], &length.to_be_bytes()[..], text].concat()
    }

    #[test]
    fn the_handshake_is_of_one_kind_and_always_shares() {
        let mut viewer = ViewOnly::default();
        assert_eq!(viewer.push(HELLO).unwrap(), GREETED);
        for version in [&b"RFB 003.003\n"[..], b"RFB 003.007\n", b"RFB 003.889\n", b"GET / HTTP/1.1\r\n"] {
            assert_eq!(ViewOnly::default().push(version), Err(Violation::Version));
        }
        assert_eq!(ViewOnly::default().push(b"RFB 003.008\n\x02"), Err(Violation::Security));
    }

    #[test]
    fn every_input_is_dropped_and_pictures_are_not() {
        let update = [UPDATE_REQUEST, 1, 0, 0, 0, 0, 5, 0, 2, 208];
        let inputs = [
            vec![KEY_EVENT, 1, 0, 0, 0, 0, 0, 97],
            vec![POINTER_EVENT, 1, 0, 9, 0, 9],
            cut_text(5, b"\x04\x01\x00\x00\x03"),
            cut_text(-4, b"\x01\x00\x00\x01"),
            vec![XVP, 0, 1, 2],
            [&[SET_DESKTOP_SIZE, 0, 3, 0, 2, 0, 1, 0][..], &[9; 16]].concat(),
            vec![QEMU, QEMU_KEY_EVENT, 0, 1, 0, 0, 0, 97, 0, 0, 0, 30],
        ];
        for input in inputs {
            let bytes = [&update[..], &input, &update].concat();
            assert_eq!(filtered(&bytes).unwrap(), [update, update].concat(), "{input:?}");
        }
    }

    #[test]
    fn extensions_are_not_agreed_on() {
        // QEMU keys, extended mouse buttons, the extended clipboard, LEDs, xvp, GII.
        let asked =
            encodings(&[7, -258, 16, -316, 0xC0A1_E5CE_u32.cast_signed(), -261, -309, -305, -239, 50]);
        assert_eq!(filtered(&asked).unwrap(), encodings(&[7, 16, -239, 50]));
        assert_eq!(filtered(&encodings(&[-258])).unwrap(), encodings(&[]));
        let mut many = vec![SET_ENCODINGS, 0];
        many.extend(1025u16.to_be_bytes());
        assert_eq!(filtered(&many), Err(Violation::Encodings));
    }

    #[test]
    fn what_is_unknown_ends_the_session() {
        for kind in (0..=255u8).filter(|kind| ![0, 2, 3, 4, 5, 6, 150, 248, 250, 251, 255].contains(kind)) {
            assert_eq!(filtered(&[kind]), Err(Violation::Unknown), "{kind}");
        }
        assert_eq!(filtered(&[QEMU, 1]), Err(Violation::Unknown));
        assert_eq!(filtered(&[FENCE, 0, 0, 0, 0, 0, 0, 0, 65]), Err(Violation::Fence));
    }

    /// A message, and what may be seen of it.
    fn message() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let passed = |message: Vec<u8>| (message.clone(), message);
        let dropped = |message: Vec<u8>| (message, Vec::new());
        let of = |kind: u8, rest: usize| {
            prop::collection::vec(any::<u8>(), rest).prop_map(move |rest| [&[kind][..], &rest].concat())
        };
        prop_oneof![
            of(SET_PIXEL_FORMAT, 19).prop_map(passed),
            of(UPDATE_REQUEST, 9).prop_map(passed),
            of(CONTINUOUS_UPDATES, 9).prop_map(passed),
            of(KEY_EVENT, 7).prop_map(dropped),
            of(POINTER_EVENT, 5).prop_map(dropped),
            of(XVP, 3).prop_map(dropped),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(move |text| {
                let length = i32::try_from(text.len()).unwrap();
                dropped(cut_text(if text.len() % 2 == 0 { length } else { -length }, &text))
            }),
            prop::collection::vec(any::<u8>(), 0..64).prop_map(move |payload| {
                let length = u8::try_from(payload.len()).unwrap();
                passed([&[FENCE, 0, 0, 0, 0, 0, 0, 1, length][..], &payload].concat())
            }),
            prop::collection::vec(-800i32..60, 0..20).prop_map(|list| {
                let kept: Vec<i32> = list.iter().copied().filter(|encoding| is_harmless(*encoding)).collect();
                (encodings(&list), encodings(&kept))
            }),
        ]
    }

    /// Reads what reached the server, and answers whether nothing but harmless messages did.
    fn is_harmless_stream(mut bytes: &[u8]) -> bool {
        while let Some(kind) = bytes.first() {
            let length = match *kind {
                SET_PIXEL_FORMAT => 20,
                UPDATE_REQUEST | CONTINUOUS_UPDATES => 10,
                FENCE if bytes.len() >= 9 => 9 + usize::from(bytes[8]),
                SET_ENCODINGS if bytes.len() >= 4 => {
                    4 + 4 * usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))
                }
                _ => return false,
            };
            let Some(rest) = bytes.get(length..) else { return false };
            bytes = rest;
        }
        true
    }

    proptest! {
        #[test]
        fn any_split_of_any_messages_gives_the_same(
            messages in prop::collection::vec(message(), 0..30),
            sizes in prop::collection::vec(1usize..40, 1..20),
        ) {
            let sent: Vec<u8> = messages.iter().flat_map(|(sent, _)| sent.clone()).collect();
            let expected: Vec<u8> = messages.iter().flat_map(|(_, passed)| passed.clone()).collect();
            let sent = [HELLO, &sent].concat();
            let mut viewer = ViewOnly::default();
            let (mut passed, mut rest) = (Vec::new(), &sent[..]);
            for size in sizes.iter().cycle() {
                let (piece, later) = rest.split_at(rest.len().min(*size));
                passed.extend(viewer.push(piece).unwrap());
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(passed, [GREETED, &expected].concat());
        }

        #[test]
        fn no_bytes_whatever_become_an_input(bytes in prop::collection::vec(any::<u8>(), 0..600), size in 1usize..70) {
            let mut viewer = ViewOnly::default();
            let mut passed = viewer.push(HELLO).unwrap().split_off(GREETED.len());
            for piece in bytes.chunks(size) {
                match viewer.push(piece) {
                    Ok(more) => passed.extend(more),
                    Err(_) => break,
                }
                prop_assert!(viewer.held.len() <= 4 + 4 * MOST_ENCODINGS);
            }
            prop_assert!(is_harmless_stream(&passed));
        }
    }
}
