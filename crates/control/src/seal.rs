//! Seals what is kept in the database and must not be read there.
//!
//! XChaCha20-Poly1305: its nonces are long enough to be drawn at random for ever. A sealed value is, in base64url, a
//! version byte, the id of its key, the nonce and the ciphertext with its tag. It opens only with the context it was
//! sealed with, so that a value moved to another row or another purpose is noticed.
//!
//! Values are sealed with one key and opened with any of the ring: while keys are being changed there are two, and a
//! server works as well with both as with one.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use camino::Utf8Path;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use crate::{Failure, keyfile};

/// Without the id of its key; as it was written before keys could be changed.
const VERSION_WITHOUT_KEY: u8 = 1;
const VERSION: u8 = 2;
const KEY: usize = 32;
const KEY_ID: usize = 4;
const NONCE: usize = 24;

/// Tells keys of a ring apart, and nothing about them.
type KeyId = [u8; KEY_ID];

#[derive(Clone)]
struct Key {
    id: KeyId,
    bytes: [u8; KEY],
    cipher: XChaCha20Poly1305,
}

impl Key {
    fn new(bytes: [u8; KEY]) -> Self {
        let digest = Sha256::new_with_prefix(b"roost seal key").chain_update(bytes).finalize();
        let id = std::array::from_fn(|index| digest[index]);
        Self { id, bytes, cipher: XChaCha20Poly1305::new(&bytes.into()) }
    }

    fn open(&self, context: &str, rest: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let payload = Payload { msg: sealed, aad: context.as_bytes() };
        self.cipher.decrypt(&XNonce::from(*nonce), payload).ok()
    }
}

/// The keys of everything sealed. Servers on one database share them.
#[derive(Clone)]
pub struct SealKey {
    current: Key,
    /// Those that were used before, as long as something may be sealed with them.
    earlier: Vec<Key>,
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(secret)")
    }
}

/// A key in text that is none.
#[derive(Debug, thiserror::Error)]
#[error("not keys of 64 hexadecimal digits each, separated by commas; `openssl rand -hex 32` makes one")]
pub struct NotSealKeys;

impl std::str::FromStr for SealKey {
    type Err = NotSealKeys;

    /// The current key, then earlier ones, in hexadecimal.
    fn from_str(text: &str) -> Result<Self, NotSealKeys> {
        let keys = text.split(',').map(|key| hex_key(key.trim()).ok_or(NotSealKeys));
        Self::from_ring(keys.collect::<Result<_, _>>()?).ok_or(NotSealKeys)
    }
}

fn hex_key(text: &str) -> Option<[u8; KEY]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut key = [0; KEY];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

impl SealKey {
    pub fn from_bytes(bytes: [u8; KEY]) -> Self {
        Self { current: Key::new(bytes), earlier: Vec::new() }
    }

    fn from_ring(keys: Vec<[u8; KEY]>) -> Option<Self> {
        let mut keys = keys.into_iter().map(Key::new);
        Some(Self { current: keys.next()?, earlier: keys.collect() })
    }

    /// The keys in `file`, one after the other, made at the first call with mode 0600.
    pub fn load(file: &Utf8Path) -> std::io::Result<Self> {
        let keys = keyfile::load_all(file)?;
        Self::from_ring(keys).ok_or_else(|| std::io::Error::other("there is no key in it"))
    }

    /// Puts the keys where [`SealKey::load`] finds them, all or none.
    pub fn save(&self, file: &Utf8Path) -> std::io::Result<()> {
        let temporary = file.with_extension("tmp");
        let mut out = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        for key in std::iter::once(&self.current).chain(&self.earlier) {
            out.write_all(&key.bytes)?;
        }
        out.sync_all()?;
        std::fs::rename(&temporary, file)?;
        // The name, too: what is sealed from now on can be opened by nobody without it.
        std::fs::File::open(file.parent().unwrap_or(Utf8Path::new(".")))?.sync_all()
    }

    /// The same with a new key, with which everything is sealed from now on.
    pub fn with_new_key(&self) -> std::io::Result<Self> {
        let mut bytes = [0; KEY];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        let earlier = std::iter::once(&self.current).chain(&self.earlier).cloned().collect();
        Ok(Self { current: Key::new(bytes), earlier })
    }

