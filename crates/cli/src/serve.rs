//! `roost serve`: the control plane and its HTTP surface in one process.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use roost_api::{AddressRange, MicroCredits, NotARegion, Price, Prices, RegionName, Size};
use roost_control::{
    Config, Control, CreditConfig, EventRetention, FileConfig, NoHook, PublicUrls, Regions, Sharing,
    StreamKey, SystemResolver, Templates,
};
use roost_http::{App, Origin, Outgoing, RateLimit, Reach};
use roost_image::DESKTOP;
use roost_launch::{Local, LocalConfig};
use roost_machine_proto::NetworkSpec;
use roost_store::{DatabaseUrl, Store};
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::DataArgs;
use crate::output::LogFormat;
use crate::templates::HostTemplates;

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    data: DataArgs,

    /// PostgreSQL database, as postgres://USER@HOST/DATABASE [default: SQLite, roost.db in the data directory]
    ///
    /// Arguments can be read by everybody on this host: give a password in ROOST_DATABASE, in PGPASSWORD or in the
    /// file that PGPASSFILE names.
    #[arg(long, env = "ROOST_DATABASE", hide_env_values = true, value_name = "URL")]
    database: Option<DatabaseUrl>,

    /// Address to listen on
    #[arg(long, env = "ROOST_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Origin under which clients reach this server [default: http://ADDRESS]
    #[arg(long, env = "ROOST_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,

    /// Another region, with the data directory of its own; may be repeated [default directory: regions/NAME in the
    /// data directory]
    ///
    /// The region `local` is always there: the data directory itself.
    #[arg(long = "region", env = "ROOST_REGIONS", value_delimiter = ',', value_name = "NAME=DIRECTORY")]
    regions: Vec<RegionArg>,

    /// Domain of the computers' host names, with its port [default: localhost:PORT]
    #[arg(long, env = "ROOST_DOMAIN", value_name = "DOMAIN")]
    domain: Option<String>,

    /// Private IPv4 network that computers may reach, in CIDR form; may be repeated
    #[arg(long = "allow-network", env = "ROOST_ALLOW_NETWORK", value_delimiter = ',', value_name = "CIDR")]
    allow_networks: Vec<String>,

    /// What an hour of a size costs, in credits; may be repeated [default: xs=2 small=3 medium=6 large=12 xl=24]
    #[arg(long = "price", env = "ROOST_PRICES", value_delimiter = ',', value_name = "SIZE=CREDITS")]
    prices: Vec<Price>,

    /// Credits that a tenant begins with which has never run anything [default: credits are not counted]
    #[arg(long, env = "ROOST_STARTING_CREDITS", value_name = "CREDITS")]
    starting_credits: Option<u32>,

    /// Requests that an API key may make in a minute [default: any number]
    #[arg(long, env = "ROOST_RATE_LIMIT", value_name = "REQUESTS")]
    rate_limit: Option<NonZeroU32>,

    /// Origin whose web pages may call the API, such as https://app.example.org, or * for every one; may be repeated
    #[arg(long = "cors-origin", env = "ROOST_CORS_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    cors_origins: Vec<Origin>,

    /// Address or network (CIDR) of a proxy in front of this server, whose X-Forwarded-For is believed; may be repeated
    ///
    /// It decides from where API keys that are limited to addresses may be used.
    #[arg(long = "trusted-proxy", env = "ROOST_TRUSTED_PROXY", value_delimiter = ',', value_name = "CIDR")]
    trusted_proxies: Vec<AddressRange>,

    /// Let webhooks lead to http addresses, and to whatever this host reaches
    #[arg(long, env = "ROOST_WEBHOOKS_ANYWHERE")]
    webhooks_anywhere: bool,

    /// Directory whose files the API may reach, in every computer; may be repeated [default: /workspace /home /root /tmp
    /// /opt /srv]
    #[arg(long = "file-root", env = "ROOST_FILE_ROOTS", value_delimiter = ',', value_name = "DIR", value_parser = file_root)]
    file_roots: Vec<String>,

    /// How large a file may be that is sent to a computer, in MiB [default: as large as its disk]
    #[arg(long, env = "ROOST_MAX_FILE_MIB", value_name = "MIB")]
    max_file_mib: Option<u32>,

    /// How many days events are kept
    #[arg(long, env = "ROOST_EVENT_DAYS", default_value_t = 7, value_name = "DAYS")]
    event_days: u32,

    /// How many events are kept at most
    #[arg(long, env = "ROOST_EVENT_COUNT", default_value_t = 1_000_000, value_name = "EVENTS")]
    event_count: u64,

    /// How the log is written
    #[arg(long, env = "ROOST_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
}

impl ServeArgs {
    fn files(&self) -> FileConfig {
        let default = FileConfig::default();
        FileConfig {
            roots: if self.file_roots.is_empty() { default.roots } else { self.file_roots.clone() },
            most_bytes: self.max_file_mib.map(|mebibytes| u64::from(mebibytes) * 1024 * 1024),
        }
    }
}

