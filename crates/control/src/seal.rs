//! Seals what is kept in the database and must not be read there.
//!
//! XChaCha20-Poly1305: its nonces are long enough to be drawn at random for ever. A sealed value is, in base64url, a
//! version byte, the nonce and the ciphertext with its tag. It opens only with the context it was sealed with, so that
//! a value moved to another row or another purpose is noticed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use camino::Utf8Path;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use crate::{Failure, keyfile};

const VERSION: u8 = 1;
const NONCE: usize = 24;

/// The key of everything sealed. Servers on one database share it.
#[derive(Clone)]
pub struct SealKey(XChaCha20Poly1305);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(secret)")
    }
}

impl SealKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(&bytes.into()))
    }

    /// The key in `file`, made at the first call with mode 0600.
    pub fn load(file: &Utf8Path) -> std::io::Result<Self> {
        keyfile::load(file).map(Self::from_bytes)
    }

    pub(crate) fn seal(&self, context: &str, secret: &[u8]) -> Result<String, Failure> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
        let payload = Payload { msg: secret, aad: context.as_bytes() };
        let sealed = self.0.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|error| Failure::internal(std::io::Error::other(error.to_string())))?;
        Ok(URL_SAFE_NO_PAD.encode([&[VERSION], &nonce[..], &sealed].concat()))
    }

    /// `None` for everything that this key did not seal with this context.
    pub(crate) fn open(&self, context: &str, sealed: &str) -> Option<Vec<u8>> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let payload = Payload { msg: sealed, aad: context.as_bytes() };
        (*version == VERSION).then_some(())?;
        self.0.decrypt(&XNonce::from(*nonce), payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_unchanged_with_its_key_and_context() {
        let key = SealKey::from_bytes([7; 32]);
        let sealed = key.seal("here", b"secret").unwrap();
        assert_eq!(key.open("here", &sealed).as_deref(), Some(&b"secret"[..]));
        assert_ne!(key.seal("here", b"secret").unwrap(), sealed, "a nonce was used twice");
        assert_eq!(key.open("there", &sealed), None);
        assert_eq!(SealKey::from_bytes([8; 32]).open("here", &sealed), None);
        assert_eq!(key.open("here", ""), None);
        let bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert_eq!(key.open("here", &URL_SAFE_NO_PAD.encode(changed)), None, "byte {index}");
            assert_eq!(key.open("here", &URL_SAFE_NO_PAD.encode(&bytes[..index])), None, "{index} bytes");
        }
    }
}
