//! Finished templates on disk.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt, symlink},
};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{ImageError, OnFile},
};

pub(crate) const DISK: &str = "base.qcow2";
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRD: &str = "initrd";
const MANIFEST: &str = "manifest.json";
const CURRENT: &str = "current";

/// The templates under one directory, `<data>/templates`.
#[derive(Debug, Clone)]
pub struct Templates {
    pub(crate) root: Utf8PathBuf,
}

/// A complete template. Its files never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub name: String,
    pub digest: Digest,
    pub directory: Utf8PathBuf,
    /// qcow2, 10 GiB virtual; backing file of computers' disks.
    pub disk: Utf8PathBuf,
    pub kernel: Utf8PathBuf,
    pub initrd: Utf8PathBuf,
    pub manifest: Manifest,
}

/// What a template is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub created: jiff::Timestamp,
    /// Debian's version, like `13.2`.
    pub debian: String,
    /// Like `6.12.57+deb13-cloud-amd64`.
    pub kernel: String,
    /// Number of Debian packages installed.
    pub packages: u32,
    /// Bytes that `base.qcow2` takes on the host's disk.
    pub disk_bytes: u64,
    pub recipe: Digest,
    pub agent: Digest,
}

impl Templates {
    pub fn new(root: Utf8PathBuf) -> Self {
        Self { root }
    }

    /// The template new computers start from, if one was ever built.
    pub fn current(&self, name: &str) -> Result<Option<Template>, ImageError> {
        let link = self.root.join(name).join(CURRENT);
        let target = match link.read_link_utf8() {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).on("read", &link),
        };
        match Digest::parse(target.as_str()) {
            Some(digest) => self.get(name, &digest),
            None => Ok(None),
        }
    }

    pub fn get(&self, name: &str, digest: &Digest) -> Result<Option<Template>, ImageError> {
        let directory = self.root.join(name).join(digest.as_str());
        let manifest = directory.join(MANIFEST);
        let text = match fs::read(&manifest) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).on("read", &manifest),
        };
        let parsed = serde_json::from_slice(&text)
            .map_err(|source| ImageError::Manifest { path: manifest, source })?;
        Ok(Some(Template {
            name: name.to_owned(),
            digest: digest.clone(),
            disk: directory.join(DISK),
            kernel: directory.join(KERNEL),
            initrd: directory.join(INITRD),
            directory,
            manifest: parsed,
        }))
    }

    /// All complete templates, by name, the newest first.
    pub fn list(&self) -> Result<Vec<Template>, ImageError> {
        let mut templates = Vec::new();
        for name in names(&self.root)? {
            for entry in names(&self.root.join(&name))? {
                if let Some(digest) = Digest::parse(&entry) {
                    templates.extend(self.get(&name, &digest)?);
                }
            }
        }
        templates.sort_by(|a, b| (&a.name, b.manifest.created).cmp(&(&b.name, a.manifest.created)));
        Ok(templates)
    }

    /// Makes what is in `work` the template `digest`: everything on disk first, then one rename.
    pub(crate) fn publish(
        &self,
        name: &str,
        digest: &Digest,
        work: &Utf8Path,
        manifest: &Manifest,
    ) -> Result<(), ImageError> {
        let path = work.join(MANIFEST);
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|source| ImageError::Manifest { path: path.clone(), source })?;
        fs::write(&path, text).on("write", &path)?;
        for file in [DISK, KERNEL, INITRD, MANIFEST] {
            let path = work.join(file);
            set_mode(&path, 0o644)?;
            sync(&path)?;
        }
        set_mode(work, 0o755)?;
        sync(work)?;
        let home = self.root.join(name);
        let target = home.join(digest.as_str());
        fs::rename(work, &target).on("rename to", &target)?;
        sync(&home)
    }

    /// Flips `current`; the old or the new target is there at every moment.
    pub(crate) fn set_current(&self, name: &str, digest: &Digest) -> Result<(), ImageError> {
        let home = self.root.join(name);
        let (link, new) = (home.join(CURRENT), home.join(".current.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).on("remove", &new),
            _ => {}
        }
        symlink(digest.as_str(), &new).on("create", &new)?;
        fs::rename(&new, &link).on("rename to", &link)?;
        sync(&home)
    }
}

/// Entries of a directory that are not hidden; none if it is not there.
fn names(directory: &Utf8Path) -> Result<Vec<String>, ImageError> {
    let entries = match directory.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).on("list", directory),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.on("list", directory)?;
        if !entry.file_name().starts_with('.') {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

pub(crate) fn set_mode(path: &Utf8Path, mode: u32) -> Result<(), ImageError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).on("set the mode of", path)
}

pub(crate) fn sync(path: &Utf8Path) -> Result<(), ImageError> {
    File::open(path).and_then(|file| file.sync_all()).on("sync", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::DigestOf;

    const NAME: &str = "test";

    fn manifest(created: i64) -> Manifest {
        let digest = DigestOf::new("test").finish();
        Manifest {
            created: jiff::Timestamp::from_second(created).unwrap(),
            debian: "13.0".into(),
            kernel: "6.12".into(),
            packages: 1,
            disk_bytes: 4,
            recipe: digest.clone(),
            agent: digest,
        }
    }

    fn work(home: &Utf8Path) -> Utf8PathBuf {
        let work = home.join(".build-1");
        fs::create_dir_all(&work).unwrap();
        for file in [DISK, KERNEL, INITRD] {
            fs::write(work.join(file), "data").unwrap();
        }
        fs::set_permissions(&work, fs::Permissions::from_mode(0o700)).unwrap();
        work
    }

    #[test]
    fn a_template_appears_whole_and_the_pointer_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::new(Utf8Path::from_path(directory.path()).unwrap().to_owned());
        let home = templates.root.join(NAME);
        assert_eq!(templates.current(NAME).unwrap(), None);
        assert_eq!(templates.list().unwrap(), []);

        let (old, new) = (DigestOf::new("old").finish(), DigestOf::new("new").finish());
        for (digest, created) in [(&old, 1), (&new, 2)] {
            let work = work(&home);
            // What a killed build leaves is not a template.
            assert_eq!(templates.get(NAME, digest).unwrap(), None);
            templates.publish(NAME, digest, &work, &manifest(created)).unwrap();
            assert!(!work.exists());
            assert_ne!(templates.current(NAME).unwrap().map(|t| t.digest), Some(digest.clone()));
            // A pointer left half-way by a killed build is in nobody's way.
            symlink("nowhere", home.join(".current.new")).unwrap();
            templates.set_current(NAME, digest).unwrap();
            let template = templates.current(NAME).unwrap().unwrap();
            assert_eq!(&template.digest, digest);
            assert_eq!(template.manifest, manifest(created));
            assert_eq!(fs::read(&template.disk).unwrap(), b"data");
            assert_eq!(fs::metadata(&template.directory).unwrap().permissions().mode() & 0o777, 0o755);
            assert_eq!(fs::metadata(&template.disk).unwrap().permissions().mode() & 0o777, 0o644);
        }
        let listed: Vec<_> = templates.list().unwrap().into_iter().map(|t| t.digest).collect();
        assert_eq!(listed, [new, old]);
    }

    #[test]
    fn a_damaged_manifest_is_an_error_that_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Templates::new(Utf8Path::from_path(directory.path()).unwrap().to_owned());
        let digest = DigestOf::new("x").finish();
        let home = templates.root.join(NAME).join(digest.as_str());
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join(MANIFEST), "{").unwrap();
        assert!(matches!(templates.get(NAME, &digest), Err(ImageError::Manifest { .. })));
    }
}
