//! Two computers do not see each other, and neither sees the host.

use anyhow::{Result, ensure};
use roost_tests::Server;
use serde_json::json;
use tokio::io::AsyncWriteExt;

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn computers_are_apart_and_away_from_the_host() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let (first, second) = tokio::try_join!(client.create("first"), client.create("second"))?;

    // Identities.
    let identity = "cat /etc/machine-id; hostname; cat /proc/sys/kernel/random/uuid";
    let (one, two) = (client.output(&first, identity).await?, client.output(&second, identity).await?);
    for (one, two) in one.lines().zip(two.lines()) {
        ensure!(one != two, "both have {one}");
    }

    // Files, processes, ports.
    client.output(&first, "echo secret > /workspace/secret; (sleep 4242 >/dev/null 2>&1 &)").await?;
    client.output(&first, "(python3 -m http.server 8765 --bind 0.0.0.0 >/dev/null 2>&1 &)").await?;
    client
        .output(&first, "timeout 20 sh -c 'until curl -s localhost:8765 >/dev/null; do sleep 0.2; done'")
        .await?;
    ensure!(client.exec(&second, "ls /workspace/secret").await?["success"] == false);
    ensure!(client.exec(&second, "pgrep -f 'sleep 4242'").await?["success"] == false);
    for address in ["127.0.0.1", "10.0.2.2", "10.0.2.15"] {
        let probe = format!("curl -s -m 3 http://{address}:8765/");
        ensure!(client.exec(&second, &probe).await?["success"] == false, "{address} is reachable");
    }

    // A server on the host's loopback, and the same on every address of the host.
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await?;
    let port = listener.local_addr()?.port();
    let reached = tokio::spawn(async move {
        let (mut stream, peer) = listener.accept().await?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nreached").await?;
        anyhow::Ok(peer)
    });
    let mut addresses = vec!["10.0.2.2".to_owned(), "127.0.0.1".to_owned(), "198.18.0.2".to_owned()];
    let own = std::process::Command::new("hostname").arg("-I").output()?;
    let own = String::from_utf8_lossy(&own.stdout).into_owned();
    addresses.extend(own.split_whitespace().filter(|address| !address.contains(':')).map(str::to_owned));
    for address in addresses {
        let probe = format!("curl -s -m 3 http://{address}:{port}/");
        let result = client.exec(&first, &probe).await?;
        ensure!(result["success"] == false, "{address}: {result}");
    }
    ensure!(!reached.is_finished(), "the guest reached the host");
    reached.abort();

    // Names are still resolved, and packages can be had.
    client
        .output(
            &first,
            "getent hosts $(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/*.sources | cut -d/ -f3)",
        )
        .await?;
    let body = json!({ "command": "sudo apt-get -q update 2>&1", "timeout": 240 });
    let update = client.post(&format!("/computers/{first}/exec"), body).await?.json()?;
    ensure!(update["success"] == true, "{update}");
    Ok(())
}
