//! `roost` as a person uses it on a computer: copies that are interrupted, ports brought here, ssh and scp.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use roost_tests::{Client, PATIENCE, Server, roost};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// A command line of a person who uses this server.
fn command(client: &Client, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("ROOST_URL", &client.url)
        .env("ROOST_API_KEY", &client.key)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// What it printed; it must have succeeded.
async fn run(client: &Client, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<String> {
    let output = tokio::time::timeout(PATIENCE, command(client, program, arguments).output()).await??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {}: {}{said}", output.status, text(&output.stdout));
    Ok(text(&output.stdout))
}

const SMALL: usize = 60;
const LARGE: usize = 24 * 1024 * 1024;

/// A tree with small files, a large one, a link, an empty directory, and odd names.
fn plant(tree: &Path) -> Result<()> {
    std::fs::create_dir_all(tree.join("sub dir/deep"))?;
    std::fs::create_dir_all(tree.join("empty"))?;
    for number in 0..SMALL {
        let directory = ["", "sub dir", "sub dir/deep"][number % 3];
        let content = number.to_string().repeat(100_000);
        std::fs::write(tree.join(directory).join(format!("file {number}\nof many")), content)?;
    }
    let large: Vec<u8> =
        (0..LARGE / 8).flat_map(|number| (number as u64).wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    std::fs::write(tree.join("large"), large)?;
    std::fs::set_permissions(tree.join("large"), std::fs::Permissions::from_mode(0o750))?;
    std::os::unix::fs::symlink("sub dir/deep", tree.join("link"))?;
    Ok(())
}

/// Every path below, with what is to be the same on both sides; and its inode, which a new copy would change.
fn census(tree: &Path) -> Result<Vec<(PathBuf, String, u64)>> {
    let mut found = Vec::new();
    let mut open = vec![tree.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = std::fs::symlink_metadata(&path)?;
            let what = if metadata.is_dir() {
                open.push(path.clone());
                "directory".to_owned()
            } else if metadata.is_symlink() {
                format!("-> {}", std::fs::read_link(&path)?.display())
            } else {
                let mut content = Vec::new();
                std::fs::File::open(&path)?.read_to_end(&mut content)?;
                let sum =
                    content.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
                format!("{} {:o} {} {sum}", content.len(), metadata.mode() & 0o777, metadata.mtime())
            };
            found.push((path.strip_prefix(tree)?.to_owned(), what, metadata.ino()));
        }
    }
    found.sort();
    Ok(found)
}

fn kept(before: &[(PathBuf, String, u64)], after: &[(PathBuf, String, u64)]) -> usize {
    let is_file = |what: &str| what != "directory" && !what.starts_with("->");
    before.iter().filter(|old| is_file(&old.1) && after.contains(old)).count()
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_directory_that_was_interrupted_is_copied_to_its_end() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("copied").await?;
    let place = tempfile::tempdir_in("/var/tmp")?;
    let tree = place.path().join("tree");
    plant(&tree)?;
    let here = tree.to_str().context("no text")?;

    // There: killed when some of it has arrived.
    let mut copying = command(&client, roost(), &["cp", "-r", here, "copied:/workspace/"]).spawn()?;
    let some = "timeout 120 sh -c 'until [ $(find /workspace/tree -type f -name \"file *\" -printf x 2>/dev/null | wc -c) -ge 10 ]; \
                do sleep 0.05; done'";
    client.output(&id, some).await?;
    copying.kill().await?;
    let inodes = "cd /workspace/tree && find . -type f -name 'file *' -printf '%i %P\\0' | sort -z | tr '\\n\\0' '?\\n'";
    let before = client.output(&id, inodes).await?;
    run(&client, roost(), &["cp", "-r", here, "copied:/workspace/"]).await?;
    let after = client.output(&id, inodes).await?;
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    ensure!(after.len() == SMALL, "{} of {SMALL}", after.len());
    // The last one may have been on its way when it was counted.
    let same = before.iter().filter(|line| after.contains(line)).count();
    ensure!(same + 1 >= before.len() && same >= 9, "{same} of {} were not copied again", before.len());

    // And back, also interrupted.
    let back = place.path().join("back");
    std::fs::create_dir(&back)?;
    let there = back.to_str().context("no text")?;
    let mut copying = command(&client, roost(), &["cp", "-r", "copied:/workspace/tree", there]).spawn()?;
    let some = async {
        while census(&back).unwrap_or_default().len() < 15 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, some).await?;
    copying.kill().await?;
    let before = census(&back.join("tree"))?;
    run(&client, roost(), &["cp", "-r", "copied:/workspace/tree", there]).await?;
    let after = census(&back.join("tree"))?;
    let plain = |rows: Vec<(PathBuf, String, u64)>| -> Vec<(PathBuf, String)> {
        rows.into_iter().map(|(path, what, _)| (path, what)).collect()
    };
    let same = kept(&before, &after);
    ensure!(same >= 8, "{same} files were not copied again");
    ensure!(plain(after) == plain(census(&tree)?), "the trees differ");
    Ok(())
}

/// Passes connections on to the server, and breaks the first of them after so many bytes.
async fn breaking(server: &str, breaks: usize, after: u64) -> Result<(SocketAddr, Arc<AtomicUsize>)> {
    let server: SocketAddr = server.strip_prefix("http://").context("not http")?.parse()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let broken = Arc::new(AtomicUsize::new(0));
    let count = broken.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(server).await else { return };
                let (mut near_in, mut near_out) = near.split();
                let (mut far_in, mut far_out) = far.split();
                let passed = std::sync::atomic::AtomicU64::new(0);
                let one = pass(&mut near_in, &mut far_out, &passed, after, breaks, &count);
                let other = pass(&mut far_in, &mut near_out, &passed, after, breaks, &count);
                // Either end is the end of both: nothing here half-closes.
                tokio::select! {
                    () = one => {}
                    () = other => {}
                }
            });
        }
    });
    Ok((address, broken))
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    passed: &std::sync::atomic::AtomicU64,
    after: u64,
    breaks: usize,
    broken: &AtomicUsize,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if passed.fetch_add(count as u64, Ordering::SeqCst) > after && broken.load(Ordering::SeqCst) < breaks
        {
            broken.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_connection_that_breaks_is_made_again() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("unsteady").await?;
    let place = tempfile::tempdir_in("/var/tmp")?;
    let tree = place.path().join("tree");
    plant(&tree)?;
    let (address, broken) = breaking(&client.url, 3, 5 * 1024 * 1024).await?;
    let unsteady = Client { url: format!("http://{address}"), ..client.clone() };
    let here = tree.to_str().context("no text")?;
    run(&unsteady, roost(), &["cp", "-r", here, "unsteady:/workspace/tree"]).await?;
    ensure!(broken.load(Ordering::SeqCst) == 3, "the connection did not break");
    let there = client
        .output(
            &id,
            "cd /workspace/tree && find . -type f | wc -l; ls -A /workspace/tree | grep roost-part | wc -l",
        )
        .await?;
    ensure!(there.ends_with('0'), "{there}");

    let (address, broken) = breaking(&client.url, 3, 5 * 1024 * 1024).await?;
    let unsteady = Client { url: format!("http://{address}"), ..client.clone() };
    let back = place.path().join("back");
    run(&unsteady, roost(), &["cp", "-r", "unsteady:/workspace/tree", back.to_str().context("no text")?])
        .await?;
    ensure!(broken.load(Ordering::SeqCst) == 3, "the connection did not break");
    let plain = |rows: Vec<(PathBuf, String, u64)>| -> Vec<(PathBuf, String)> {
        rows.into_iter().map(|(path, what, _)| (path, what)).collect()
    };
    ensure!(plain(census(&back)?) == plain(census(&tree)?), "the trees differ");

    // One file, both ways, in one run each.
    let (address, broken) = breaking(&client.url, 2, 5 * 1024 * 1024).await?;
    let unsteady = Client { url: format!("http://{address}"), ..client.clone() };
    let large = tree.join("large");
    run(&unsteady, roost(), &["cp", large.to_str().context("no text")?, "unsteady:/workspace/one"]).await?;
    let (again, broken_back) = breaking(&client.url, 2, 5 * 1024 * 1024).await?;
    let unsteady = Client { url: format!("http://{again}"), ..client.clone() };
    let one = place.path().join("one");
    run(&unsteady, roost(), &["cp", "unsteady:/workspace/one", one.to_str().context("no text")?]).await?;
    ensure!(broken.load(Ordering::SeqCst) == 2 && broken_back.load(Ordering::SeqCst) == 2);
    ensure!(std::fs::read(&one)? == std::fs::read(&large)?, "it has changed on its way");
    let left: Vec<_> = std::fs::read_dir(place.path())?.collect::<Result<_, _>>()?;
    ensure!(left.len() == 3, "{left:?}");
    Ok(())
}

