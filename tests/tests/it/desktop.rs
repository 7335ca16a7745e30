//! Eyes and hands on a real desktop: windows, clipboard, keys and buttons that stay down, drags, pictures.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use reqwest::{Method, StatusCode};
use roost_tests::{Answer, Client, Picture, Server, until_shown};
use serde_json::{Value, json};

struct Desktop {
    client: Client,
    id: String,
}

impl Desktop {
    fn path(&self, route: &str) -> String {
        format!("/computers/{}/desktop/{route}", self.id)
    }

    async fn get(&self, route: &str) -> Result<Value> {
        let answer = self.client.get(&self.path(route)).await?;
        ensure!(answer.status == 200, "{route}: {}", answer.json()?);
        answer.json()
    }

    async fn post(&self, route: &str, body: Value) -> Result<Answer> {
        self.client.post(&self.path(route), body).await
    }

    async fn act(&self, route: &str, body: Value) -> Result<()> {
        let answer = self.post(route, body.clone()).await?;
        let success = answer.status == 200 && answer.json()? == json!({ "success": true });
        ensure!(success, "{route}: {}", answer.json()?);
        Ok(())
    }

    async fn refused(&self, route: &str, body: Value, status: u16, word: &str) -> Result<()> {
        let answer = self.post(route, body.clone()).await?;
        let error = answer.json()?;
        let says = error["message"].as_str().is_some_and(|message| message.contains(word));
        ensure!(answer.status == status && says, "{route} ({word}): {} {error}", answer.status);
        Ok(())
    }

    async fn windows(&self) -> Result<Vec<Value>> {
        Ok(self.get("windows").await?.as_array().context("no bare array")?.clone())
    }

    async fn window(&self, id: &str) -> Result<Value> {
        let windows = self.windows().await?;
        let found = windows.iter().find(|window| window["id"] == id);
        Ok(found.with_context(|| format!("no window {id} in {windows:?}"))?.clone())
    }

    /// Starts a program and answers its window when it has the keyboard. X tells xdotool when it is there.
    async fn open(&self, command: &str, title: &str) -> Result<Value> {
        self.client.output(&self.id, &format!("({command} >/dev/null 2>&1 &)")).await?;
        let find = until_shown(&format!("--name '{title}' windowfocus --sync"));
        self.client.output(&self.id, &find).await?;
        let windows = self.windows().await?;
        let found =
            windows.iter().find(|window| window["title"].as_str().is_some_and(|shown| shown.contains(title)));
        Ok(found.with_context(|| format!("no {title} in {windows:?}"))?.clone())
    }
}

