//! The life of a computer, as a person sees it.

use anyhow::{Context, Result, ensure};
use roost_tests::{Client, Server, processes_naming, until_shown};
use serde_json::{Value, json};

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn from_create_to_delete() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();

    // Created: provisioning, at once, with every field of the seed page.
    let created =
        client.post("/computers", json!({ "name": "My Computer", "template_type": "miosa-desktop" })).await?;
    ensure!(created.status == 201);
    let computer = created.json()?;
    ensure!(computer["status"] == "provisioning" && computer["vm_id"].is_null(), "{computer}");
    ensure!(computer["slug"] == "my-computer" && computer["size"] == "small", "{computer}");
    ensure!(computer["vcpus"] == 1 && computer["memory_mb"] == 4096, "{computer}");
    let id = computer["id"].as_str().context("no id")?.to_owned();
    client.running(&id).await?;

    // Exec: output, stderr apart, exit code, working directory, variables, standard input, user.
    let result = client.exec(&id, "echo out; echo err >&2; exit 3").await?;
    ensure!(
        result["stderr"] == "err\n" && result["exit_code"] == 3 && result["success"] == false,
        "{result}"
    );
    let output = result["output"].as_str().context("no output")?;
    ensure!(output.contains("out\n") && output.contains("err\n"), "{result}");
    let body = json!({ "command": "pwd; echo $GREETING; cat", "cwd": "/workspace", "env": { "GREETING": "hello" },
        "stdin": "from stdin" });
    let result = client.post(&format!("/computers/{id}/exec"), body).await?.json()?;
    ensure!(result["output"] == "/workspace\nhello\nfrom stdin", "{result}");
    ensure!(client.output(&id, "id -un; pwd; hostname").await? == "user\n/home/user\nmy-computer");
    ensure!(client.output(&id, "sudo id -u").await? == "0");
    let python =
        client.post(&format!("/computers/{id}/exec/python"), json!({ "code": "print(6 * 7)" })).await?;
    ensure!(python.json()?["output"] == "42\n");

    the_screen_shows_a_desktop(&client, &id).await?;
    what_is_typed_arrives(&client, &id).await?;

    // Stop keeps the disk, start brings it back.
    client.output(&id, "echo kept > ~/kept && cat /proc/sys/kernel/random/boot_id > ~/boot").await?;
    let stopped = client.post(&format!("/computers/{id}/stop"), json!({})).await?;
    ensure!(stopped.status == 200 && stopped.json()?["status"] == "stopped", "{}", stopped.json()?);
    let machine = server.data().join("machines").join(&id);
    ensure!(processes_naming(&machine)?.is_empty(), "left running: {:?}", processes_naming(&machine)?);
    refused_while_stopped(&client, &id).await?;
    let started = client.post(&format!("/computers/{id}/start"), json!({})).await?;
    ensure!(started.status == 200 && started.json()?["status"] == "running", "{}", started.json()?);
    ensure!(client.output(&id, "cat ~/kept").await? == "kept");

    // Restart is a real reboot.
    let before = client.output(&id, "cat /proc/sys/kernel/random/boot_id").await?;
    let restarted = client.post(&format!("/computers/{id}/restart"), json!({})).await?;
    ensure!(restarted.status == 200 && restarted.json()?["status"] == "running", "{}", restarted.json()?);
    ensure!(client.output(&id, "cat /proc/sys/kernel/random/boot_id").await? != before);
    ensure!(client.output(&id, "cat ~/kept").await? == "kept");

    // Renamed; the slug stays.
    let body = json!({ "name": "Renamed", "agent_session_id": "session-1" });
    let path = format!("/api/v1/computers/{id}");
    let patched =
        client.request(reqwest::Method::PATCH, &path, Some(body.to_string().into())).await?.json()?;
    ensure!(patched["name"] == "Renamed" && patched["slug"] == "my-computer", "{patched}");
    ensure!(patched["agent_session_id"] == "session-1", "{patched}");

    // Deleted: nothing is left.
    let deleted = client.delete(&format!("/computers/{id}")).await?;
    ensure!(deleted.status == 200 && deleted.json()? == json!({ "id": id, "deleted": true }));
    ensure!(client.get(&format!("/computers/{id}")).await?.status == 404);
    ensure!(client.delete(&format!("/computers/{id}")).await?.status == 404);
    ensure!(client.get("/computers").await?.json()?["total"] == 0);
    ensure!(!machine.exists(), "files are left");
    ensure!(processes_naming(&machine)?.is_empty(), "left running: {:?}", processes_naming(&machine)?);
    Ok(())
}