/// Answers each connection, when it has said everything, with how much that was.
const COUNTER: &str = "
import socketserver

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        count = 0
        while piece := self.rfile.read(65536):
            count += len(piece)
        self.wfile.write(b'%d bytes' % count)

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 100

Server(('127.0.0.1', 4000), Handler).serve_forever()
";

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_port_is_brought_here() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("listening").await?;
    let serve = "mkdir -p /tmp/www && echo page >/tmp/www/index.html && cd /tmp/www && exec python3 -m http.server 3000";
    for line in [serve.to_owned(), format!("exec python3 -c \"{COUNTER}\"")] {
        let body = serde_json::json!({ "command": line, "background": true });
        let started = client.post(&format!("/computers/{id}/exec"), body).await?;
        ensure!(started.status == 200, "{}", started.json()?);
    }
    for port in [3000, 4000] {
        let up = format!(
            "timeout 60 bash -c 'until (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.1; done'"
        );
        client.output(&id, &up).await?;
    }
    let forward = async |port: &str| -> Result<(tokio::process::Child, SocketAddr)> {
        let arguments = ["--json", "port", "listening", port];
        let mut child = command(&client, roost(), &arguments).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut text = String::new();
        // All of it is one value, on as many lines as it takes.
        let value: Value = loop {
            ensure!(lines.read_line(&mut text).await? > 0, "it has ended: {text}");
            if let Ok(value) = serde_json::from_str(&text) {
                break value;
            }
        };
        Ok((child, value["address"].as_str().with_context(|| format!("no address: {value}"))?.parse()?))
    };
    let (web, address) = forward("0:3000").await?;
    // A real client, again and again, and many at once.
    let pages = (0..20).map(|_| async {
        let response = reqwest::get(format!("http://{address}/index.html")).await?;
        anyhow::Ok((response.status().as_u16(), response.text().await?))
    });
    for page in futures_util::future::try_join_all(pages).await? {
        ensure!(page == (200, "page\n".to_owned()), "{page:?}");
    }
    drop(web);

    // What one side has ended, the other may still answer.
    let (_counter, address) = forward("0:4000").await?;
    let mut connection = TcpStream::connect(address).await?;
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..160 {
        connection.write_all(&piece).await?;
    }
    connection.shutdown().await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    ensure!(answer == format!("{} bytes", 160 * 64 * 1024), "{answer:?}");

    // Nothing listens there: the connection ends, and the forward stays.
    let (mut nobody, address) = forward("0:4999").await?;
    let mut nothing = Vec::new();
    drop(TcpStream::connect(address).await?.read_to_end(&mut nothing).await);
    ensure!(nothing.is_empty() && nobody.try_wait()?.is_none());
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn ssh_and_scp_work_through_the_proxy_command() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("reached").await?;
    let place = tempfile::tempdir_in("/var/tmp")?;
    let hosts = format!("UserKnownHostsFile={}", place.path().join("hosts").display());
    let proxy = format!("ProxyCommand='{}' ssh-proxy %h", roost().display());
    let common = [
        "-F",
        "/dev/null",
        "-o",
        &proxy,
        "-o",
        &hosts,
        "-o",
        "StrictHostKeyChecking=accept-new",
        "-o",
        "BatchMode=yes",
    ];
    let with =
        |more: &[&str]| -> Vec<String> { common.iter().chain(more).map(|word| (*word).to_owned()).collect() };
    let words = |words: &[String]| -> Vec<String> { words.to_vec() };

    let arguments =
        words(&with(&["user@reached.roost", "id -un; echo $SSH_CONNECTION | wc -w; cat /etc/hostname"]));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = run(&client, "ssh", &arguments).await?;
    ensure!(said.starts_with("user\n") && said.ends_with("reached\n"), "{said:?}");

    // Its input, its streams and its exit code.
    let arguments = with(&["user@reached.roost", "cat; echo bad >&2; exit 42"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = command(&client, "ssh", &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let input: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    let mut stdin = child.stdin.take().context("no input")?;
    let sent = input.clone();
    let feed = tokio::spawn(async move {
        stdin.write_all(&sent).await?;
        stdin.shutdown().await
    });
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
    feed.await??;
    ensure!(output.status.code() == Some(42), "{}", output.status);
    ensure!(output.stdout == input && String::from_utf8_lossy(&output.stderr).contains("bad\n"));

    // scp there and back, a directory and a large file.
    let tree = place.path().join("tree");
    std::fs::create_dir_all(tree.join("sub"))?;
    let mut file = std::fs::File::create(tree.join("sub/a file"))?;
    file.write_all(&input)?;
    let there = place.path().join("back");
    let (tree_text, back_text) = (tree.to_str().context("no text")?, there.to_str().context("no text")?);
    for more in
        [["-r", tree_text, "user@reached.roost:/tmp/tree"], ["-r", "user@reached.roost:/tmp/tree", back_text]]
    {
        let arguments = with(&more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(&client, "scp", &arguments).await?;
    }
    ensure!(std::fs::read(there.join("sub/a file"))? == input, "it has changed on its way");

    // `roost ssh` is the same without the words; the host key it learns is this computer's.
    let said = run(
        &client,
        roost(),
        &["ssh", "reached", "-F", "/dev/null", "-o", &hosts, "-o", "BatchMode=yes", "echo hello"],
    )
    .await?;
    ensure!(said == "hello\n", "{said:?}");
    let known = std::fs::read_to_string(place.path().join("hosts"))?;
    ensure!(known.contains(&format!("roost-{id}")), "{known}");
    Ok(())
}