async fn desktop(server: &Server) -> Result<Desktop> {
    let client = server.client();
    let id = client.create("eyes").await?;
    client.running(&id).await?;
    Ok(Desktop { client, id })
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn windows_are_listed_and_do_as_they_are_told() -> Result<()> {
    let server = Server::start()?;
    let desktop = desktop(&server).await?;
    let environment = desktop.get("environment").await?;
    let expected = json!({
        "name": "XFCE", "session_type": "x11", "resolution": "1280x720", "width": 1280, "height": 720,
        "color_depth": 24, "display": ":0",
    });
    ensure!(environment == expected, "{environment}");
    ensure!(desktop.windows().await?.is_empty(), "the panel or the wallpaper is listed");

    let editor = desktop.open("mousepad", "Mousepad").await?;
    let editor = editor["id"].as_str().context("no id")?.to_owned();
    let terminal = desktop.open("xfce4-terminal --title=terminal", "terminal").await?;
    ensure!(terminal["app"] == "Xfce4-terminal", "{terminal}");
    ensure!(terminal.get("window_id").is_none() && terminal.get("application").is_none(), "{terminal}");
    let terminal = terminal["id"].as_str().context("no id")?.to_owned();
    ensure!(terminal.starts_with("0x"), "{terminal}");

    desktop.act("window/focus", json!({ "window_id": editor })).await?;
    let windows = desktop.windows().await?;
    ensure!(windows[0]["id"] == *editor, "the focused one is not the topmost: {windows:?}");
    for window in &windows {
        let focused = window["id"] == *editor;
        ensure!(window["focused"] == focused && window["is_focused"] == focused, "{window}");
    }

    // What was asked for is what is there, with the frame.
    desktop.act(&format!("window/{editor}/resize"), json!({ "width": 500, "height": 320 })).await?;
    ensure!(desktop.get(&format!("window/{editor}/size")).await? == json!({ "width": 500, "height": 320 }));
    desktop.act(&format!("window/{editor}/move"), json!({ "x": 60, "y": 90 })).await?;
    ensure!(desktop.get(&format!("window/{editor}/position")).await? == json!({ "x": 60, "y": 90 }));

    desktop.act(&format!("window/{editor}/maximize"), json!({})).await?;
    let window = desktop.window(&editor).await?;
    ensure!(window["maximized"] == true && window["width"] == 1280, "{window}");
    // Moving it takes it out of that again.
    desktop.act(&format!("window/{editor}/move"), json!({ "x": 30, "y": 60 })).await?;
    let window = desktop.window(&editor).await?;
    ensure!(window["maximized"] == false && window["x"] == 30 && window["y"] == 60, "{window}");

    desktop.act(&format!("window/{editor}/minimize"), json!({})).await?;
    let window = desktop.window(&editor).await?;
    ensure!(window["minimized"] == true && window["focused"] == false, "{window}");
    desktop.act("window/focus", json!({ "window_id": editor })).await?;
    let window = desktop.window(&editor).await?;
    ensure!(window["minimized"] == false && window["focused"] == true, "{window}");

    desktop.act(&format!("window/{terminal}/close"), json!({})).await?;
    ensure!(desktop.windows().await?.iter().all(|window| window["id"] != *terminal));

    for wrong in ["0x1", "17", "nonsense", "0xfffffffff"] {
        desktop.refused("window/focus", json!({ "window_id": wrong }), 404, "there is no window").await?;
        desktop.refused(&format!("window/{wrong}/close"), json!({}), 404, "list the windows").await?;
        let size = desktop.client.get(&desktop.path(&format!("window/{wrong}/size"))).await?;
        ensure!(size.status == StatusCode::NOT_FOUND, "{wrong}");
    }
    desktop.refused("window/focus", json!({}), 422, "window_id").await?;
    let size = json!({ "width": 0, "height": 10 });
    desktop.refused(&format!("window/{editor}/resize"), size, 422, "1 to 32767").await?;
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn the_clipboard_goes_both_ways_and_keys_stay_down() -> Result<()> {
    let server = Server::start()?;
    let desktop = desktop(&server).await?;
    ensure!(desktop.get("clipboard").await? == json!({ "text": "" }), "a new computer's clipboard");

    desktop.open("mousepad", "Mousepad").await?;
    let written = "Žluťoučký kůň — 日本語 😀\n\tzwei";
    desktop.act("clipboard", json!({ "text": written })).await?;
    ensure!(desktop.get("clipboard").await?["text"] == written);
    desktop.act("hotkey", json!({ "keys": ["ctrl", "v"] })).await?;
    // The editor asks for the text and goes on meanwhile; a star in its title says that it has changed.
    desktop.client.output(&desktop.id, &until_shown("--name '^\\*.*Mousepad'")).await?;
    desktop.act("type", json!({ "text": "!" })).await?;
    desktop.act("hotkey", json!({ "keys": ["ctrl+a"] })).await?;
    desktop.act("key", json!({ "key": "ctrl+c" })).await?;
    copied(&desktop, &format!("{written}!")).await?;

    // Shift is held while other calls press keys: from the end, three characters are selected.
    desktop.act("type", json!({ "text": "abcdef" })).await?;
    desktop.act("key-down", json!({ "key": "shift" })).await?;
    for _ in 0..3 {
        desktop.act("key", json!({ "key": "Left" })).await?;
    }
    desktop.act("key-up", json!({ "key": "shift" })).await?;
    desktop.act("key", json!({ "key": "ctrl+c" })).await?;
    copied(&desktop, "def").await?;
    desktop.act("key", json!({ "key": "End" })).await?;
    desktop.act("type", json!({ "text": "g" })).await?;
    desktop.act("hotkey", json!({ "keys": ["ctrl", "a"] })).await?;
    desktop.act("hotkey", json!({ "keys": ["ctrl", "c"] })).await?;
    copied(&desktop, "abcdefg").await?;

    // Large, and too large.
    let large = "x".repeat(512 * 1024);
    desktop.act("clipboard", json!({ "text": large })).await?;
    ensure!(desktop.get("clipboard").await?["text"] == *large, "a large text changes on its way");
    desktop.refused("clipboard", json!({ "text": format!("{large}x") }), 422, "longer than").await?;
    desktop.refused("clipboard", json!({}), 422, "text").await?;
    desktop.refused("hotkey", json!({ "keys": [] }), 422, "empty").await?;
    desktop.refused("hotkey", json!({ "keys": ["ctrl", "nosuchkey"] }), 422, "nosuchkey").await?;
    desktop.refused("key-down", json!({ "key": "" }), 422, "empty").await?;
    desktop.refused("wait", json!({ "seconds": 61 }), 422, "60").await?;
    desktop.act("wait", json!({ "seconds": 0.05 })).await?;
    desktop.act("wait", json!({ "ms": 1 })).await
}

/// The editor answers a key when it comes to it, so its text may take a moment to be there.
async fn copied(desktop: &Desktop, expected: &str) -> Result<()> {
    let mut seen = Value::Null;
    for _ in 0..100 {
        seen = desktop.get("clipboard").await?["text"].take();
        if seen == expected {
            return Ok(());
        }
    }
    anyhow::bail!("{expected:?} was copied, and the clipboard has {seen}")
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn pictures_come_in_every_form_and_drags_are_seen() -> Result<()> {
    let server = Server::start()?;
    let desktop = desktop(&server).await?;
    let picture = async |query: &str, media_type: &str| -> Result<Vec<u8>> {
        let answer = desktop.client.get(&desktop.path(&format!("screenshot{query}"))).await?;
        ensure!(answer.status == 200, "{query}: {}", answer.json()?);
        ensure!(answer.headers["content-type"] == media_type, "{query}: {:?}", answer.headers);
        Ok(answer.bytes)
    };
    let whole = Picture::decode(&picture("", "image/png").await?)?;
    let webp = picture("?format=webp", "image/webp").await?;
    ensure!(&webp[..4] == b"RIFF" && &webp[8..12] == b"WEBP");
    let fine = picture("?format=jpeg&quality=95", "image/jpeg").await?;
    let coarse = picture("?format=jpeg&quality=10", "image/jpeg").await?;
    ensure!(fine.starts_with(b"\xff\xd8\xff") && coarse.len() < fine.len());
    let half = Picture::decode(&picture("?scale=0.5", "image/png").await?)?;
    ensure!((half.width, half.height) == (640, 360));

    // A part is the same pixels, by query and by body.
    let region = json!({ "x": 1200, "y": 600, "width": 500, "height": 50 });
    let by_body = desktop.post("screenshot/region", region).await?;
    let by_query = picture("/region?x=1200&y=600&width=500&height=50", "image/png").await?;
    for bytes in [&by_body.bytes, &by_query] {
        let part = Picture::decode(bytes)?;
        ensure!((part.width, part.height) == (80, 50), "not cut at the screen's edge");
        ensure!((0..80).all(|x| part.pixel(x, 25) == whole.pixel(1200 + x, 625)));
    }
    let outside = json!({ "x": 5000, "y": 0, "width": 5, "height": 5 });
    desktop.refused("screenshot/region", outside, 422, "outside the screen").await?;
    for wrong in ["format=gif", "quality=50", "format=jpeg&quality=0", "scale=3", "scale=0"] {
        let answer = desktop.client.get(&desktop.path(&format!("screenshot?{wrong}"))).await?;
        ensure!(answer.status == 422, "{wrong}: {}", answer.status);
    }

    // The pointer is in the picture only where that is asked for.
    desktop.act("move", json!({ "x": 640, "y": 400 })).await?;
    let around = "/region?x=630&y=390&width=40&height=40";
    let without = picture(around, "image/png").await?;
    let with = picture(&format!("{around}&cursor=true"), "image/png").await?;
    ensure!(with != without, "no pointer");
    ensure!(picture(around, "image/png").await? == without);

    // A window follows its title bar.
    let window = desktop.open("xfce4-terminal --title=dragged", "dragged").await?;
    let (id, x, y) = (window["id"].as_str().context("id")?, &window["x"], &window["y"]);
    let (x, y) = (x.as_i64().context("x")?, y.as_i64().context("y")?);
    let (from_x, from_y) = (x + 150, y + 8);
    let drag = json!({ "from_x": from_x, "from_y": from_y, "to_x": from_x + 90, "to_y": from_y + 70 });
    desktop.act("drag", drag).await?;
    moved(&desktop, id, (x + 90, y + 70)).await?;
    // The same by hand, in calls of their own.
    desktop.act("mouse-down", json!({ "x": from_x + 90, "y": from_y + 70 })).await?;
    for step in 1..=6 {
        desktop.act("move", json!({ "x": from_x + 90 - 10 * step, "y": from_y + 70 - 5 * step })).await?;
    }
    desktop.act("mouse-up", json!({})).await?;
    moved(&desktop, id, (x + 30, y + 40)).await?;
    desktop.refused("mouse-down", json!({ "x": 1 }), 422, "y").await?;
    desktop.refused("drag", json!({ "from_x": 1, "from_y": 2, "to_x": 3 }), 422, "to_y").await?;

    // The menu of the right button is a change of the screen.
    let before = picture("", "image/png").await?;
    desktop.act("right-click", json!({ "x": 1000, "y": 600 })).await?;
    let mut menu = false;
    for _ in 0..100 {
        menu = picture("", "image/png").await? != before;
        if menu {
            break;
        }
    }
    ensure!(menu, "no menu");
    desktop.act("key", json!({ "key": "Escape" })).await?;
    Ok(())
}

/// The window manager moves a window when it comes to it.
async fn moved(desktop: &Desktop, id: &str, to: (i64, i64)) -> Result<()> {
    let mut window = Value::Null;
    for _ in 0..100 {
        window = desktop.window(id).await?;
        if window["x"] == to.0 && window["y"] == to.1 {
            return Ok(());
        }
    }
    anyhow::bail!("not at {to:?}: {window}")
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn one_request_does_many_things_and_waits_for_the_screen() -> Result<()> {
    let server = Server::start()?;
    let desktop = desktop(&server).await?;
    let all = async |body: Value| -> Result<Value> {
        let answer = desktop.post("actions", body).await?;
        ensure!(answer.status == 200, "{}", answer.json()?);
        answer.json()
    };
    // A menu comes up, and is seen to come up although nobody asks again and again.
    let before = desktop.client.screenshot(&desktop.id).await?;
    let menu = all(json!({
        "actions": [
            { "type": "right_click", "x": 1000, "y": 300 },
            { "type": "wait_for_change", "timeout_ms": 30000 },
            { "type": "wait_until_settled", "timeout_ms": 30000 },
        ],
        "screenshot": { "timeout_ms": 30000 },
    }))
    .await?;
    ensure!(menu["success"] == true, "{menu}");
    let reached: Vec<_> = menu["waits"]
        .as_array()
        .context("waits")?
        .iter()
        .map(|wait| (&wait["action"], &wait["reached"]))
        .collect();
    ensure!(reached == [(&json!(1), &json!(true)), (&json!(2), &json!(true))], "{reached:?}");
    let picture = &menu["screenshot"];
    ensure!(picture["media_type"] == "image/png" && picture["settled"] == true, "{}", picture["settled"]);
    let data =
        base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().context("no data")?)?;
    let shown = Picture::decode(&data)?;
    let differs = |picture: &Picture| {
        (0..200)
            .flat_map(|x| (0..200).map(move |y| (1001 + x, 301 + y)))
            .filter(|(x, y)| picture.pixel(*x, *y) != before.pixel(*x, *y))
            .count()
    };
    ensure!(differs(&shown) > 1000, "no menu: {} pixels", differs(&shown));
    let gone = all(json!({
        "actions": [{ "type": "key", "key": "Escape" }],
        "screenshot": { "region": { "x": 1001, "y": 301, "width": 200, "height": 200 }, "timeout_ms": 30000 },
    }))
    .await?;
    ensure!(gone["screenshot"]["settled"] == true && gone["waits"] == json!([]), "{gone}");

    // Where nothing happens, the time is over, and that is no error.
    let nothing = json!({ "x": 900, "y": 500, "width": 40, "height": 40 });
    let waited =
        all(json!({ "actions": [{ "type": "wait_for_change", "timeout_ms": 300, "region": nothing }] }))
            .await?;
    ensure!(waited["waits"][0]["reached"] == false && waited["screenshot"].is_null(), "{waited}");
    ensure!(waited["waits"][0]["waited_ms"].as_u64().is_some_and(|waited| waited >= 300), "{waited}");

    // Writing, marking and copying in one.
    desktop.open("mousepad", "Mousepad").await?;
    all(json!({ "actions": [
        { "type": "type", "text": "eins \u{4e8c} three" },
        { "type": "hotkey", "keys": ["ctrl", "a"] },
        { "type": "wait", "seconds": 0.1 },
        { "type": "key", "key": "ctrl+c" },
    ] }))
    .await?;
    copied(&desktop, "eins \u{4e8c} three").await?;

    // All is looked at before the first is done.
    desktop.act("move", json!({ "x": 5, "y": 6 })).await?;
    let far = json!({ "type": "move", "x": 700, "y": 700 });
    for (wrong, word) in [
        (json!({ "type": "key", "key": "nosuchkey" }), "actions[1]"),
        (json!({ "type": "click", "x": 1 }), "y"),
        (json!({ "type": "dance" }), "dance"),
        (json!({ "type": "wait", "seconds": 61 }), "actions[1].seconds"),
        (json!({ "type": "wait_until_settled", "timeout_ms": 60001 }), "actions[1].timeout_ms"),
    ] {
        desktop.refused("actions", json!({ "actions": [far, wrong] }), 422, word).await?;
    }
    let long = json!({ "type": "wait", "seconds": 50 });
    desktop.refused("actions", json!({ "actions": [far, long, long, long] }), 422, "120 s").await?;
    desktop.refused("actions", json!({ "actions": [] }), 422, "between 1 and 100").await?;
    let quality = json!({ "actions": [far], "screenshot": { "quality": 80 } });
    desktop.refused("actions", quality, 422, "quality").await?;
    ensure!(desktop.get("cursor").await? == json!({ "x": 5, "y": 6 }), "a refused request was begun");

    for (query, schema) in [
        ("tools", "/tools/0/input_schema"),
        ("tools?format=openai", "/tools/0/function/parameters"),
        ("tools?format=mcp", "/tools/0/inputSchema"),
    ] {
        let tools = desktop.get(query).await?;
        ensure!(
            tools.pointer(schema).is_some_and(|schema| schema["required"] == json!(["actions"])),
            "{tools}"
        );
        ensure!(tools.to_string().contains("1280x720"), "{tools}");
    }
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_wallpaper_is_shown() -> Result<()> {
    let server = Server::start()?;
    let desktop = desktop(&server).await?;
    // A picture of one colour, made by what every computer has.
    let make = "import zlib, struct; chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + \
                struct.pack('>I', zlib.crc32(kind + data)); rows = b'\\0' + b'\\x10\\x80\\x40' * 64; \
                open('/home/user/green.png', 'wb').write(b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', \
                struct.pack('>IIBBBBB', 64, 64, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(rows * 64)) + \
                chunk(b'IEND', b''))";
    desktop
        .client
        .output(&desktop.id, &format!("python3 -c \"{make}\"; echo text > /home/user/no-picture"))
        .await?;
    desktop.act("wallpaper", json!({ "path": "/home/user/green.png" })).await?;
    let mut shown = [0; 3];
    for _ in 0..200 {
        shown = desktop.client.screenshot(&desktop.id).await?.pixel(900, 400);
        if shown == [0x10, 0x80, 0x40] {
            break;
        }
    }
    ensure!(shown == [0x10, 0x80, 0x40], "{shown:?}");
    for (path, word) in [
        ("green.png", "whole path"),
        ("http://example.org/x.png", "https"),
        ("/home/user/missing.png", "no file"),
        ("/home/user/no-picture", "no picture"),
        ("/home/user", "no file"),
        ("/root/secret.png", "no file"),
        ("https://127.0.0.1:9/x.png", "curl"),
    ] {
        desktop.refused("wallpaper", json!({ "path": path }), 422, word).await?;
    }
    Ok(())
}

/// How long programs may take to show what they were asked for. Firefox starts for minutes under emulation.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(400);
/// Nobody tells when a program has come to what it was asked for. It does that sooner if it is not asked all the time.
const BREATH: std::time::Duration = std::time::Duration::from_secs(1);

impl Desktop {
    async fn found(&self, query: &str) -> Result<Vec<Value>> {
        let found = self.get(&format!("accessibility/find?{query}")).await?;
        ensure!(found["unanswered"] == json!([]), "{query}: {found}");
        Ok(found["elements"].as_array().context("no elements")?.clone())
    }

    /// The first element that is found, when there is one that is as expected. Programs do what they are asked when they
    /// come to it, and tell nobody.
    async fn element(&self, query: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let found = self.found(query).await?;
            if let Some(element) = found.iter().find(|element| is_so(element)) {
                return Ok(element.clone());
            }
            tokio::time::sleep(BREATH).await;
            ensure!(std::time::Instant::now() < until, "{query}: {found:?} of {}", self.compact().await?);
        }
    }

    async fn compact(&self) -> Result<String> {
        let tree = self.get("accessibility-tree?format=compact").await?;
        Ok(tree["text"].as_str().context("no text")?.to_owned())
    }

    async fn do_to(&self, element: &Value, action: &str, value: Option<Value>) -> Result<()> {
        let body = json!({ "id": element["id"], "action": action, "value": value });
        self.act("accessibility/action", body).await
    }
}

fn any(_: &Value) -> bool {
    true
}

fn has(element: &Value, state: &str) -> bool {
    element["states"].as_array().is_some_and(|states| states.iter().any(|one| one == state))
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn programs_tell_what_they_show_and_do_as_they_are_told() -> Result<()> {
    let server = Server::start()?;
    let desktop = desktop(&server).await?;
    let tree = desktop.get("accessibility-tree").await?;
    let screen = json!({ "x": 0, "y": 0, "width": 1280, "height": 720 });
    ensure!(tree["role"] == "desktop frame" && tree["bounds"] == screen, "{tree}");
    ensure!(tree["truncated"] == false && tree["unanswered"] == json!([]), "{tree}");
    let windows = tree["children"].as_array().context("children")?;
    ensure!(windows.iter().any(|window| window["app"] == "xfce4-panel"), "no panel: {tree}");

    let editor = desktop.open("mousepad", "Mousepad").await?;
    let id = editor["id"].as_str().context("id")?;
    desktop.open("xfce4-terminal --title=terminal", "terminal").await?;
    desktop.act("window/focus", json!({ "window_id": id })).await?;
    let tree = desktop.get(&format!("accessibility-tree?window={id}")).await?;
    let [frame] = &tree["children"].as_array().context("children")?[..] else { anyhow::bail!("{tree}") };
    ensure!(
        frame["role"] == "frame" && frame["name"] == editor["title"] && frame["window"] == *id,
        "{frame}"
    );
    let text = desktop.compact().await?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.iter().any(|line| line.contains("menu \"File\"")), "{text}");
    ensure!(!text.contains("menu item"), "a closed menu: {text}");
    let (first, second) = (text.find("Mousepad"), text.find("frame \"terminal\""));
    ensure!(first < second && first.is_some(), "the topmost is not the first: {text}");
    // An element is where a click meets it.
    let menu = desktop.element(&format!("role=menu&name=file&window={id}"), any).await?;
    let bounds = &menu["bounds"];
    let middle = |from: &str, size: &str| Some(bounds[from].as_i64()? + bounds[size].as_i64()? / 2);
    let (x, y) = (middle("x", "width").context("x")?, middle("y", "height").context("y")?);
    desktop.act("click", json!({ "x": x, "y": y })).await?;
    desktop.element("role=menu-item&name=save+as", any).await?;
    desktop.act("key", json!({ "key": "Escape" })).await?;

    // Set a text, and read it back, here and through the clipboard.
    let entry =
        desktop.element(&format!("role=text&window={id}"), |element| has(element, "editable")).await?;
    let written = "Žluťoučký kůň\n\tzwei";
    desktop.do_to(&entry, "set_value", Some(json!(written))).await?;
    let again =
        desktop.element(&format!("role=text&window={id}"), |element| element["text"] == written).await?;
    ensure!(again["id"] == entry["id"], "{entry} is {again} now");
    desktop.do_to(&entry, "focus", None).await?;
    for item in ["select all", "copy"] {
        let item = desktop
            .element(
                &format!("role=menu+item&name={}&visible=false&window={id}", item.replace(' ', "+")),
                any,
            )
            .await?;
        desktop.do_to(&item, "press", None).await?;
    }
    copied(&desktop, written).await?;

    // What changed asks before it goes; its dialog is told of, too.
    desktop.act(&format!("window/{id}/close"), json!({})).await?;
    let button = desktop.element("role=button&name=don", any).await?;
    desktop.do_to(&button, "press", None).await?;
    let until = std::time::Instant::now() + PATIENCE;
    while desktop.windows().await?.iter().any(|window| window["id"] == *id) {
        ensure!(std::time::Instant::now() < until, "the editor is still there");
    }
    let gone = json!({ "id": entry["id"], "action": "focus" });
    desktop.refused("accessibility/action", gone, 404, "get the accessibility tree again").await?;

    let never = json!({ "id": "99999/1", "action": "press" });
    desktop.refused("accessibility/action", never, 404, "no element").await?;
    desktop.refused("accessibility/action", json!({ "id": "x", "action": "press" }), 422, "id").await?;
    let nothing = json!({ "id": entry["id"], "action": "set_value" });
    desktop.refused("accessibility/action", nothing, 422, "value").await?;
    let frame = desktop.element("role=frame&name=terminal", any).await?;
    let press = json!({ "id": frame["id"], "action": "press" });
    desktop.refused("accessibility/action", press, 422, "it can").await?;
    for (query, status) in [
        ("window=0x1", 404),
        ("window=nowhere", 404),
        ("limit=0", 422),
        ("limit=5001", 422),
        ("format=xml", 422),
    ] {
        let answer = desktop.client.get(&desktop.path(&format!("accessibility-tree?{query}"))).await?;
        ensure!(answer.status == status, "{query}: {} {}", answer.status, answer.json()?);
    }
    let wrong = desktop.client.get(&desktop.path("accessibility/find?role=nonsense")).await?;
    ensure!(wrong.status == 422, "{}", wrong.json()?);
    let few = desktop.get("accessibility-tree?limit=2").await?;
    ensure!(few["truncated"] == true, "{few}");

    // A program that stands still is named, and hides no other.
    desktop.client.output(&desktop.id, "pkill -STOP -x thunar; pkill -STOP -x xfdesktop").await?;
    let tree = desktop.get("accessibility-tree").await?;
    ensure!(tree["unanswered"].as_array().is_some_and(|names| !names.is_empty()), "{tree}");
    ensure!(tree.to_string().contains("\"terminal\""), "{tree}");
    Ok(())
}

/// A page with a form, and a program that serves it and writes down what it is asked for.
const FORM: &str = r#"
mkdir -p /tmp/form && cd /tmp/form && cat > index.html <<'END'
<!doctype html><meta charset=utf-8><title>Order form</title><h1>Order</h1><p>What would you like?</p>
<form action=/ordered.html><label>Name <input name=name value=nobody></label>
<label>Notes <textarea name=notes></textarea></label>
<label>Size <select name=size><option>small<option>large</select></label>
<label><input type=checkbox name=cheese value=yes> Cheese</label>
<button>Send it</button></form>
END
echo '<!doctype html><title>Thanks</title><h1>Thank you</h1><a href=/>Back</a>' > ordered.html
(python3 -m http.server --bind 127.0.0.1 8000 >/tmp/form/log 2>&1 &)
(firefox-esr http://127.0.0.1:8000/ >/dev/null 2>&1 &)
"#;

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_form_in_firefox_is_filled_in_and_sent() -> Result<()> {
    let server = Server::start()?;
    let desktop = desktop(&server).await?;
    desktop.client.output(&desktop.id, FORM).await?;
    let window = "window=order+form";
    // Until the browser has a window, there is none to look into.
    let until = std::time::Instant::now() + PATIENCE;
    let is_form = |one: &Value| one["title"].as_str().is_some_and(|title| title.starts_with("Order"));
    while !desktop.windows().await?.iter().any(is_form) {
        tokio::time::sleep(BREATH).await;
        ensure!(std::time::Instant::now() < until, "no browser");
    }
    let until = std::time::Instant::now() + PATIENCE;
    while !desktop.compact().await?.contains("\"Send it\"") {
        tokio::time::sleep(BREATH).await;
        ensure!(std::time::Instant::now() < until, "no form: {}", desktop.compact().await?);
    }
    desktop.element(&format!("role=heading&name=order&{window}"), any).await?;
    let tree = desktop.get(&format!("accessibility-tree?{window}")).await?;
    ensure!(tree.to_string().contains("What would you like?"), "no paragraph: {tree}");

    // A browser says that it takes a text for what is in its pages, and does not; so it is clicked on and typed.
    let name =
        desktop.element(&format!("role=entry&name=name&{window}"), |one| one["text"] == "nobody").await?;
    let body = json!({ "id": name["id"], "action": "set_value", "value": "Jiří & co" });
    desktop.refused("accessibility/action", body, 409, "type the text").await?;
    let edge = |side: &str| name["bounds"][side].as_i64().context("no bounds");
    let (x, y) = (edge("x")? + edge("width")? / 2, edge("y")? + edge("height")? / 2);
    desktop.act("click", json!({ "x": x, "y": y })).await?;
    desktop.element(&format!("role=entry&name=name&{window}"), |one| has(one, "focused")).await?;
    desktop.act("hotkey", json!({ "keys": ["ctrl", "a"] })).await?;
    desktop.act("type", json!({ "text": "Jiří & co" })).await?;
    desktop.element(&format!("role=entry&name=name&{window}"), |one| one["text"] == "Jiří & co").await?;
    let cheese = desktop.element(&format!("role=check+box&name=cheese&{window}"), any).await?;
    ensure!(!has(&cheese, "checked"), "{cheese}");
    desktop.do_to(&cheese, "press", None).await?;
    desktop.element(&format!("role=check+box&name=cheese&{window}"), |one| has(one, "checked")).await?;
    let send = desktop.element(&format!("role=button&name=send&{window}"), any).await?;
    desktop.do_to(&send, "press", None).await?;

    desktop.element("role=link&name=back", any).await?;
    let log = desktop.client.output(&desktop.id, "grep ordered /tmp/form/log").await?;
    let expected = "/ordered.html?name=Ji%C5%99%C3%AD+%26+co&notes=&size=small&cheese=yes ";
    ensure!(log.contains(expected), "{log}");
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_screen_keeps_the_size_it_was_given() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("wide").await?;
    let has = async |id: &str, width: u32, height: u32| -> Result<()> {
        let picture = client.screenshot(id).await?;
        ensure!((picture.width, picture.height) == (width, height), "{}x{}", picture.width, picture.height);
        let computer = client.get(&format!("/computers/{id}")).await?.json()?;
        ensure!(computer["resolution"] == format!("{width}x{height}"), "{computer}");
        Ok(())
    };
    has(&id, 1280, 720).await?;
    let path = format!("/api/v1/computers/{id}/desktop/screen-size");
    let resize =
        async |body: Value| client.request(Method::PUT, &path, Some(body.to_string().into_bytes())).await;
    let size = json!({ "width": 1600, "height": 900 });
    let resized = resize(size.clone()).await?;
    ensure!(resized.status == 200 && resized.json()? == size, "{}", resized.json()?);
    has(&id, 1600, 900).await?;
    for wrong in [
        json!({ "width": 1600 }),
        json!({ "width": 0, "height": 900 }),
        json!({ "width": 9000, "height": 900 }),
    ] {
        ensure!(resize(wrong.clone()).await?.status == 422, "{wrong}");
    }
    // The panel is as wide as the screen: the desktop has followed.
    let panel = "xdotool search --onlyvisible --class xfce4-panel getwindowgeometry %@ 2>/dev/null";
    client.output(&id, &format!("until {panel} | grep -q 'Geometry: 1600x'; do sleep 0.2; done")).await?;

    client.verb(&id, "stop").await?;
    client.verb(&id, "start").await?;
    has(&id, 1600, 900).await?;
    let clone = client.clone_computer(&id).await?;
    has(&clone, 1600, 900).await?;
    ensure!(client.delete(&format!("/computers/{clone}")).await?.status == 200);
    // Also without its memory.
    client.verb(&id, "restart").await?;
    has(&id, 1600, 900).await?;
    ensure!(client.delete(&format!("/computers/{id}")).await?.status == 200);
    server.no_orphans()
}