    /// The same without the keys of before.
    pub fn without_earlier_keys(&self) -> Self {
        Self { current: self.current.clone(), earlier: Vec::new() }
    }

    pub fn has_earlier_keys(&self) -> bool {
        !self.earlier.is_empty()
    }

    pub(crate) fn seal(&self, context: &str, secret: &[u8]) -> Result<String, Failure> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
        let payload = Payload { msg: secret, aad: context.as_bytes() };
        let sealed = self.current.cipher.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|error| Failure::internal(std::io::Error::other(error.to_string())))?;
        Ok(URL_SAFE_NO_PAD.encode([&[VERSION], &self.current.id[..], &nonce[..], &sealed].concat()))
    }

    /// `None` for everything that no key of the ring sealed with this context.
    pub(crate) fn open(&self, context: &str, sealed: &str) -> Option<Vec<u8>> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let mut keys = std::iter::once(&self.current).chain(&self.earlier);
        match bytes.split_first()? {
            (&VERSION, rest) => {
                let (id, rest) = rest.split_first_chunk::<KEY_ID>()?;
                keys.filter(|key| key.id == *id).find_map(|key| key.open(context, rest))
            }
            (&VERSION_WITHOUT_KEY, rest) => keys.find_map(|key| key.open(context, rest)),
            _ => None,
        }
    }

    /// Whether the key of now sealed it, as far as it says.
    pub(crate) fn is_current(&self, sealed: &str) -> bool {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).unwrap_or_default();
        bytes.strip_prefix(&[VERSION]).is_some_and(|rest| rest.starts_with(&self.current.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_before_keys_had_ids(key: [u8; KEY], context: &str, secret: &[u8]) -> String {
        let nonce = [9; NONCE];
        let payload = Payload { msg: secret, aad: context.as_bytes() };
        let sealed = XChaCha20Poly1305::new(&key.into()).encrypt(&XNonce::from(nonce), payload).unwrap();
        URL_SAFE_NO_PAD.encode([&[VERSION_WITHOUT_KEY], &nonce[..], &sealed].concat())
    }

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

    #[test]
    fn a_new_key_seals_and_the_ring_opens() {
        let old = SealKey::from_bytes([7; 32]);
        let (before, first) = (old.seal("c", b"1").unwrap(), as_before_keys_had_ids([7; 32], "c", b"0"));
        let both = old.with_new_key().unwrap();
        assert_eq!(both.open("c", &before).as_deref(), Some(&b"1"[..]));
        assert_eq!(both.open("c", &first).as_deref(), Some(&b"0"[..]));
        let after = both.seal("c", b"2").unwrap();
        assert!(both.is_current(&after) && !both.is_current(&before) && !both.is_current(&first));
        assert_eq!(old.open("c", &after), None);
        let new = both.without_earlier_keys();
        assert_eq!(new.open("c", &after).as_deref(), Some(&b"2"[..]));
        assert_eq!((new.open("c", &before), new.open("c", &first)), (None, None));
        assert!(both.has_earlier_keys() && !new.has_earlier_keys());
    }

    #[test]
    fn keys_come_back_from_their_file_and_from_text() {
        let directory = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(directory.path()).unwrap().join("seal.key");
        let first = SealKey::load(&file).unwrap();
        let sealed = first.seal("c", b"s").unwrap();
        let both = first.with_new_key().unwrap();
        both.save(&file).unwrap();
        let loaded = SealKey::load(&file).unwrap();
        assert!(loaded.open("c", &sealed).is_some() && loaded.has_earlier_keys());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);

        let text = format!("{}, {}", "0a".repeat(32), "FF".repeat(32));
        let ring: SealKey = text.parse().unwrap();
        assert!(ring.open("c", &SealKey::from_bytes([255; 32]).seal("c", b"s").unwrap()).is_some());
        assert!(ring.is_current(&SealKey::from_bytes([10; 32]).seal("c", b"s").unwrap()));
        for text in ["", "0a", &"0g".repeat(32), &format!("{},", "0a".repeat(32))] {
            assert!(text.parse::<SealKey>().is_err(), "{text:?}");
        }
    }
}
