//! `cargo xtask up` and `down`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::packages::Purpose;
use crate::{build, packages, step};

/// A first start probes the accelerator, which boots a kernel.
const SERVER_START_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) struct Options {
    detach: bool,
    listen: String,
}

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let listen = std::env::var("ROOST_LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
        let mut options = Self { detach: false, listen };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--detach" => options.detach = true,
                "--listen" => {
                    options.listen = (*words.next().context("--listen wants an address")?).to_owned()
                }
                other => {
                    bail!("unknown option {other}: `cargo xtask up` takes --detach and --listen ADDRESS")
                }
            }
        }
        Ok(options)
    }
}

pub(crate) fn up(options: &Options) -> Result<()> {
    packages::install(Purpose::Run)?;
    build::web()?;
    build::programs()?;
    build::template(&build::roost())?;

    let data = data()?;
    if server_runs(&data)? {
        bail!("a server runs on {} already: `cargo xtask down` stops it", data.display());
    }
    let begun = Instant::now();
    let (mut server, url) = start(options, &data)?;
    step::done(&format!("server at {url}"), begun);

    let ready = write_config(&data, &url).and_then(|()| first_computer());
    match ready {
        Ok(link) => {
            let bin = build::roost();
            step::say(&format!(
                "\nYour computer is ready. Open its desktop in a browser:\n\n  {link}\n\n\
                 The command line: {0} list | exec desktop uname -a | screenshot desktop -o screen.png | --help\n\
                 A new link:       {0} open desktop",
                bin.strip_prefix(std::env::current_dir().unwrap_or_default()).unwrap_or(&bin).display()
            ));
        }
        Err(error) => {
            terminate(&server)?;
            return Err(error);
        }
    }
    if options.detach {
        step::say("\nThe server keeps running; `cargo xtask down` stops it and its computers.");
        return Ok(());
    }
    step::say("\nCtrl-C stops the server; computers keep running (`cargo xtask down` stops both). Log:\n");
    server.wait().context("failed to wait for the server")?;
    Ok(())
}

pub(crate) fn down() -> Result<()> {
    let data = data()?;
    if !server_runs(&data)? {
        step::say("  ok   no server runs");
        return Ok(());
    }
    step::run("computers stopped", Command::new(build::roost()).args(["stop", "--all"]))?;
    let begun = Instant::now();
    let path = data.join("server.lock");
    let pid = std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let status = Command::new("kill").arg(pid.trim()).status().context("failed to run kill")?;
    if !status.success() {
        bail!("failed to stop the server, process {}", pid.trim());
    }
    // Its lock is free when it is gone.
    File::open(&path)?.lock().with_context(|| format!("failed to wait for {}", path.display()))?;
    step::done("server stopped", begun);
    Ok(())
}

/// Where the server keeps its data; the same rule as in the server.
fn data() -> Result<PathBuf> {
    if let Some(data) = std::env::var_os("ROOST_DATA") {
        return Ok(PathBuf::from(data));
    }
    Ok(xdg("XDG_DATA_HOME", ".local/share")?.join("roost"))
}

fn xdg(variable: &str, default: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute()) {
        return Ok(directory);
    }
    Ok(PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(default))
}

fn server_runs(data: &Path) -> Result<bool> {
    match File::open(data.join("server.lock")) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(false),
            Err(std::fs::TryLockError::WouldBlock) => Ok(true),
            Err(std::fs::TryLockError::Error(error)) => Err(error).context("failed to look at server.lock"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("failed to open server.lock"),
    }
}

/// Starts the server and returns when it says that it serves (the sd_notify protocol).
fn start(options: &Options, data: &Path) -> Result<(Child, String)> {
    std::fs::create_dir_all(data).with_context(|| format!("failed to make {}", data.display()))?;
    let socket_path = std::env::temp_dir().join(format!("roost-up-{}", std::process::id()));
    let socket = UnixDatagram::bind(&socket_path).context("failed to make the notification socket")?;
    let mut command = Command::new(build::roost());
    command
        .args(["serve", "--listen", &options.listen])
        .env("NOTIFY_SOCKET", &socket_path)
        .stdin(Stdio::null());
    let log = data.join("server.log");
    if options.detach {
        let file = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)
            .with_context(|| format!("failed to open {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file).process_group(0);
    }
    let mut server = command.spawn().context("failed to start the server")?;
    let begun = Instant::now();
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut buffer = [0; 4096];
    let url = loop {
        if let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let url = text.lines().find_map(|line| line.strip_prefix("STATUS=serving at "));
            if let Some(url) = url {
                break Ok(url.to_owned());
            }
        }
        if let Some(status) = server.try_wait()? {
            let more = if options.detach { format!("; see {}", log.display()) } else { String::new() };
            break Err(anyhow::anyhow!("the server ended at once with {status}{more}"));
        }
        if begun.elapsed() > SERVER_START_LIMIT {
            terminate(&server)?;
            break Err(anyhow::anyhow!("the server did not come up in {} s", SERVER_START_LIMIT.as_secs()));
        }
    };
    std::fs::remove_file(&socket_path).context("failed to remove the notification socket")?;
    Ok((server, url?))
}

fn terminate(server: &Child) -> Result<()> {
    Command::new("kill").arg(server.id().to_string()).status().context("failed to run kill")?;
    Ok(())
}

/// What lets `roost` speak to this server without options.
fn write_config(data: &Path, url: &str) -> Result<()> {
    let key = std::fs::read_to_string(data.join("admin.key")).context("failed to read admin.key")?;
    let directory = xdg("XDG_CONFIG_HOME", ".config")?.join("roost");
    std::fs::create_dir_all(&directory).with_context(|| format!("failed to make {}", directory.display()))?;
    let config = serde_json::json!({ "url": url, "api_key": key.trim() });
    let path = directory.join("config.json");
    let temporary = directory.join("config.json.tmp");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    writeln!(file, "{config:#}")?;
    std::fs::rename(&temporary, &path).with_context(|| format!("failed to write {}", path.display()))
}

/// Makes a first computer where there is none, and returns a link to a running one.
fn first_computer() -> Result<String> {
    let roost = |words: &[&str]| {
        let mut command = Command::new(build::roost());
        command.arg("--json").args(words);
        command
    };
    let list: Value = serde_json::from_str(&step::output("computers", &mut roost(&["list"]))?)?;
    let first = list.as_array().and_then(|list| list.last()).cloned();
    let (slug, status) = match &first {
        Some(computer) => (computer["slug"].as_str().unwrap_or_default(), computer["status"].as_str()),
        None => ("desktop", None),
    };
    match status {
        Some("running") => {}
        Some(_) => step::run(&format!("computer {slug} started"), &mut roost(&["start", slug]))?,
        None => step::run("first computer", &mut roost(&["create", slug]))?,
    }
    let link: Value = serde_json::from_str(&step::output("desktop link", &mut roost(&["open", slug]))?)?;
    Ok(link["url"].as_str().context("the server gave no link")?.to_owned())
}
