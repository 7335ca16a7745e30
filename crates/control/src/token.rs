//! Stream tokens: short-lived, signed, bound to one computer and to rights.
//!
//! `rst_` and, in base64url, a version byte, the computer's id, the expiry in Unix seconds (8 bytes, big
//! endian), a byte of rights and the HMAC-SHA-256 of all that. They are checked without the database.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use camino::Utf8Path;
use hmac::{Hmac, KeyInit, Mac};
use roost_api::{ComputerId, Timestamp};
use sha2::Sha256;

use crate::Failure;

const PREFIX: &str = "rst_";
const VERSION: u8 = 1;
/// May watch the desktop and control it.
const RIGHTS_CONTROL: u8 = 1;
const SIGNED: usize = 1 + 16 + 8 + 1;
const MAC: usize = 32;

/// Signs and checks stream tokens.
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
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        match std::fs::read(file) {
            Ok(bytes) => bytes
                .try_into()
                .map(Self)
                .map_err(|_| std::io::Error::other("not a key of 32 bytes; restore it or remove it")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
                let temporary = file.with_extension("tmp");
                let mut out = std::fs::OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o600)
                    .open(&temporary)?;
                out.write_all(&bytes)?;
                out.sync_all()?;
                std::fs::rename(&temporary, file)?;
                Ok(Self(bytes))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn mint(&self, computer: ComputerId, expires_at: i64) -> Result<String, Failure> {
        let mut bytes = Vec::with_capacity(SIGNED + MAC);
        bytes.push(VERSION);
        bytes.extend_from_slice(computer.as_uuid().as_bytes());
        bytes.extend_from_slice(&expires_at.to_be_bytes());
        bytes.push(RIGHTS_CONTROL);
        let mac = self.mac(&bytes).map_err(Failure::internal)?.finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The computer a token is good for and when it expires; `None` for everything that is not exactly a
    /// token of ours that still holds.
    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Option<(ComputerId, i64)> {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok()?;
        if bytes.len() != SIGNED + MAC {
            return None;
        }
        let (signed, mac) = bytes.split_at(SIGNED);
        self.mac(signed).ok()?.verify_slice(mac).ok()?;
        let (version, rest) = signed.split_first()?;
        let (id, rest) = rest.split_at(16);
        let (expiry, rights) = rest.split_at(8);
        let expires_at = i64::from_be_bytes(expiry.try_into().ok()?);
        let holds = *version == VERSION && rights == [RIGHTS_CONTROL] && now.as_seconds() < expires_at;
        let id = uuid::Uuid::from_slice(id).ok()?;
        holds.then(|| (ComputerId::from(id), expires_at))
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

    #[test]
    fn only_our_own_unexpired_tokens_hold() {
        let key = StreamKey::from_bytes([7; 32]);
        let computer = ComputerId::new();
        let now = Timestamp::now();
        let token = key.mint(computer, now.as_seconds() + 60).unwrap();
        assert_eq!(key.verify(&token, now), Some((computer, now.as_seconds() + 60)));

        let expired = key.mint(computer, now.as_seconds()).unwrap();
        assert_eq!(key.verify(&expired, now), None);
        assert_eq!(StreamKey::from_bytes([8; 32]).verify(&token, now), None);
        for text in ["", "rst_", "rst_AAAA", token.trim_start_matches("rst_"), &token[..token.len() - 2]] {
            assert_eq!(key.verify(text, now), None, "{text:?}");
        }
    }

    #[test]
    fn no_byte_of_a_token_can_be_changed() {
        let key = StreamKey::from_bytes([7; 32]);
        let now = Timestamp::now();
        let token = key.mint(ComputerId::new(), now.as_seconds() + 60).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&token[PREFIX.len()..]).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(changed));
            assert_eq!(key.verify(&text, now), None, "byte {index}");
        }
    }
}