fn file_root(text: &str) -> Result<String, String> {
    let is_plain = text.starts_with('/') && !text.split('/').any(|name| name == ".." || name == ".");
    match text.trim_end_matches('/') {
        root if is_plain && !root.is_empty() => Ok(root.to_owned()),
        _ => Err("not an absolute path of a directory below /".to_owned()),
    }
}

pub(crate) async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    crate::output::log(args.log_format);
    let files = args.files();
    let data = args.data.data()?;
    let templates_dir = args.data.templates()?;
    make_data_directory(&data)?;
    let _lock = lock(&data, args.database.is_some())?;

    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("failed to listen on {}: is the port taken? choose another with --listen", args.listen)
    })?;
    let address = listener.local_addr()?;

    let templates = roost_image::Templates::new(templates_dir.clone());
    let template = templates.current(DESKTOP)?.with_context(|| {
        format!("the template {DESKTOP} is not built (looked in {templates_dir}): run `roost image build`")
    })?;
    let verdict =
        roost_machine::accel::probe(&template.kernel, &template.initrd, &data.join("accelerator.json"))?;
    tracing::info!(accelerator = ?verdict.accelerator, why = verdict.why, qemu = verdict.qemu.full, "host");

    let store = match &args.database {
        Some(url) => Store::connect(url).await?,
        None => Store::open(&data.join("roost.db")).await?,
    };
    let key = roost_control::first_key(&store).await?;
    if let Some(key) = key {
        let path = data.join("admin.key");
        write_secret(&path, &key.text)?;
        // Shown once; the server keeps only its hash.
        crate::output::print_line(&format!("admin API key, shown once and kept in {path}:\n  {}", key.text))?;
    }
    let mut disk_directories = vec![data.join("layers"), templates_dir.clone()];
    let local = Local::new(LocalConfig {
        data: data.clone(),
        templates: templates_dir,
        // Whatever file this process was started from, also after an upgrade has replaced it.
        program: Utf8PathBuf::from("/proc/self/exe"),
    })?;
    let (mut others, mut region_locks) = (Vec::new(), Vec::new());
    for (name, directory) in region_directories(&data, &args.regions)? {
        make_region_directory(&name, &directory)?;
        region_locks.push(lock(&directory, args.database.is_some())?);
        disk_directories.push(directory.join("layers"));
        tracing::info!(region = %name, %directory, "region");
        others.push((name, Arc::new(local.beside(directory)?)));
    }
    let regions = others
        .into_iter()
        .fold(Regions::from(Arc::new(local)), |regions, (name, launcher)| regions.with(name, launcher));
    let origin = args.public_url.unwrap_or_else(|| format!("http://{address}"));
    let origin = origin.trim_end_matches('/').to_owned();
    let Some((scheme, _)) = origin.split_once("://") else {
        bail!("--public-url {origin:?} is not an address such as https://roost.example.org");
    };
    let domain = args.domain.unwrap_or_else(|| format!("localhost:{}", address.port()));
    let keys = data.join("keys");
    let mut prices = Prices::default();
    args.prices.into_iter().for_each(|price| prices.set(price));
    let config = Config {
        urls: PublicUrls { scheme: scheme.to_owned(), origin: origin.clone(), domain: domain.clone() },
        accelerator: verdict.accelerator,
        network: NetworkSpec { allow: args.allow_networks },
        stream_key: StreamKey::load(&keys.join("stream.key")).context("failed to read keys/stream.key")?,
        seal_key: crate::seal::keys(&data)?,
        disk_directories,
        events: EventRetention {
            age: Duration::from_secs(u64::from(args.event_days) * 86_400),
            count: args.event_count,
        },
        outbound: Arc::new(Outgoing::new(if args.webhooks_anywhere {
            Reach::Anywhere
        } else {
            Reach::Public
        })?),
        resolver: Arc::new(SystemResolver),
        credits: CreditConfig { prices, starting: args.starting_credits.map(MicroCredits::from_credits) },
        sharing: Sharing { locks: Some(data.join("servers")), ..Sharing::default() },
        files,
    };
    let built = HostTemplates::new(templates, verdict.accelerator, verdict.qemu.full.clone());
    let built = read_memories(built, template.digest.to_string()).await?;
    let control = Control::start(store.clone(), regions, built, config, Arc::new(NoHook)).await?;
    let router = roost_http::router(App {
        control: control.clone(),
        domain,
        rate_limit: args.rate_limit.map(RateLimit::per_minute).map(Arc::new),
        cors_origins: args.cors_origins,
        trusted_proxies: args.trusted_proxies,
    })?;

    tracing::info!(%address, data = %data, version = env!("CARGO_PKG_VERSION"), "serving");
    notify_ready(&format!("serving at {origin}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Open streams would hold a graceful shutdown for ever, and computers outlive the server anyway.
    tokio::select! {
        result = async { axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await } => result?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    control.leave().await?;
    tracing::info!("the server ends; computers keep running and are found again at the next start");
    store.close().await;
    Ok(())
}

/// Reads the memories of the current template before the first computer needs them: what is damaged is noticed,
/// and what is not is in the host's cache.
async fn read_memories(templates: HostTemplates, digest: String) -> anyhow::Result<Arc<HostTemplates>> {
    let templates = Arc::new(templates);
    let reading = templates.clone();
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        for size in Size::ALL {
            let begun = std::time::Instant::now();
            if reading.warm(DESKTOP, &digest, size)?.is_some() {
                tracing::info!(size = size.as_str(), took = ?begun.elapsed(), "new computers continue from memory");
            }
        }
        Ok(())
    })
    .await??;
    Ok(templates)
}

