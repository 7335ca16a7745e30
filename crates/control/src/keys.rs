//! API keys: 256 random bits, shown once, kept as SHA-256.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_api::ErrorCode;
use roost_store::{Caller, NewApiKey, Store};
use sha2::{Digest, Sha256};

use crate::{Control, Failure};

/// A key that was just made. This is the only time its text exists outside the caller's hands.
pub struct AdminKey {
    pub text: String,
}

impl std::fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminKey(secret)")
    }
}

/// Makes the first key of a new server; `None` where there are keys already.
pub async fn first_key(store: &Store) -> Result<Option<AdminKey>, Failure> {
    if store.count_api_keys().await? > 0 {
        return Ok(None);
    }
    let home = store.home().await?;
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Failure::internal)?;
    let text = format!("msk_a_{}", URL_SAFE_NO_PAD.encode(bytes));
    store
        .insert_api_key(&NewApiKey {
            tenant: home.tenant,
            user: home.user,
            name: "admin".to_owned(),
            prefix: text.chars().take(12).collect(),
            hash: hash(&text),
        })
        .await?;
    Ok(Some(AdminKey { text }))
}

impl Control {
    /// Who an `Authorization` credential speaks for. Looking the hash up needs no constant-time compare:
    /// what a caller can time is the hash of a guess, not the key.
    pub async fn authenticate(&self, credential: Option<&str>) -> Result<Caller, Failure> {
        let Some(credential) = credential else {
            return Err(Failure::new(
                ErrorCode::InvalidToken,
                "no credential: send the header Authorization: Bearer <API key>",
            ));
        };
        let caller = self.inner.store.caller_by_key_hash(&hash(credential)).await?;
        caller.ok_or_else(|| {
            Failure::new(ErrorCode::InvalidToken, "the credential is unknown or no longer valid")
        })
    }
}

pub(crate) fn hash(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

/// Lower-case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
