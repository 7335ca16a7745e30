//! The key that seals secrets in the database, and changing it.

use anyhow::{Context, bail};
use camino::Utf8Path;
use clap::Args;
use roost_control::{Resealed, SealKey};
use roost_store::{DatabaseUrl, Store};

use crate::DataArgs;
use crate::output::{print_json, print_line};

/// Has the keys where there is no file of them: the current one, then earlier ones.
const KEYS: &str = "ROOST_SEAL_KEY";

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    data: DataArgs,

    /// The PostgreSQL database, where it is not SQLite in the data directory
    #[arg(long, env = "ROOST_DATABASE", hide_env_values = true, value_name = "URL")]
    database: Option<DatabaseUrl>,
}

/// Where the keys come from.
#[derive(Debug)]
enum Source {
    Environment(SealKey),
    File(SealKey),
}

fn source(data: &Utf8Path) -> anyhow::Result<Source> {
    match std::env::var(KEYS) {
        // What is wrong with it is not shown: it may be a key all the same.
        Ok(keys) => Ok(Source::Environment(keys.parse().with_context(|| format!("{KEYS} cannot be read"))?)),
        Err(std::env::VarError::NotPresent) => {
            Ok(Source::File(SealKey::load(&file(data)).context("failed to read keys/seal.key")?))
        }
        Err(std::env::VarError::NotUnicode(_)) => bail!("{KEYS} cannot be read: it is not text"),
    }
}

fn file(data: &Utf8Path) -> camino::Utf8PathBuf {
    data.join("keys").join("seal.key")
}

/// The keys a server works with.
pub(crate) fn keys(data: &Utf8Path) -> anyhow::Result<SealKey> {
    Ok(match source(data)? {
        Source::Environment(keys) | Source::File(keys) => keys,
    })
}

/// Seals everything with a new key. May be interrupted: it goes on where it was, with the key it had made.
pub(crate) async fn rotate(args: RotateArgs, json: bool) -> anyhow::Result<()> {
    let data = args.data.data()?;
    if !data.join("keys").is_dir() {
        bail!("{data} is no data directory of a server; name one with --data");
    }
    // A server that runs would go on with the key of before.
    let _lock = crate::serve::lock(&data, false)?;
    let store = match &args.database {
        Some(url) => Store::connect(url).await?,
        None => Store::open(&data.join("roost.db")).await?,
    };
    let resealed = match source(&data)? {
        Source::Environment(keys) => roost_control::reseal(&store, &keys).await?,
        Source::File(keys) => {
            let keys = if keys.has_earlier_keys() { keys } else { keys.with_new_key()? };
            // Before anything is sealed with it. From here on a server works with both.
            keys.save(&file(&data)).context("failed to write keys/seal.key")?;
            let resealed = roost_control::reseal(&store, &keys).await?;
            keys.without_earlier_keys().save(&file(&data)).context("failed to write keys/seal.key")?;
            resealed
        }
    };
    store.close().await;
    report(&resealed, json)
}

fn report(resealed: &Resealed, json: bool) -> anyhow::Result<()> {
    let Resealed { sealed_again, current, unreadable } = resealed;
    if json {
        return print_json(&serde_json::json!({
            "sealed_again": sealed_again, "current": current, "unreadable": unreadable,
        }));
    }
    print_line(&format!("{sealed_again} secrets were sealed with the new key, {current} had it already"))?;
    if !unreadable.is_empty() {
        print_line(&format!("{} could be opened with no key and are as they were:", unreadable.len()))?;
        unreadable.iter().try_for_each(|place| print_line(&format!("  {place}")))?;
    }
    if std::env::var_os(KEYS).is_some() {
        print_line(&format!("start the servers with the first key of {KEYS} alone from now on"))?;
    }
    Ok(())
}