/// Tells who started us that we serve: systemd (`Type=notify`), or anyone who speaks its protocol.
fn notify_ready(status: &str) -> anyhow::Result<()> {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
        let message = format!("READY=1\nSTATUS={status}");
        let sender = std::os::unix::net::UnixDatagram::unbound()?;
        sender.send_to(message.as_bytes(), &socket).context("failed to report to NOTIFY_SOCKET")?;
    }
    Ok(())
}

fn make_data_directory(data: &Utf8Path) -> anyhow::Result<()> {
    let failed = || format!("failed to make the data directory {data}: choose another with --data");
    std::fs::create_dir_all(data.join("keys")).with_context(failed)?;
    // Machines run as other users when the server is root; they pass through, and list nothing.
    let mode = if rustix::process::geteuid().is_root() { 0o711 } else { 0o700 };
    std::fs::set_permissions(data, std::fs::Permissions::from_mode(mode)).with_context(failed)?;
    std::fs::set_permissions(data.join("keys"), std::fs::Permissions::from_mode(0o700)).with_context(failed)
}

/// A region and its data directory: `NAME=DIRECTORY`, or `NAME` alone.
#[derive(Debug, Clone)]
struct RegionArg {
    name: RegionName,
    directory: Option<Utf8PathBuf>,
}

impl std::str::FromStr for RegionArg {
    type Err = NotARegion;

    fn from_str(text: &str) -> Result<Self, NotARegion> {
        let (name, directory) = text.split_once('=').map_or((text, None), |(name, path)| (name, Some(path)));
        let directory = directory.filter(|path| !path.is_empty()).map(Utf8PathBuf::from);
        Ok(Self { name: name.trim().parse()?, directory })
    }
}

/// The regions beside `local`, each with a directory that no other has.
fn region_directories(
    data: &Utf8Path,
    regions: &[RegionArg],
) -> anyhow::Result<BTreeMap<RegionName, Utf8PathBuf>> {
    let mut found = BTreeMap::new();
    for RegionArg { name, directory } in regions {
        let directory = match directory {
            Some(directory) => camino::absolute_utf8(directory)?,
            None if *name == RegionName::local() => continue,
            None => data.join("regions").join(name.as_str()),
        };
        if *name == RegionName::local() {
            bail!("the region local is the data directory itself ({data}): choose another with --data");
        }
        if directory == data || found.values().any(|other| *other == directory) {
            bail!(
                "the region {name} has the directory {directory} of another region: each needs one of its own"
            );
        }
        if found.insert(name.clone(), directory).is_some() {
            bail!("the region {name} is given twice");
        }
    }
    Ok(found)
}

fn make_region_directory(name: &RegionName, directory: &Utf8Path) -> anyhow::Result<()> {
    let failed = || {
        format!("failed to make the directory {directory} of the region {name}: choose another with --region")
    };
    std::fs::create_dir_all(directory).with_context(failed)?;
    // Machines run as other users when the server is root; they pass through, and list nothing.
    let mode = if rustix::process::geteuid().is_root() { 0o711 } else { 0o700 };
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode)).with_context(failed)
}

/// Two servers on one data directory would run every workflow twice, unless one database tells them apart.
pub(crate) fn lock(data: &Utf8Path, shared: bool) -> anyhow::Result<File> {
    let path = data.join("server.lock");
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
    let operation = match shared {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    if flock(&file, operation).is_err() {
        let pid = std::fs::read_to_string(&path).unwrap_or_default();
        bail!("another server (process {}) runs on {data}: stop it, or choose another --data", pid.trim());
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

fn write_secret(path: &Utf8Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("failed to write {path}");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(failed)?;
    writeln!(file, "{text}").with_context(failed)?;
    file.sync_all().with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(regions: &[&str]) -> anyhow::Result<Vec<String>> {
        let regions: Vec<RegionArg> = regions.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let found = region_directories("/data".into(), &regions)?;
        Ok(found.iter().map(|(name, directory)| format!("{name}={directory}")).collect())
    }

    #[test]
    fn every_region_has_a_directory_of_its_own() {
        assert_eq!(directories(&["local", "us-east-ny"]).unwrap(), ["us-east-ny=/data/regions/us-east-ny"]);
        assert_eq!(directories(&["b=/mnt/b", "a="]).unwrap(), ["a=/data/regions/a", "b=/mnt/b"]);
        assert!(directories(&[]).unwrap().is_empty());
        for wrong in [
            &["local=/mnt"][..],
            &["a=/mnt", "b=/mnt"],
            &["a=/data"],
            &["a", "a"],
            &["A=/mnt"],
            &["../a"],
            &[""],
        ] {
            assert!(directories(wrong).is_err(), "{wrong:?}");
        }
    }
}
