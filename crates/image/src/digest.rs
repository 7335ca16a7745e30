use std::{
    fmt,
    fs::File,
    io::{self, Read},
};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The first 128 bits of a SHA-256 as 32 lower-case hex digits: short enough for a directory name, long
/// enough that two contents never share one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    const DIGITS: usize = 32;

    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == Self::DIGITS
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        valid.then(|| Self(text.to_owned()))
    }

    /// Of a list of texts, for a purpose that other digests are not for.
    pub fn of(purpose: &str, parts: &[&str]) -> Self {
        parts.iter().fold(DigestOf::new(purpose), |digest, part| digest.part(part)).finish()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn of_file(path: &Utf8Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(Self::finish(hash)),
                count => hash.update(&buffer[..count]),
            }
        }
    }

    fn finish(hash: Sha256) -> Self {
        let bytes = hash.finalize();
        Self(bytes.iter().take(Self::DIGITS / 2).map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is no digest: 32 lower-case hex digits are"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// Digest of a list of parts. Each part goes in with its length, so that moving a byte from one to the next
/// is a different list.
pub(crate) struct DigestOf(Sha256);

impl DigestOf {
    pub(crate) fn new(purpose: &str) -> Self {
        Self(Sha256::new()).part(purpose)
    }

    pub(crate) fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::finish(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let one = DigestOf::new("test").part("ab").part("c").finish();
        let other = DigestOf::new("test").part("a").part("bc").finish();
        assert_ne!(one, other);
        assert_eq!(one, DigestOf::new("test").part("ab").part("c").finish());
        assert_ne!(one, DigestOf::new("else").part("ab").part("c").finish());
    }

    #[test]
    fn only_its_own_form_is_a_digest() {
        let digest = DigestOf::new("test").finish();
        assert_eq!(Digest::parse(digest.as_str()), Some(digest.clone()));
        for bad in ["", "current", "../../../../etc/passwd-padding-..", &digest.as_str().to_uppercase()] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }
}
