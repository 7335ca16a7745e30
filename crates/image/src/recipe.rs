//! `images/desktop`, as embedded in this binary.
//!
//! | file | what it is |
//! |---|---|
//! | `packages` | what mmdebstrap installs |
//! | `unneeded` | installed files left out, as dpkg patterns |
//! | `fetch` | runs outside the new root: gets packages that are needed only for parts |
//! | `setup` | runs inside the new root, after the packages are there |
//! | `root/` | files copied over the root filesystem, mode 0644 |
//! | `initrd/` | what runs before the root filesystem is there |

use std::{borrow::Cow, fs};

use camino::Utf8Path;
use rust_embed::RustEmbed;

use crate::{
    digest::{Digest, DigestOf},
    error::{ImageError, OnFile},
};

#[derive(RustEmbed)]
#[folder = "../../images/desktop"]
struct Files;

/// Raise when this crate makes a different filesystem from the same recipe.
const BUILDER: &str = "roost base filesystem 1";

pub(crate) fn digest() -> Digest {
    let mut paths: Vec<_> = Files::iter().collect();
    paths.sort();
    paths
        .iter()
        .fold(DigestOf::new(BUILDER), |digest, path| digest.part(path.as_bytes()).part(read(path)))
        .finish()
}

pub(crate) fn packages() -> Vec<String> {
    lines("packages")
}

pub(crate) fn unneeded() -> Vec<String> {
    lines("unneeded")
}

/// Files every image of this crate has; a recipe without one is a broken build of this binary.
fn read(path: &str) -> Cow<'static, [u8]> {
    Files::get(path).map(|file| file.data).unwrap_or_default()
}

fn lines(path: &str) -> Vec<String> {
    String::from_utf8_lossy(&read(path))
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

pub(crate) fn write_to(directory: &Utf8Path) -> Result<(), ImageError> {
    for path in Files::iter() {
        let target = directory.join(path.as_ref());
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).on("create", parent)?;
        }
        fs::write(&target, read(&path)).on("write", &target)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_is_embedded_whole() {
        for path in ["packages", "unneeded", "fetch", "setup", "initrd/init", "root/etc/fstab"] {
            assert!(!read(path).is_empty(), "{path}");
        }
        assert!(packages().contains(&"firefox-esr".to_owned()));
        assert!(packages().iter().chain(&unneeded()).all(|line| !line.contains([' ', ','])));
    }
}
