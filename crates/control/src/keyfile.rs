//! Files of 256-bit keys, below `<data>/keys/`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;

/// The one key in `file`, made at the first call with mode 0600.
pub(crate) fn load(file: &Utf8Path) -> std::io::Result<[u8; 32]> {
    match load_all(file)?[..] {
        [key] => Ok(key),
        _ => Err(std::io::Error::other("not one key of 32 bytes; restore it or remove it")),
    }
}

/// The keys in `file`, of which the first is made at the first call with mode 0600.
pub(crate) fn load_all(file: &Utf8Path) -> std::io::Result<Vec<[u8; 32]>> {
    match std::fs::read(file) {
        Ok(bytes) => match bytes.as_chunks::<32>() {
            (keys, []) if !keys.is_empty() => Ok(keys.to_vec()),
            _ => Err(std::io::Error::other("not keys of 32 bytes; restore it or remove it")),
        },
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
            Ok(vec![bytes])
        }
        Err(error) => Err(error),
    }
}