/// A wallpaper that fills the screen and a panel with text on it.
async fn the_screen_shows_a_desktop(client: &Client, id: &str) -> Result<()> {
    let size = client.get(&format!("/computers/{id}/desktop/screen-size")).await?.json()?;
    ensure!(size == json!({ "width": 1280, "height": 720 }), "{size}");
    let picture = client.screenshot(id).await?;
    ensure!((picture.width, picture.height) == (1280, 720));
    if let Some(directory) = std::env::var_os("ROOST_ARTIFACTS") {
        let png = client.get(&format!("/computers/{id}/desktop/screenshot")).await?.bytes;
        std::fs::write(std::path::Path::new(&directory).join("desktop.png"), png)?;
    }
    // The panel is at an edge: icons and the clock have more colours than a plain bar.
    let panel = picture.colours(0..1280, 0..28).max(picture.colours(0..1280, 692..720));
    ensure!(panel > 20, "no panel: {panel} colours at the edges");
    let wallpaper = picture.colours(200..1080, 100..620);
    ensure!(wallpaper > 20, "no wallpaper: {wallpaper} colours in the middle");
    Ok(())
}

/// Opens a terminal on the desktop, types into it and reads the file that made.
async fn what_is_typed_arrives(client: &Client, id: &str) -> Result<()> {
    let desktop = format!("/computers/{id}/desktop");
    client
        .output(
            id,
            "rm -f /tmp/typed; (xfce4-terminal --title=typing -x sh -c 'cat > /tmp/typed' >/dev/null 2>&1 &)",
        )
        .await?;
    // The X server tells xdotool when the window is there, and the shell in it opens the file.
    client.output(id, &until_shown("--name '^typing$' windowfocus --sync")).await?;
    client.output(id, "timeout 20 sh -c 'until [ -e /tmp/typed ]; do sleep 0.1; done'").await?;
    for (route, body) in [
        ("click", json!({ "x": 640, "y": 360 })),
        ("type", json!({ "text": "Hello, Wörld! ~$\"'" })),
        ("key", json!({ "key": "Enter" })),
        ("key", json!({ "key": "ctrl+d" })),
    ] {
        let answer = client.post(&format!("{desktop}/{route}"), body).await?;
        ensure!(
            answer.status == 200 && answer.json()? == json!({ "success": true }),
            "{route}: {}",
            answer.json()?
        );
    }
    let typed = client
        .output(id, "timeout 20 sh -c 'until [ -s /tmp/typed ]; do sleep 0.1; done'; cat /tmp/typed")
        .await?;
    ensure!(typed == "Hello, Wörld! ~$\"'", "{typed:?}");

    for (route, body) in [
        ("move", json!({ "x": 11, "y": 22 })),
        ("scroll", json!({ "direction": "down", "clicks": 2 })),
        ("double-click", json!({ "x": 700, "y": 500 })),
    ] {
        let answer = client.post(&format!("{desktop}/{route}"), body).await?;
        ensure!(answer.status == 200, "{route}: {}", answer.json()?);
    }
    cursor_is_at(client, id, 700, 500).await?;
    // Outside the screen is clamped, not refused.
    client.post(&format!("{desktop}/move"), json!({ "x": 99999, "y": -5 })).await?;
    cursor_is_at(client, id, 1279, 0).await
}

async fn cursor_is_at(client: &Client, id: &str, x: i32, y: i32) -> Result<()> {
    let cursor = client.get(&format!("/computers/{id}/desktop/cursor")).await?.json()?;
    ensure!(cursor == json!({ "x": x, "y": y }), "the pointer is at {cursor} and not at {x}, {y}");
    Ok(())
}

async fn refused_while_stopped(client: &Client, id: &str) -> Result<()> {
    let expect = |answer: roost_tests::Answer, code: &'static str, message: &'static str| -> Result<()> {
        let body: Value = answer.json()?;
        ensure!(answer.status == 409 && body["code"] == code, "{}: {body}", answer.status);
        ensure!(body["message"].as_str().is_some_and(|text| text.contains(message)), "{body}");
        Ok(())
    };
    let at = |verb: &str| format!("/computers/{id}/{verb}");
    expect(
        client.post(&at("exec"), json!({ "command": "true" })).await?,
        "COMPUTER_NOT_RUNNING",
        "start it first",
    )?;
    expect(client.get(&at("desktop/screenshot")).await?, "COMPUTER_NOT_RUNNING", "stopped")?;
    expect(client.get(&at("vnc-credentials")).await?, "COMPUTER_NOT_RUNNING", "stopped")?;
    // The state is checked before the body.
    expect(client.post(&at("desktop/click"), json!({})).await?, "COMPUTER_NOT_RUNNING", "stopped")?;
    let stop = "computer cannot be stopped from its current status";
    expect(client.post(&at("stop"), json!({})).await?, "INVALID_STATE", stop)?;
    expect(
        client.post(&at("restart"), json!({})).await?,
        "INVALID_STATE",
        "computer must be running to restart",
    )
}
