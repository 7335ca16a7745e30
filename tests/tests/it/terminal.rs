//! Terminal sessions on a real computer: what they look like to whoever comes, and that they outlive the server.

use std::collections::BTreeMap;
use std::time::Instant;

use alacritty_terminal::Term;
use alacritty_terminal::event::VoidListener;
use alacritty_terminal::grid::Dimensions;
use alacritty_terminal::index::{Column, Line};
use alacritty_terminal::term::cell::Flags;
use alacritty_terminal::term::test::TermSize;
use alacritty_terminal::term::{Config, TermMode};
use alacritty_terminal::vte::ansi::Processor;
use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use roost_tests::{Client, PATIENCE, Server, Socket, json_frame};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

/// A terminal that knows nothing of the agent's.
struct Emulator {
    term: Term<VoidListener>,
    parser: Processor,
}

/// What is to be seen, cell by cell.
type Cells = BTreeMap<(i32, usize), String>;

impl Emulator {
    fn new(rows: usize, columns: usize) -> Self {
        let size = TermSize::new(columns, rows);
        Self { term: Term::new(Config::default(), &size, VoidListener), parser: Processor::new() }
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.parser.advance(&mut self.term, bytes);
    }

    fn resize(&mut self, rows: usize, columns: usize) {
        self.term.resize(TermSize::new(columns, rows));
    }

    /// The lines of the screen, and with `history` those above it.
    fn cells(&self, history: bool) -> Cells {
        let grid = self.term.grid();
        let shown = Flags::INVERSE | Flags::BOLD | Flags::ITALIC | Flags::UNDERLINE | Flags::DIM;
        let first = if history { grid.topmost_line().0 } else { 0 };
        let lines = first..i32::try_from(grid.screen_lines()).unwrap_or(i32::MAX);
        let places = lines.flat_map(|line| (0..grid.columns()).map(move |column| (line, column)));
        let look = |(line, column)| {
            let cell = &grid[Line(line)][Column(column)];
            let marks: String = cell.zerowidth().unwrap_or_default().iter().collect();
            format!("{:?}{marks} {:?} on {:?}, {:?}", cell.c, cell.fg, cell.bg, cell.flags & shown)
        };
        places.map(|place| (place, look(place))).collect()
    }

    fn cursor(&self) -> (i32, usize, bool) {
        let point = self.term.grid().cursor.point;
        (point.line.0, point.column.0, self.term.mode().contains(TermMode::SHOW_CURSOR))
    }

    fn text(&self) -> String {
        let grid = self.term.grid();
        let line =
            |line| -> String { (0..grid.columns()).map(|at| grid[Line(line)][Column(at)].c).collect() };
        let lines = 0..i32::try_from(grid.screen_lines()).unwrap_or(i32::MAX);
        lines.map(|number| line(number).trim_end().to_owned() + "\n").collect()
    }
}

/// Somebody who looks at a session.
struct Viewer {
    socket: Socket,
    session: String,
    emulator: Emulator,
    has_ended: bool,
}

impl Viewer {
    async fn open(client: &Client, id: &str, query: &[(&str, &str)]) -> Result<Self> {
        let (mut socket, _) = client.socket(&format!("/ws/terminal/{id}"), query, None).await?;
        let first = json_frame(&mut socket).await?.context("no session")?;
        let size = |name: &str| first[name].as_u64().and_then(|count| usize::try_from(count).ok());
        let (rows, columns) = (size("rows").context("no rows")?, size("cols").context("no columns")?);
        let session = first["session_id"].as_str().context("no session")?.to_owned();
        Ok(Self { socket, session, emulator: Emulator::new(rows, columns), has_ended: false })
    }

    async fn press(&mut self, keys: &str) -> Result<()> {
        let frame = json!({ "type": "input", "data": keys });
        Ok(self.socket.send(Message::text(frame.to_string())).await?)
    }

