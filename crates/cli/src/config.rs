//! Which server the command line speaks to: `$XDG_CONFIG_HOME/roost/config.json`.

use anyhow::Context;
use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

/// What `cargo xtask up` writes and the commands read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    pub url: String,
    pub api_key: String,
}

/// An XDG base directory: the variable, or its default below the home directory.
pub(crate) fn xdg(variable: &str, default: &str) -> anyhow::Result<Utf8PathBuf> {
    if let Some(directory) = std::env::var(variable).ok().filter(|value| value.starts_with('/')) {
        return Ok(directory.into());
    }
    let home = std::env::var("HOME").context("HOME is not set: say where the data is with --data")?;
    Ok(Utf8PathBuf::from(home).join(default))
}

pub(crate) fn path() -> anyhow::Result<Utf8PathBuf> {
    Ok(xdg("XDG_CONFIG_HOME", ".config")?.join("roost/config.json"))
}

pub(crate) fn read() -> anyhow::Result<Option<Config>> {
    let path = path()?;
    match std::fs::read(&path) {
        Ok(text) => {
            let config = serde_json::from_slice(&text).with_context(|| {
                format!("failed to read {path}: remove it, or write {{\"url\", \"api_key\"}}")
            })?;
            Ok(Some(config))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read {path}")),
    }
}
