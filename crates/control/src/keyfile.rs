//! Files of one 256-bit key each, below `<data>/keys/`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;

/// The key in `file`, made at the first call with mode 0600.
pub(crate) fn load(file: &Utf8Path) -> std::io::Result<[u8; 32]> {
    match std::fs::read(file) {
        Ok(bytes) => bytes
            .try_into()
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
            Ok(bytes)
        }
        Err(error) => Err(error),
    }
}
