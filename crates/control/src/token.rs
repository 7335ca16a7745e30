//! Tokens: short-lived, signed, bound to one computer and to what they let their bearer do.
//!
//! A prefix and, in base64url, a version byte, the computer's id, the expiry in Unix seconds (8 bytes, big
//! endian), a byte for the kind of grant, the port (2 bytes, 0 where there is none) and the HMAC-SHA-256 of all
//! that. They are checked without the database.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use camino::Utf8Path;
use hmac::{Hmac, KeyInit, Mac};
use roost_api::{ComputerId, PortNumber, Timestamp};
use sha2::Sha256;

use crate::{Failure, keyfile};

const VERSION: u8 = 2;
const SIGNED: usize = 1 + 16 + 8 + 1 + 2;
const MAC: usize = 32;

/// What the holder of a stream token may do with the desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamRights {
    /// Watch it and drive it.
    Control,
    /// Watch it.
    View,
}

/// What a token lets its bearer do with its computer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    Stream(StreamRights),
    /// Use a port while it is protected.
    Preview(PortNumber),
    /// Use a port as a member of the tenant. Only ever a cookie of that port's own host.
    Member(PortNumber),
}

impl Grant {
    fn prefix(self) -> &'static str {
        match self {
            Grant::Stream(_) => "rst_",
            Grant::Preview(_) => "rpt_",
            Grant::Member(_) => "rms_",
        }
    }

    fn kind(self) -> u8 {
        match self {
            Grant::Stream(StreamRights::Control) => 1,
            Grant::Stream(StreamRights::View) => 2,
            Grant::Preview(_) => 3,
            Grant::Member(_) => 4,
        }
    }

    fn port(self) -> u16 {
        match self {
            Grant::Stream(_) => 0,
            Grant::Preview(port) | Grant::Member(port) => port.get(),
        }
    }

    fn read(kind: u8, port: u16) -> Option<Self> {
        let port = PortNumber::new(port).ok();
        match (kind, port) {
            (1, None) => Some(Grant::Stream(StreamRights::Control)),
            (2, None) => Some(Grant::Stream(StreamRights::View)),
            (3, Some(port)) => Some(Grant::Preview(port)),
            (4, Some(port)) => Some(Grant::Member(port)),
            _ => None,
        }
    }
}

/// Whether `text` is in the form of a credential of ours, which no program in a computer has any business with.
pub fn looks_like_ours(text: &str) -> bool {
    ["msk_", "mst_", "rst_", "rpt_", "rms_"].iter().any(|prefix| text.starts_with(prefix))
}

/// A token that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub computer: ComputerId,
    pub grant: Grant,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Signs and checks tokens.
pub struct StreamKey([u8; 32]);
impl std::fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamKey(secret)")
    }
}

impl StreamKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key in `file`, made at the first call with mode 0600.
    pub fn load(file: &Utf8Path) -> std::io::Result<Self> {
        keyfile::load(file).map(Self)
    }

    pub(crate) fn mint(&self, token: Token) -> Result<String, Failure> {
        let mut bytes = Vec::with_capacity(SIGNED + MAC);
        bytes.push(VERSION);
        bytes.extend_from_slice(token.computer.as_uuid().as_bytes());
        bytes.extend_from_slice(&token.expires_at.to_be_bytes());
        bytes.push(token.grant.kind());
        bytes.extend_from_slice(&token.grant.port().to_be_bytes());
        let mac = self.mac(&bytes).map_err(Failure::internal)?.finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        Ok(format!("{}{}", token.grant.prefix(), URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// What is in a token; `None` for everything that is not exactly a token of ours that still holds.
    pub(crate) fn verify(&self, text: &str, now: Timestamp) -> Option<Token> {
        let (prefix, encoded) = text.split_at_checked(4)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).ok()?;
        if bytes.len() != SIGNED + MAC {
            return None;
        }
        let (signed, mac) = bytes.split_at(SIGNED);
        self.mac(signed).ok()?.verify_slice(mac).ok()?;
        let (version, rest) = signed.split_first()?;
        let (id, rest) = rest.split_at(16);
        let (expiry, rest) = rest.split_at(8);
        let (kind, port) = rest.split_first()?;
        let token = Token {
            computer: ComputerId::from(uuid::Uuid::from_slice(id).ok()?),
            grant: Grant::read(*kind, u16::from_be_bytes(port.try_into().ok()?))?,
            expires_at: i64::from_be_bytes(expiry.try_into().ok()?),
        };
        let holds =
            *version == VERSION && prefix == token.grant.prefix() && now.as_seconds() < token.expires_at;
        holds.then_some(token)
    }

    fn mac(&self, bytes: &[u8]) -> Result<Hmac<Sha256>, hmac::digest::InvalidLength> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0)?;
        mac.update(bytes);
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants() -> [Grant; 4] {
        let port = PortNumber::new(3000).unwrap();
        [
            Grant::Stream(StreamRights::Control),
            Grant::Stream(StreamRights::View),
            Grant::Preview(port),
            Grant::Member(port),
        ]
    }

    fn token(grant: Grant, seconds: i64) -> Token {
        Token { computer: ComputerId::new(), grant, expires_at: Timestamp::now().as_seconds() + seconds }
    }

    #[test]
    fn only_our_own_unexpired_tokens_hold() {
        let key = StreamKey::from_bytes([7; 32]);
        let now = Timestamp::now();
        for grant in grants() {
            let minted = token(grant, 60);
            let text = key.mint(minted).unwrap();
            assert_eq!(key.verify(&text, now), Some(minted));
            assert!(looks_like_ours(&text));

            assert_eq!(key.verify(&key.mint(token(grant, -1)).unwrap(), now), None);
            assert_eq!(StreamKey::from_bytes([8; 32]).verify(&text, now), None);
            // A token of one kind under the prefix of another.
            for other in grants() {
                let renamed = format!("{}{}", other.prefix(), &text[4..]);
                assert_eq!(key.verify(&renamed, now).is_some(), other.prefix() == grant.prefix());
            }
            for text in ["", "rst_", "rst_AAAA", "rs\u{e4}", &text[4..], &text[..text.len() - 2]] {
                assert_eq!(key.verify(text, now), None, "{text:?}");
            }
        }
    }

    #[test]
    fn no_byte_of_a_token_can_be_changed() {
        let key = StreamKey::from_bytes([7; 32]);
        let now = Timestamp::now();
        for grant in grants() {
            let text = key.mint(token(grant, 60)).unwrap();
            let bytes = URL_SAFE_NO_PAD.decode(&text[4..]).unwrap();
            for index in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[index] ^= 1;
                let text = format!("{}{}", grant.prefix(), URL_SAFE_NO_PAD.encode(changed));
                assert_eq!(key.verify(&text, now), None, "byte {index}");
            }
        }
    }
}