    async fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        let frame = json!({ "type": "resize", "rows": rows, "cols": columns });
        Ok(self.socket.send(Message::text(frame.to_string())).await?)
    }

    /// One frame; what it says is on the screen then.
    async fn look(&mut self) -> Result<()> {
        let frame = json_frame(&mut self.socket).await?.context("the connection ended")?;
        match frame["type"].as_str() {
            Some("output") => self.emulator.feed(frame["data"].as_str().context("no data")?.as_bytes()),
            Some("resize") => {
                let size = |name: &str| frame[name].as_u64().and_then(|count| usize::try_from(count).ok());
                self.emulator.resize(size("rows").context("no rows")?, size("cols").context("no columns")?);
            }
            Some("exit") => self.has_ended = true,
            _ => anyhow::bail!("{frame}"),
        }
        Ok(())
    }

    async fn until(&mut self, wanted: &str) -> Result<()> {
        let shown = tokio::time::timeout(PATIENCE, self.look_until(wanted)).await;
        shown
            .map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| format!("waiting for {wanted:?} on\n{}", self.emulator.text()))
    }

    async fn look_until(&mut self, wanted: &str) -> Result<()> {
        // A line break is one before the first line, too.
        while !format!("\n{}", self.emulator.text()).contains(wanted) {
            self.look().await?;
        }
        Ok(())
    }

    /// Somebody who comes now sees the very same, in every cell.
    async fn is_shared(&mut self, client: &Client, id: &str, history: bool) -> Result<()> {
        let session = self.session.clone();
        let mut other = Self::open(client, id, &[("session_id", &session)]).await?;
        let begun = Instant::now();
        loop {
            let (mine, theirs) = (self.emulator.cells(history), other.emulator.cells(history));
            let cursors = (self.emulator.cursor(), other.emulator.cursor());
            if mine == theirs && cursors.0 == cursors.1 {
                return Ok(());
            }
            // Both may still have something to read; when nothing comes any more, it is as it will stay.
            let next = async {
                tokio::select! {
                    seen = self.look() => seen,
                    seen = other.look() => seen,
                }
            };
            match tokio::time::timeout(PATIENCE / 9, next).await {
                Ok(seen) if begun.elapsed() < PATIENCE => seen?,
                Ok(_) | Err(_) => {
                    let differ = mine.iter().filter(|(place, cell)| theirs.get(*place) != Some(*cell));
                    let differ =
                        differ.map(|(place, cell)| format!("{place:?}: {cell}, {:?}", theirs.get(place)));
                    anyhow::bail!(
                        "cursors {cursors:?}; {} and {} cells; these differ: {:#?}\n{}\n{}",
                        mine.len(),
                        theirs.len(),
                        differ.take(20).collect::<Vec<_>>(),
                        self.emulator.text(),
                        other.emulator.text()
                    );
                }
            }
        }
    }
}

/// A full-screen program with everything that such programs draw: a frame, colours, attributes, wide characters.
const DRAWING: &str = r"
import curses, locale
locale.setlocale(locale.LC_ALL, '')

def main(screen):
    curses.use_default_colors()
    for number in range(1, 8):
        curses.init_pair(number, number, -1 if number % 2 else 7 - number)
    curses.init_pair(9, 202, 17)
    while True:
        rows, columns = screen.getmaxyx()
        screen.erase()
        screen.box()
        for number in range(1, 8):
            screen.addstr(number, 2, f'pair {number}', curses.color_pair(number) | (curses.A_BOLD if number > 3 else 0))
        screen.addstr(9, 2, 'of 256', curses.color_pair(9) | curses.A_UNDERLINE)
        screen.addstr(10, 2, 'reverse', curses.A_REVERSE)
        screen.addstr(11, 2, 'dim', curses.A_DIM)
        screen.addstr(12, 2, '\u6771\u4eac e\u0301 \u2713 \u2592\u2592')
        screen.hline(13, 1, curses.ACS_HLINE, columns - 2)
        screen.addstr(rows - 1, columns - 12, f' {rows}x{columns} ')
        key = screen.getch()
        if key == ord('q'):
            return

