//! Ports of a real computer through the proxy, raw tunnels to them, and a viewer who may only watch.

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use roost_tests::{Client, Server};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const MIB: usize = 1024 * 1024;

/// Keeps what is put, streams events, and echoes one WebSocket message.
const PROGRAM: &str = r#"
import base64, hashlib, http.server, socketserver, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        left = int(self.headers["content-length"])
        with open("/tmp/up", "wb") as out:
            while left:
                piece = self.rfile.read(min(left, 65536))
                left -= len(piece)
                out.write(piece)
        self.answer(b"kept")

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(b"data: first\n\n")
            self.wfile.flush()
            # The next comes when the first has been seen, which only its reader can say.
            while not SEEN:
                time.sleep(0.05)
            self.wfile.write(b"data: second\n\n")
            self.close_connection = True
        elif self.path == "/seen":
            SEEN.append(True)
            self.answer(b"ok")
        elif self.path == "/socket":
            key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("upgrade", "websocket")
            self.send_header("connection", "Upgrade")
            self.send_header("sec-websocket-accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            head = self.rfile.read(2)
            mask = self.rfile.read(4)
            text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes([0x81, len(text)]) + text)
            self.close_connection = True
        else:
            self.answer(repr(sorted((k.lower(), v) for k, v in self.headers.items())).encode())

SEEN = []
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
Server(("127.0.0.1", 3000), Handler).serve_forever()
"#;

/// Starts a program in the computer and waits until it listens.
async fn run(client: &Client, id: &str, command: &str, port: u16) -> Result<()> {
    client.output(id, &format!("cd /tmp && (nohup {command} >/tmp/{port}.log 2>&1 </dev/null &)")).await?;
    let listens = format!("until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.1; done");
    client.output(id, &format!("timeout 100 bash -c '{listens}'")).await?;
    Ok(())
}

/// A request to the host of a port, by the server's own address.
fn at(client: &Client, host: &str, method: Method, path: &str) -> reqwest::RequestBuilder {
    client.http.request(method, format!("{}{path}", client.url)).header("host", host)
}

async fn expose(client: &Client, id: &str, port: u16, visibility: &str) -> Result<()> {
    let body = json!({ "port": port, "visibility": visibility });
    let exposed = client.post(&format!("/computers/{id}/ports"), body).await?;
    ensure!(exposed.status.is_success(), "{}", exposed.json()?);
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_program_in_a_computer_is_reached_through_the_proxy() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("web").await?;
    let body = json!({ "command": format!("cat > /tmp/program.py <<'EOF'\n{PROGRAM}\nEOF") });
    ensure!(client.post(&format!("/computers/{id}/exec"), body).await?.status == 200);
    client.output(&id, "head -c 64M /dev/urandom > /tmp/big").await?;
    run(&client, &id, "python3 /tmp/program.py", 3000).await?;
    run(&client, &id, "python3 -m http.server 8000", 8000).await?;
    let three = "3000-web.sandbox.localhost";
    let eight = "8000-web.sandbox.localhost";

    // Nobody without a way in; members reach what is not exposed.
    ensure!(at(&client, three, Method::GET, "/").send().await?.status() == 404);
    let member = at(&client, three, Method::GET, "/").bearer_auth(&client.key).send().await?;
    ensure!(member.status() == 200);
    let headers = member.text().await?;
    ensure!(headers.contains("x-forwarded-for") && !headers.contains("authorization"), "{headers}");
    expose(&client, &id, 3000, "public").await?;
    expose(&client, &id, 8000, "public").await?;

    // 64 MiB down and up again are the same 64 MiB, and the server keeps none of it.
    let before = server.resident()?;
    let big = at(&client, eight, Method::GET, "/big").send().await?;
    ensure!(big.status() == 200 && big.content_length() == Some(64 * MIB as u64));
    let big = big.bytes().await?;
    ensure!(big.len() == 64 * MIB);
    let kept = at(&client, three, Method::PUT, "/").body(big).send().await?;
    ensure!(kept.status() == 200 && kept.text().await? == "kept");
    client.output(&id, "cmp /tmp/big /tmp/up").await?;
    let grown = server.resident()?.saturating_sub(before);
    ensure!(grown < 32 * MIB as u64, "the server has grown by {grown} bytes");

    // Events arrive one by one.
    let mut events = at(&client, three, Method::GET, "/events").send().await?;
    let first = events.chunk().await?.context("no event")?;
    ensure!(&first[..] == b"data: first\n\n", "{first:?}");
    ensure!(at(&client, three, Method::GET, "/seen").send().await?.status() == 200);
    let second = events.chunk().await?.context("no second event")?;
    ensure!(&second[..] == b"data: second\n\n" && events.chunk().await?.is_none(), "{second:?}");

    let mut socket = connect(&client, &format!("ws://{three}/socket")).await?;
    socket.send(Message::text("hello")).await?;
    ensure!(socket.next().await.context("no echo")?? == Message::text("hello"));

    // Raw, and below a path.
    let request = format!("ws://localhost/api/v1/computers/{id}/tunnel/8000");
    let mut tunnel = connect(&client, &request).await?;
    tunnel.send(Message::binary(&b"GET / HTTP/1.0\r\n\r\n"[..])).await?;
    let answer = tunnel.next().await.context("no answer")??.into_data();
    ensure!(answer.starts_with(b"HTTP/1.0 200 "), "{answer:?}");
    let path = format!("/computers/{id}/ports/8000/proxy/");
    let listing = client.request(Method::GET, &path, None).await?;
    ensure!(listing.status == 200 && String::from_utf8_lossy(&listing.bytes).contains("program.py"));

    // Nothing listens, then nothing runs: a page says so.
    let page = at(&client, "81-web.sandbox.localhost", Method::GET, "/")
        .bearer_auth(&client.key)
        .header("accept", "text/html")
        .send()
        .await?;
    ensure!(page.status() == 502 && page.text().await?.contains("nothing listens on port 81"));
    client.verb(&id, "stop").await?;
    let page = at(&client, three, Method::GET, "/").header("accept", "text/html").send().await?;
    ensure!(page.status() == 409 && page.text().await?.contains("This computer is not running"));
    // The program goes on with the computer.
    client.verb(&id, "start").await?;
    let again = at(&client, three, Method::GET, "/seen").send().await?;
    ensure!(again.status() == 200, "{}", again.text().await?);
    Ok(())
}

