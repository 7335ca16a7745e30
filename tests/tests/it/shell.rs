//! Commands on a real computer: many at once, every way to talk to one, and what becomes of one that nobody hears.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use roost_tests::{Framed, PATIENCE, Server, json_frame, resident};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message};

const MIB: u64 = 1024 * 1024;

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_hundred_commands_at_once_do_not_block_each_other() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("busy").await?;
    // All of them wait for a lock; if one waited for another's end, nobody would ever let it go.
    client.output(&id, "mkdir /tmp/waiting").await?;
    let mut holder = Framed::shell(&client, &id, "flock /tmp/gate sh -c 'echo held; read line'").await?;
    holder.until("held").await?;
    let commands: Vec<_> = (0..100)
        .map(|number| {
            let (client, id) = (client.clone(), id.clone());
            let line = format!("touch /tmp/waiting/{number}; flock -s /tmp/gate echo {number}");
            tokio::spawn(async move { client.exec(&id, &line).await })
        })
        .collect();
    // A person at a terminal is answered meanwhile.
    let query = [("command", "bash"), ("args", "--norc"), ("tty", "true")];
    let mut person = Framed::start(&client, &id, &query).await?;
    person
        .press("until [ $(ls /tmp/waiting | wc -l) = 100 ]; do sleep 0.1; done; echo all-$((50 + 50))\r")
        .await?;
    person.until("all-100").await?;
    ensure!(!commands.iter().any(tokio::task::JoinHandle::is_finished), "one did not wait");
    holder.press("\n").await?;
    ensure!(holder.exit().await? == 0);
    for (number, command) in commands.into_iter().enumerate() {
        let result = command.await??;
        ensure!(result["exit_code"] == 0 && result["output"] == format!("{number}\n"), "{number}: {result}");
    }
    person.press("exit 4\r").await?;
    ensure!(person.exit().await? == 4);
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn the_framed_protocol_as_it_is_published() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("framed").await?;
    let path = format!("/api/v1/computers/{id}/exec/stream");

    // Every byte both ways, the streams apart, the end of the input, and an exit code with its sign.
    let all: Vec<u8> = (0..=255).cycle().take(700_000).collect();
    let mut echo = Framed::shell(&client, &id, "tee >(sha256sum >&2); exit 250").await?;
    for piece in all.chunks(100_001) {
        echo.send(Framed::STDIN, piece).await?;
    }
    echo.send(0x7f, b"of no kind that there is").await?;
    echo.socket.send(Message::binary(Vec::new())).await?;
    echo.send(Framed::STDIN_END, &[]).await?;
    ensure!(echo.exit().await? == 250 && echo.stdout == all, "{} bytes came back", echo.stdout.len());

    // Arguments, variables and the directory arrive as they are.
    let query = [
        ("command", "sh"),
        ("args", "-c"),
        ("args", r#"printf '%s|' "$@" "$BIRD" "$PWD""#),
        ("args", "sh"),
        ("args", "a, b"),
        ("args", "$HOME *"),
        ("env", "BIRD=a wren=1"),
        ("cwd", "/tmp"),
    ];
    let mut words = Framed::start(&client, &id, &query).await?;
    ensure!(
        words.exit().await? == 0 && words.printed() == "a, b|$HOME *|a wren=1|/tmp|",
        "{}",
        words.printed()
    );

    // On a terminal: its size, a new one, Ctrl-C, and everything on one channel.
    let script = "stty -echo; trap 'stty size' WINCH; trap 'echo hit; exit 9' INT; stty size; echo err >&2; \
                  while true; do sleep 0.05; done";
    let query = [("command", script), ("tty", "true"), ("rows", "33"), ("cols", "101")];
    let mut terminal = Framed::start(&client, &id, &query).await?;
    terminal.until("33 101\r\n").await?;
    terminal.until("err\r\n").await?;
    terminal.resize(40, 260).await?;
    terminal.until("40 260\r\n").await?;
    terminal.press("\x03").await?;
    ensure!(terminal.exit().await? == 9 && terminal.stderr.is_empty());
    terminal.until("hit").await?;

    // What is no command is refused before the upgrade, as everywhere.
    let refused = async |path: &str, query: &[(&str, &str)], key: &str| {
        let mut stranger = client.clone();
        key.clone_into(&mut stranger.key);
        match stranger.socket(path, query, Some("miosa-exec-v1")).await {
            Ok(_) => 101,
            Err(error) => match error.downcast_ref::<tungstenite::Error>() {
                Some(tungstenite::Error::Http(response)) => response.status().as_u16(),
                _ => 0,
            },
        }
    };
    let run = [("command", "true")];
    ensure!(refused(&path, &[], &client.key).await == 400);
    ensure!(refused(&path, &run, "msk_u_00000000000000000000000000000000").await == 401);
    let nobody = "/api/v1/computers/00000000-0000-4000-8000-000000000000/exec/stream";
    ensure!(refused(nobody, &run, &client.key).await == 404);

    // A browser has no headers: the credential comes beside the protocol, and is not said back.
    let mut browser = client.clone();
    let offered = format!("miosa-exec-v1, bearer.{}", std::mem::take(&mut browser.key));
    let (_, agreed) = browser.socket(&path, &run, Some(&offered)).await?;
    ensure!(agreed.as_deref() == Some("miosa-exec-v1"), "{agreed:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn signals_reach_the_whole_command_and_so_does_a_hang_up() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("signalled").await?;
    let path = format!("/api/v1/computers/{id}/exec/stream");

    // The shell and what it runs: both are told.
    let line = "trap 'echo shell' USR1; sh -c 'trap \"echo child; exit\" USR1; echo ready; while true; do sleep 0.05; done'; \
                sleep 1000";
    let (mut socket, _) = client.socket(&path, &[("command", line)], None).await?;
    let mut said = String::new();
    let hear = async |socket: &mut roost_tests::Socket, said: &mut String, wanted: &str| -> Result<Value> {
        loop {
            if !wanted.is_empty() && said.contains(wanted) {
                return Ok(Value::Null);
            }
            let frame = json_frame(socket).await?.with_context(|| format!("ended after {said:?}"))?;
            match frame["type"].as_str() {
                Some("stdout") => said.push_str(frame["data"].as_str().unwrap_or_default()),
                Some("exit") => return Ok(frame),
                // The shells' word for a `sleep` that was told, too.
                Some("stderr") => {}
                _ => anyhow::bail!("{frame}"),
            }
        }
    };
    hear(&mut socket, &mut said, "ready").await?;
    let signal = |name: &str| Message::text(json!({ "type": "signal", "signal": name }).to_string());
    socket.send(signal("SIGUSR1")).await?;
    hear(&mut socket, &mut said, "child").await?;
    hear(&mut socket, &mut said, "shell").await?;
    socket.send(signal("SIGKILL")).await?;
    let exit = hear(&mut socket, &mut said, "").await?;
    ensure!(exit == json!({ "type": "exit", "code": 137, "exit": 137 }), "{exit}");
    ensure!(json_frame(&mut socket).await?.is_none());

    // Whoever goes hangs up. One that does not listen is ended a little later.
    let gone = async |pattern: &str| {
        let line = format!("timeout 60 sh -c 'while pgrep -f \"{pattern}\" >/dev/null; do sleep 0.1; done'");
        client.output(&id, &line).await
    };
    // Nobody reads any more: a shell that says that its `sleep` was hung up ends of that (SIGPIPE), before its trap.
    let line = "exec 2>/dev/null; trap 'echo heard >/tmp/heard; exit' HUP; echo ready; \
                while true; do sleep 0.05; done; : polite";
    let mut polite = Framed::shell(&client, &id, line).await?;
    polite.until("ready").await?;
    polite.socket.close(None).await?;
    gone("polit[e]").await?;
    ensure!(client.output(&id, "cat /tmp/heard").await? == "heard");
    let mut deaf = Framed::shell(&client, &id, "trap '' HUP; echo ready; sleep 4242").await?;
    deaf.until("ready").await?;
    // Not even a goodbye.
    drop(deaf);
    gone("sleep 424[2]").await?;

    // What was started to stay, stays: in a session of its own.
    let body = json!({ "command": "sleep 5252", "background": true });
    let started = client.post(&format!("/computers/{id}/exec"), body).await?.json()?;
    let pid = started["pid"].as_u64().with_context(|| format!("no pid: {started}"))?;
    client.output(&id, &format!("kill -0 {pid} && pgrep -f 'sleep 525[2]'")).await?;
    Ok(())
}

/// Counts what it has got rid of.
const FLOOD: &str = r"
import os
piece = b'x' * 65536
done = 0
while done < 400 * len(piece):
    done += os.write(1, piece)
    with open('/tmp/done.new', 'w') as out:
        out.write(str(done))
    os.rename('/tmp/done.new', '/tmp/done')
";

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn output_that_nobody_reads_holds_its_program_back() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("unread").await?;
    let processes = [("server", server.pid()), ("machine", server.machine_pid(&id)?)];
    let before = processes.map(|(_, pid)| resident(pid).unwrap_or_default());
    let mut unread =
        Framed::start(&client, &id, &[("command", "python3"), ("args", "-c"), ("args", FLOOD)]).await?;
    // It stands when its count does; a second is long for a program that is not held.
    let count = async || -> Result<u64> {
        Ok(client.output(&id, "cat /tmp/done 2>/dev/null || echo 0").await?.parse()?)
    };
    let stopped_at = tokio::time::timeout(PATIENCE, async {
        let mut last = count().await?;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = count().await?;
            if now == last && now > 0 {
                return anyhow::Ok(now);
            }
            last = now;
        }
    })
    .await
    .context("the program was never held")??;
    let all = 400 * 65536;
    ensure!(stopped_at < all, "all of it went somewhere: {stopped_at}");
    for ((name, pid), before) in processes.into_iter().zip(before) {
        let grown = resident(pid)?.saturating_sub(before);
        ensure!(grown < 64 * MIB, "the {name} has grown by {grown} bytes");
    }
    // Nobody else is held back, and nothing is lost.
    ensure!(client.output(&id, "echo here").await? == "here");
    ensure!(unread.exit().await? == 0 && unread.stdout.len() as u64 == all, "{} bytes", unread.stdout.len());
    Ok(())
}