curses.wrapper(main)
";

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_screen_looks_the_same_to_whoever_comes() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("shown").await?;
    client
        .request(
            reqwest::Method::PUT,
            &format!("/api/v1/computers/{id}/files/content?path=/tmp/drawing.py"),
            Some(DRAWING.into()),
        )
        .await?;
    let mut viewer = Viewer::open(&client, &id, &[("rows", "24"), ("cols", "80")]).await?;

    // The shell, with colours and lines that have left the screen.
    viewer
        .press("PS1='$ '; clear; ls --color=always -l /; seq 1 60; printf '\\e[7;35mend\\e[m-%s\\n' here\r")
        .await?;
    viewer.until("end-here").await?;
    viewer.is_shared(&client, &id, true).await?;

    for (locale, size) in [("C.UTF-8", (30, 100)), ("C", (20, 70)), ("C.UTF-8", (24, 80))] {
        viewer.press(&format!("LC_ALL={locale} python3 /tmp/drawing.py\r")).await?;
        viewer.until("of 256").await?;
        viewer.is_shared(&client, &id, false).await?;
        viewer.resize(size.0, size.1).await?;
        viewer.until(&format!(" {}x{} ", size.0, size.1)).await?;
        viewer.is_shared(&client, &id, false).await?;
        viewer.press("q").await?;
        viewer.press("clear; echo left-$((1 + 1))\r").await?;
        viewer.until("left-2").await?;
        viewer.is_shared(&client, &id, false).await?;
    }

    // An editor: what is typed, marked and scrolled.
    viewer.press("nano /tmp/letter\r").await?;
    viewer.until("/tmp/letter").await?;
    viewer.press("Dear reader, \u{fc}ber \u{6771}\r").await?;
    viewer.press(&"a line of it\r".repeat(30)).await?;
    viewer.press("the last one").await?;
    viewer.until("the last one").await?;
    viewer.is_shared(&client, &id, false).await?;
    viewer.resize(16, 60).await?;
    viewer.until("the last one").await?;
    viewer.is_shared(&client, &id, false).await?;
    client.output(&id, "pkill -x nano").await?;
    viewer.press("clear; echo edited-$((2 + 2))\r").await?;
    viewer.until("edited-4").await?;
    viewer.is_shared(&client, &id, false).await?;

    // Another one, which knows more of terminals, and its marks for lines that do not fit.
    viewer.press("vi -u NONE -c 'set nocompatible number ruler showmode' /etc/nanorc\r").await?;
    viewer.until("  1 #").await?;
    viewer.is_shared(&client, &id, false).await?;
    for (rows, columns) in [(30, 100), (12, 40), (24, 80)] {
        viewer.resize(rows, columns).await?;
        viewer.press(":set lines?\r").await?;
        viewer.until(&format!("lines={rows}")).await?;
        viewer.is_shared(&client, &id, false).await?;
    }
    viewer.press("GOtyped here \u{fc}\u{6771}\x1b").await?;
    viewer.until("typed here").await?;
    viewer.is_shared(&client, &id, false).await?;
    viewer.press(":q!\r").await?;
    // What is typed before the shell asks for it may still be the editor's.
    viewer.until("nanorc\n$\n").await?;
    viewer.press("clear; echo left-$((2 + 3))\r").await?;
    viewer.until("left-5").await?;
    viewer.is_shared(&client, &id, false).await?;

    // Colours, and lines that change by themselves.
    viewer.press("htop\r").await?;
    viewer.until("PID").await?;
    viewer.is_shared(&client, &id, false).await?;
    viewer.resize(20, 100).await?;
    viewer.until("PID").await?;
    viewer.is_shared(&client, &id, false).await?;
    viewer.resize(24, 80).await?;
    viewer.is_shared(&client, &id, false).await?;
    viewer.press("q").await?;
    viewer.until("htop\n$\n").await?;
    viewer.press("clear; echo seen-$((3 + 3))\r").await?;
    viewer.until("seen-6").await?;
    viewer.is_shared(&client, &id, false).await?;

    // A pager and its marks.
    viewer.press("ls --color=always -lR /etc | LESS= less -R\r").await?;
    viewer.until("total").await?;
    viewer.press("/root\r").await?;
    viewer.until("root").await?;
    viewer.is_shared(&client, &id, false).await?;
    viewer.press("G").await?;
    viewer.until("(END)").await?;
    viewer.is_shared(&client, &id, false).await?;
    viewer.press("q").await?;
    viewer.press("exit\r").await?;
    while !viewer.has_ended {
        viewer.look().await?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_session_goes_on_while_no_server_is_there() -> Result<()> {
    let mut server = Server::start()?;
    let client = server.client();
    let id = client.create("lasting").await?;
    let mut viewer = Viewer::open(&client, &id, &[("rows", "24"), ("cols", "80")]).await?;
    let session = viewer.session.clone();
    viewer.press("PS1='$ '; MARK=kept; clear; echo shell-$$\r").await?;
    viewer.until("\nshell-").await?;
    viewer.press("rm -f /tmp/go; mkfifo /tmp/go; read line </tmp/go; echo heard $line\r").await?;
    viewer.until("mkfifo").await?;

    // What it shows while nobody is there is there for who comes back.
    server.kill()?;
    // What was on its way still comes.
    while viewer.look().await.is_ok() {}
    let before = viewer.emulator.text();
    server.kill_and_start_again()?;
    let client = server.client();
    client.running(&id).await?;
    client.output(&id, "echo 'a word' >/tmp/go").await?;
    let mut again = Viewer::open(&client, &id, &[("session_id", &session)]).await?;
    ensure!(again.session == session, "another session");
    again.until("heard a word").await?;
    let pid = before.lines().find(|line| line.starts_with("shell-")).context("no shell")?.to_owned();
    again.press("clear; echo shell-$$ $MARK\r").await?;
    again.until(&format!("{pid} kept")).await?;
    again.is_shared(&client, &id, false).await?;

    let list = client.get(&format!("/computers/{id}/terminal")).await?.json()?;
    ensure!(list["total"] == 1 && list["sessions"][0]["session_id"] == session, "{list}");
    let closed = client.delete(&format!("/computers/{id}/terminal/{session}")).await?;
    ensure!(closed.status == 200, "{}", closed.json()?);
    while !again.has_ended {
        again.look().await?;
    }
    Ok(())
}
