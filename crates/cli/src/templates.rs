//! The templates of this host as the control plane wants them: disks, and the memory that computers of one size
//! continue from.
//!
//! A memory fits one build of a template on one kind of machine and one QEMU. Its directory is named after all of
//! that, beside the disk it belongs to, so that an upgrade never finds a memory that it cannot use:
//!
//! ```text
//!   templates/<name>/<digest>/memory/<size>-<key>/disk.qcow2
//!                                                 memory/
//! ```

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use roost_api::{Size, Timestamp};
use roost_control::{TemplateError, TemplateFiles, Templates, WarmFiles};
use roost_image::{Digest, Template};
use roost_machine_proto::{Accelerator, DISK_FILE, MEMORY_DIRECTORY};

/// Below a template: its memories.
const MEMORIES: &str = "memory";

#[derive(Debug)]
pub(crate) struct HostTemplates {
    built: roost_image::Templates,
    accelerator: Accelerator,
    /// In full.
    qemu: String,
    /// Memories that were read once and were whole.
    whole: Mutex<HashSet<Utf8PathBuf>>,
}

impl HostTemplates {
    pub(crate) fn new(built: roost_image::Templates, accelerator: Accelerator, qemu: String) -> Self {
        Self { built, accelerator, qemu, whole: Mutex::default() }
    }

    fn hardware(&self, size: Size) -> String {
        roost_machine::hardware(self.accelerator, size.vcpus(), size.memory())
    }

    fn target(&self, template: &Template, size: Size) -> Utf8PathBuf {
        let key = Digest::of("memory", &[&self.hardware(size), &self.qemu]);
        let key: String = key.as_str().chars().take(16).collect();
        template.directory.join(MEMORIES).join(format!("{}-{key}", size.as_str()))
    }

    fn get(&self, name: &str, digest: &str) -> Result<Option<Template>, TemplateError> {
        let Some(digest) = Digest::parse(digest) else { return Ok(None) };
        self.built.get(name, &digest).map_err(|error| TemplateError(error.into()))
    }

    /// Reads the memory once in the life of this process: what is damaged is put away, and made again.
    fn is_whole(&self, directory: &Utf8Path, size: Size) -> Result<bool, TemplateError> {
        let known = |whole: &HashSet<Utf8PathBuf>| whole.contains(directory);
        if known(&self.whole.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(true);
        }
        match roost_machine::verify_memory(&directory.join(MEMORY_DIRECTORY), &self.hardware(size)) {
            Ok(()) => {
                self.whole.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.to_owned());
                Ok(true)
            }
            Err(error) => {
                tracing::warn!(%directory, "the memory of a template is of no use and is removed: {error}");
                // Only the memory: disks of computers lie on the disk.
                let memory = directory.join(MEMORY_DIRECTORY);
                match std::fs::remove_dir_all(&memory) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(TemplateError(error.into()))
                    }
                    _ => Ok(false),
                }
            }
        }
    }
}

impl Templates for HostTemplates {
    fn current(&self, name: &str) -> Result<Option<TemplateFiles>, TemplateError> {
        let found = self.built.current(name).map_err(|error| TemplateError(error.into()))?;
        Ok(found.map(files))
    }

    fn created(&self, name: &str) -> Result<Option<Timestamp>, TemplateError> {
        let found = self.built.current(name).map_err(|error| TemplateError(error.into()))?;
        Ok(found.and_then(|template| Timestamp::from_micros(template.manifest.created.as_microsecond())))
    }

    fn build(&self, name: &str, digest: &str) -> Result<Option<TemplateFiles>, TemplateError> {
        Ok(self.get(name, digest)?.map(files))
    }

    fn warm(&self, name: &str, digest: &str, size: Size) -> Result<Option<WarmFiles>, TemplateError> {
        let Some(template) = self.get(name, digest)? else { return Ok(None) };
        // A second one is made where the first was damaged: computers may lie on the disk of that.
        for number in 0..MOST {
            let directory = numbered(&self.target(&template, size), number);
            let (disk, memory) = (directory.join(DISK_FILE), directory.join(MEMORY_DIRECTORY));
            if disk.exists() && memory.exists() && self.is_whole(&directory, size)? {
                return Ok(Some(WarmFiles { disk, memory }));
            }
        }
        Ok(None)
    }

    fn warm_target(&self, name: &str, digest: &str, size: Size) -> Result<Utf8PathBuf, TemplateError> {
        let template = self.get(name, digest)?;
        let template =
            template.ok_or_else(|| TemplateError(format!("there is no {name} {digest}").into()))?;
        let target = self.target(&template, size);
        let failed = |error: std::io::Error| TemplateError(error.into());
        std::fs::create_dir_all(template.directory.join(MEMORIES)).map_err(failed)?;
        let free = (0..MOST).map(|number| numbered(&target, number)).find(|path| !path.exists());
        free.ok_or_else(|| {
            TemplateError(format!("{target} was damaged {MOST} times: is the disk sound?").into())
        })
    }
}

/// How often a damaged memory is made again before somebody should look at the disk.
const MOST: u32 = 10;

fn numbered(target: &Utf8Path, number: u32) -> Utf8PathBuf {
    match number {
        0 => target.to_owned(),
        number => Utf8PathBuf::from(format!("{target}.{number}")),
    }
}

/// The sizes of which a template has a memory, of whatever hardware and QEMU.
pub(crate) fn memories(template: &Template) -> Vec<&'static str> {
    let has = |size: &Size| {
        let entries = template.directory.join(MEMORIES).read_dir_utf8();
        let start = format!("{}-", size.as_str());
        entries.is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().starts_with(&start)))
    };
    Size::ALL.iter().filter(|size| has(size)).map(|size| size.as_str()).collect()
}

fn files(template: Template) -> TemplateFiles {
    TemplateFiles {
        digest: template.digest.to_string(),
        base: template.disk,
        kernel: template.kernel,
        initrd: template.initrd,
    }
}