/// A socket to the server, whatever host its address names.
async fn connect(client: &Client, url: &str) -> Result<WebSocketStream<TcpStream>> {
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {}", client.key).parse()?);
    let address = client.url.strip_prefix("http://").context("not http")?;
    let stream = TcpStream::connect(address).await?;
    Ok(tokio_tungstenite::client_async(request, stream).await?.0)
}

/// An RFB viewer made by hand, after its handshake.
struct Viewer {
    socket: WebSocketStream<TcpStream>,
    received: Vec<u8>,
}

impl Viewer {
    async fn open(client: &Client, id: &str, view_only: bool) -> Result<Self> {
        let embed = client.get(&format!("/computers/{id}/embed?view_only={view_only}")).await?.json()?;
        let token = embed["token"].as_str().context("no token")?;
        let socket = connect(client, &format!("ws://localhost/ws/vnc/{id}?auth={token}")).await?;
        let mut viewer = Self { socket, received: Vec::new() };
        ensure!(viewer.read(12).await? == b"RFB 003.008\n");
        viewer.send(b"RFB 003.008\n").await?;
        let count = viewer.read(1).await?[0];
        ensure!(viewer.read(count.into()).await?.contains(&1), "the desktop asks for a password");
        viewer.send(&[1]).await?;
        ensure!(viewer.read(4).await? == [0; 4]);
        viewer.send(&[0]).await?; // asks to be alone
        let server = viewer.read(24).await?;
        let name = u32::from_be_bytes([server[20], server[21], server[22], server[23]]);
        viewer.read(name.try_into()?).await?;
        Ok(viewer)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.socket.send(Message::binary(bytes.to_vec())).await?)
    }

    async fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.received.len() < length {
            let message = self.socket.next().await.context("the desktop has gone")??;
            ensure!(!message.is_close(), "closed: {message}");
            self.received.extend(message.into_data());
        }
        let rest = self.received.split_off(length);
        Ok(std::mem::replace(&mut self.received, rest))
    }

    /// Moves the pointer, and asks for one raw pixel: when that has come, the move has been done or dropped.
    async fn point(&mut self, x: u16, y: u16) -> Result<()> {
        let ([x1, x0], [y1, y0]) = (x.to_be_bytes(), y.to_be_bytes());
        self.send(&[2, 0, 0, 1, 0, 0, 0, 0]).await?;
        self.send(&[5, 0, x1, x0, y1, y0]).await?;
        self.send(&[3, 0, 0, 0, 0, 0, 0, 1, 0, 1]).await?;
        ensure!(self.read(1).await? == [0], "not an update");
        Ok(())
    }
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn who_may_only_watch_moves_nothing() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("watched").await?;
    let pointer =
        async || -> Result<Value> { client.get(&format!("/computers/{id}/desktop/cursor")).await?.json() };
    let before = pointer().await?;
    ensure!(before != json!({ "x": 321, "y": 123 }), "{before}");
    let mut driver = Viewer::open(&client, &id, false).await?;
    let mut watcher = Viewer::open(&client, &id, true).await?;
    watcher.point(321, 123).await?;
    ensure!(pointer().await? == before, "a viewer who may only watch moved the pointer");
    // Who asked to be alone has sent nobody away.
    driver.point(321, 123).await?;
    ensure!(pointer().await? == json!({ "x": 321, "y": 123 }), "{}", pointer().await?);

    // By the viewer password, too.
    let rotated = client.post(&format!("/computers/{id}/viewer-password/rotate"), json!({})).await?.json()?;
    let body = json!({ "password": rotated["viewer_password"] }).to_string();
    let session = client.http.post(format!("{}/desktop/viewer-session", client.url));
    let session = session.header("host", "watched.computer.localhost").body(body).send().await?;
    ensure!(session.status() == 200, "{}", session.text().await?);
    Ok(())
}
