"""The official Python client of the Computers API, as published, against a running Roost.

ROOST_URL and ROOST_API_KEY say where. One computer is made and used throughout, because a cold boot takes
long; the tests run in the order they are written, and the computer goes away whatever happens.
"""

import asyncio
import json
import os
import shlex
import struct
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import miosa
import pytest
import websockets
from miosa.resources.computer import Computer

URL = os.environ["ROOST_URL"]
API_KEY = os.environ["ROOST_API_KEY"]

#: Seconds. An emulated guest on a busy machine boots slowly; nothing here waits longer than it must.
PATIENCE = 240.0

#: The middle of the screen.
MIDDLE = (640, 360)

NAME = f"python client {uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def client() -> Iterator[miosa.Miosa]:
    with miosa.Miosa(API_KEY, base_url=URL, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def computer(client: miosa.Miosa) -> Iterator[Computer]:
    made = client.computers.create(NAME, template_type="miosa-desktop", size="small", metadata={"suite": "python"})
    try:
        assert made.status in {"provisioning", "running"}
        assert made.wait_until_ready(timeout=PATIENCE, poll_interval=0.2) is made
        yield made
    finally:
        try:
            made.destroy()
        except miosa.NotFoundError:
            pass  # The last test has destroyed it.


class Report(NamedTuple):
    """What reached the terminal between two reports; see recorder.py for the events."""

    columns: int
    lines: int
    events: list[list[Any]]


class Terminal:
    """A full-screen terminal on the computer's desktop that reports the keys and clicks it gets."""

    def __init__(self, computer: Computer) -> None:
        self.computer = computer
        self.directory = computer.bash("mktemp -d").stdout.strip()
        self.pipe = f"{self.directory}/pipe"
        recorder = Path(__file__).with_name("recorder.py").read_text(encoding="utf-8")
        script = f"{self.directory}/recorder.py"
        opened = computer.bash(
            f"mkfifo {self.pipe} && printf %s {shlex.quote(recorder)} > {script} && "
            f"setsid -f xfce4-terminal --disable-server --fullscreen -x python3 {script} {self.pipe} "
            f"< /dev/null > {self.directory}/log 2>&1"
        )
        assert opened.exit_code == 0, opened.output
        assert self._next().events == []
        # The program runs; its window may still be on its way to the screen.
        search = "until xdotool search --sync --onlyvisible --class xfce4-terminal 2>/dev/null; do :; done"
        shown = computer.bash(f"timeout 60 sh -c '{search}'", timeout=65)
        assert shown.exit_code == 0, shown.output

    def _next(self) -> Report:
        """The next report. A named pipe makes both sides wait for each other."""
        result = self.computer.bash(f"timeout 60 cat {self.pipe} || cat {self.directory}/log >&2", timeout=65)
        assert result.stdout != "" and result.stderr == "", f"the terminal did not report: {result.output}"
        return Report(**json.loads(result.stdout))

    def report(self) -> Report:
        """Everything that arrived since the last report."""
        assert self.computer.key("F12").success
        return self._next()


@pytest.fixture(scope="module")
def terminal(computer: Computer) -> Terminal:
    opened = Terminal(computer)
    # The click gives it the keyboard, whatever else is on the desktop.
    assert computer.click(*MIDDLE).success
    opened.report()
    return opened


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header, which is checked as far as a viewer would."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    length, kind = struct.unpack(">I4s", data[8:16])
    assert (length, kind) == (13, b"IHDR")
    assert data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


# --- what an unknown or wrong caller gets ---


def test_a_wrong_key_is_an_authentication_error() -> None:
    with miosa.Miosa("msk_u_" + "0" * 32, base_url=URL) as stranger:
        with pytest.raises(miosa.AuthenticationError) as caught:
            stranger.computers.list()
    assert caught.value.status_code == 401
    assert caught.value.code == "invalid_token"
    assert caught.value.request_id


def test_an_unknown_computer_is_not_found(client: miosa.Miosa) -> None:
    with pytest.raises(miosa.NotFoundError) as caught:
        client.computers.get(str(uuid.uuid4()))
    assert (caught.value.status_code, caught.value.message) == (404, "computer not found")


def test_a_malformed_id_is_a_validation_error(client: miosa.Miosa) -> None:
    with pytest.raises(miosa.ValidationError) as caught:
        client.computers.get("not-a-uuid")
    assert (caught.value.status_code, caught.value.message) == (400, "invalid computer id")


def test_a_computer_needs_a_name(client: miosa.Miosa) -> None:
    with pytest.raises(miosa.ValidationError) as caught:
        client.computers.create("")
    assert (caught.value.status_code, caught.value.message) == (400, "name is required")


# --- the computer as an object ---


def test_the_computer_is_what_was_asked_for(client: miosa.Miosa, computer: Computer) -> None:
    data = client.computers.get(computer.id).data
    assert (data.id, data.name, data.status.value) == (computer.id, NAME, "running")
    assert data.template_type == "miosa-desktop"
    assert data.size is not None and data.size.value == "small"
    assert data.metadata == {"suite": "python"}
    assert data.slug and data.tenant_id and data.workspace_id
    assert data.created_at is not None
    age = datetime.now(timezone.utc) - data.created_at
    assert 0 <= age.total_seconds() < 3600


def test_the_list_holds_the_computer(client: miosa.Miosa, computer: Computer) -> None:
    listed = {each.id: each for each in client.computers.list()}
    assert listed[computer.id].name == NAME
    assert listed[computer.id].status == "running"
    in_workspace = client.computers.list(workspace_id=computer.data.workspace_id)
    assert computer.id in {each.id for each in in_workspace}


def test_update_renames_and_replaces_metadata(client: miosa.Miosa, computer: Computer) -> None:
    slug = computer.slug
    changed = client.computers.update(computer.id, name=f"{NAME} renamed", metadata={"suite": "renamed"})
    assert changed.name == f"{NAME} renamed"
    read = client.computers.get(computer.id)
    assert (read.name, read.data.metadata) == (f"{NAME} renamed", {"suite": "renamed"})
    assert read.slug == slug, "links to the computer must survive a new name"
    client.computers.update(computer.id, name=NAME)
    assert computer.refresh().name == NAME


# --- commands ---


def test_bash_gives_output_and_success(computer: Computer) -> None:
    result = computer.bash("echo hello; id -un; pwd")
    assert result.stdout == "hello\nuser\n/home/user\n"
    assert (result.stderr, result.exit_code, result.success) == ("", 0, True)


def test_bash_gives_exit_code_and_errors(computer: Computer) -> None:
    result = computer.bash("echo out; echo err >&2; exit 7")
    assert (result.exit_code, result.success) == (7, False)
    assert result.stderr == "err\n"
    assert sorted(result.stdout.splitlines()) == ["err", "out"], "output holds both streams"


def test_bash_keeps_text_that_is_not_ascii(computer: Computer) -> None:
    text = "Grüße, 東京, 🐦, 'quotes' \"and\" $dollars"
    assert computer.bash(f"printf %s {shlex.quote(text)}").stdout == text


def test_bash_stops_at_its_timeout(computer: Computer) -> None:
    result = computer.bash("echo before; sleep 300", timeout=1)
    assert (result.exit_code, result.success) == (124, False)
    assert result.stdout == "before\n"


def test_python_runs_code(computer: Computer) -> None:
    result = computer.python("import sys\nprint(6 * 7)\nprint('oops', file=sys.stderr)\nsys.exit(3)")
    assert (result.exit_code, result.success, result.stderr) == (3, False, "oops\n")
    assert "42" in result.stdout.splitlines()


def test_spawn_streams_a_process(computer: Computer) -> None:
    async def talk() -> tuple[str, str, int]:
        async with miosa.AsyncMiosa(API_KEY, base_url=URL, timeout=PATIENCE) as client:
            process = await (await client.computers.get(computer.id)).exec.spawn(
                'read -r line; echo "got $line in $PWD with $BIRD"; echo complaint >&2; cat; exit 5',
                cwd="/tmp",
                env={"BIRD": "wren"},
            )
            output = ""
            await process.write("one\n")
            async for chunk in process.stdout():
                output += chunk
                # The answer to the first line proves that the process is talked to while it runs.
                if output == "got one in /tmp with wren\n":
                    await process.write("zwei ✓\n")
                    await process.close_stdin()
            errors = "".join([chunk async for chunk in process.stderr()])
            code = await process.wait()
            await process.close()
            return output, errors, code

    output, errors, code = asyncio.run(asyncio.wait_for(talk(), PATIENCE))
    assert output == "got one in /tmp with wren\nzwei ✓\n"
    assert (errors, code) == ("complaint\n", 5)


def test_spawn_passes_arguments_as_they_are(computer: Computer) -> None:
    async def run() -> tuple[str, int]:
        async with miosa.AsyncMiosa(API_KEY, base_url=URL, timeout=PATIENCE) as client:
            process = await (await client.computers.get(computer.id)).exec.spawn("printf", args=["<%s>", "$HOME", "b c"])
            return "".join([chunk async for chunk in process.stdout()]), await process.wait()

    assert asyncio.run(asyncio.wait_for(run(), PATIENCE)) == ("<$HOME><b c>", 0)


# --- the desktop ---


def test_the_screen_is_a_png_of_its_size(computer: Computer) -> None:
    size = computer.screen_size()
    assert (size.width, size.height) == (1280, 720)
    data = computer.screenshot()
    assert png_size(data) == (1280, 720)
    assert len(data) > 5_000, "a desktop with panels and a wallpaper does not compress to nothing"


def test_move_moves_the_pointer(computer: Computer) -> None:
    for x, y in [(123, 456), (0, 0), (1279, 719)]:
        assert computer.move_cursor(x, y).success
        position = computer.cursor_position()
        assert (position.x, position.y) == (x, y)


def test_click_arrives_where_it_should(computer: Computer, terminal: Terminal) -> None:
    assert computer.click(320, 540).success
    position = computer.cursor_position()
    assert (position.x, position.y) == (320, 540)
    report = terminal.report()
    assert [(button, pressed) for _, button, _, _, pressed in report.events] == [(0, True), (0, False)]
    _, _, column, line, _ = report.events[0]
    assert column / report.columns == pytest.approx(0.25, abs=0.03)
    assert line / report.lines == pytest.approx(0.75, abs=0.05)


def test_double_click_is_two_clicks(computer: Computer, terminal: Terminal) -> None:
    assert computer.double_click(*MIDDLE).success
    events = terminal.report().events
    assert [(button, pressed) for _, button, _, _, pressed in events] == [(0, True), (0, False)] * 2


def test_scroll_turns_the_wheel(computer: Computer, terminal: Terminal) -> None:
    assert computer.scroll("down", 3, x=MIDDLE[0], y=MIDDLE[1]).success
    assert [event[:2] for event in terminal.report().events] == [["mouse", 65]] * 3
    assert computer.scroll("up", 2).success
    assert [event[:2] for event in terminal.report().events] == [["mouse", 64]] * 2


def test_type_types_every_character(computer: Computer, terminal: Terminal) -> None:
    text = "Hello, World! [~{|}@#$%^&*] Grüße €42 žluťoučký Ωμέγα"
    assert computer.type(text).success
    assert terminal.report().events == [["text", text]]


def test_key_presses_keys_and_combinations(computer: Computer, terminal: Terminal) -> None:
    for key in ["Return", "Enter", "Tab", "ctrl+c", "shift+a", "Escape"]:
        assert computer.key(key).success
    assert terminal.report().events == [["text", "\r\r\t\x03A\x1b"]]
    assert computer.key("Left").success
    assert terminal.report().events == [["key", "\x1b[D"]]


def test_an_unknown_key_is_refused(computer: Computer) -> None:
    with pytest.raises(miosa.MiosaError) as caught:
        computer.key("NoSuchKey")
    assert caught.value.status_code == 422


# --- ways to the live desktop ---


def test_urls_name_the_desktop(computer: Computer) -> None:
    addresses = {each["name"]: each["url"] for each in computer.urls()}
    assert addresses["desktop"] == computer.data.desktop_url
    assert urlsplit(addresses["desktop"]).path == "/desktop/index.html"


def test_stream_token_and_credentials(computer: Computer) -> None:
    now = datetime.now(timezone.utc).timestamp()
    minted = computer.stream_token()
    assert minted["token"]
    assert now < minted["expires_at"] <= now + 86_400

    credentials = computer.vnc_credentials()
    assert credentials["computer_id"] == computer.id
    assert credentials["slug"] == computer.slug
    assert credentials["desktop_url"] == computer.data.desktop_url
    assert now < credentials["expires_at"] <= now + 86_400
    socket = urlsplit(credentials["ws_url"])
    assert socket.scheme in {"ws", "wss"}
    assert socket.path == f"/ws/vnc/{computer.id}"
    assert parse_qs(socket.query)["auth"] == [credentials["token"]]


# --- files ---


def test_files_there_and_back(computer: Computer, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    local = tmp_path / "a b.bin"
    local.write_bytes(content)
    assert computer.files.upload(local, "/workspace/up/").success
    assert computer.files.download("/workspace/up/a b.bin") == content
    assert computer.bash("stat -c '%U %a' '/workspace/up/a b.bin' /workspace/up").stdout == "user 644\nuser 755\n"

    computer.files.write_file("/home/user/text", "zwei\nZeilen é\n")
    assert computer.files.read_file("/home/user/text") == "zwei\nZeilen é\n"
    assert computer.bash("cat ~/text").stdout == "zwei\nZeilen é\n"
    exported = computer.files.export("/home/user/text")
    assert exported.success


def test_files_are_arranged(computer: Computer) -> None:
    fs = computer.fs("/workspace/tree")
    fs.mkdir("deep/er")
    fs.write_file("deep/one", "1")
    computer.bash("ln -s one /workspace/tree/deep/link")
    entries = {each.name: each for each in fs.readdir("deep")}
    assert set(entries) == {"er", "link", "one"}
    assert (entries["er"].is_dir, entries["link"].is_symlink, entries["one"].size) == (True, True, 1)
    listed = {each.name: each for each in computer.files.list("/workspace/tree/deep")}
    assert listed["one"].path == "/workspace/tree/deep/one"

    computer.files.chmod("/workspace/tree/deep/one", 0o750)
    stat = computer.files.stat("/workspace/tree/deep/one")
    assert (stat.mode, stat.size, stat.is_dir) == (0o750, 1, False)
    link = computer.files.stat("/workspace/tree/deep/link")
    assert (link.is_symlink, link.symlink_target) == (True, "one")

    computer.files.rename("/workspace/tree/deep", "/workspace/tree/moved")
    computer.files.copy("/workspace/tree/moved", "/workspace/tree/copy", recursive=True)
    assert computer.files.read_file("/workspace/tree/copy/one") == "1"
    assert computer.files.delete("/workspace/tree/moved").success
    with pytest.raises(miosa.NotFoundError):
        computer.files.stat("/workspace/tree/moved")


def test_files_stay_in_their_directories(computer: Computer) -> None:
    computer.bash("ln -sfn /etc /workspace/out")
    for path in ("/etc/shadow", "/workspace/../etc/shadow", "/workspace/out/shadow"):
        with pytest.raises(miosa.MiosaError) as caught:
            computer.files.download(path)
        assert (caught.value.status_code, caught.value.code) == (403, "FORBIDDEN_PATH"), path


# --- terminals ---


def test_a_terminal_session(computer: Computer) -> None:
    opened = computer.terminal.create(cols=100, rows=30, cwd="/tmp", env={"MARK": "from the client"})
    assert (opened["cols"], opened["rows"], opened["computer_id"]) == (100, 30, computer.id)
    resized = computer.terminal.resize(opened["session_id"], cols=90, rows=20)
    assert (resized["cols"], resized["rows"]) == (90, 20)
    with pytest.raises(miosa.NotFoundError):
        computer.terminal.resize("no-such-session", cols=90, rows=20)

    host = urlsplit(URL)
    address = f"ws://{host.netloc}{urlsplit(opened['ws_url']).path}?session_id={opened['session_id']}"

    async def look(typed: str | None, until: str) -> str:
        """What a new viewer sees until a text is there."""
        seen = ""
        async with websockets.connect(f"{address}&auth={opened['token']}") as socket:
            assert json.loads(await socket.recv())["session_id"] == opened["session_id"]
            if typed is not None:
                await socket.send(json.dumps({"type": "input", "data": typed}))
            async with asyncio.timeout(PATIENCE):
                while until not in seen:
                    seen += json.loads(await socket.recv()).get("data", "")
        return seen

    asyncio.run(look('echo "<$MARK> $PWD $(stty size)"\r', "<from the client> /tmp 20 90"))
    # Another connection sees what was there before it.
    asyncio.run(look(None, "<from the client> /tmp 20 90"))


def test_a_spawned_command_on_a_terminal(computer: Computer) -> None:
    async def run() -> tuple[str, int]:
        async with miosa.AsyncMiosa(API_KEY, base_url=URL, timeout=PATIENCE) as client:
            found = await client.computers.get(computer.id)
            process = await found.exec.spawn("stty -echo; tty; stty size; read x; stty size; exit 7", rows=33, cols=77)
            text = ""
            async for piece in process.stdout():
                text += piece
                if "33 77" in text and "44 88" not in text:
                    await process.resize(44, 88)
                    await process.write("\n")
            return text, await process.wait()

    text, code = asyncio.run(run())
    assert "/dev/pts/" in text and "44 88" in text
    assert code == 7


# --- lifecycle; from here on nothing of the desktop above is left ---


def test_stop_keeps_files_and_start_brings_them_back(client: miosa.Miosa, computer: Computer) -> None:
    assert computer.bash("echo kept > /home/user/kept && sync").exit_code == 0
    assert computer.stop().status == "stopped"
    assert client.computers.get(computer.id).status == "stopped"

    with pytest.raises(miosa.MiosaError) as caught:
        computer.bash("true")
    assert (caught.value.status_code, caught.value.code) == (409, "COMPUTER_NOT_RUNNING")
    with pytest.raises(miosa.MiosaError) as caught:
        computer.stop()
    assert caught.value.status_code == 409

    assert computer.start().status == "running"
    assert computer.bash("cat /home/user/kept").stdout == "kept\n"
    with pytest.raises(miosa.MiosaError) as caught:
        computer.start()
    assert caught.value.status_code == 409


def test_restart_boots_again(computer: Computer) -> None:
    before = computer.bash("cat /proc/sys/kernel/random/boot_id").stdout
    assert computer.restart().status == "running"
    assert computer.bash("cat /proc/sys/kernel/random/boot_id").stdout != before
    assert computer.bash("cat /home/user/kept").stdout == "kept\n"
    assert png_size(computer.screenshot()) == (1280, 720)


def test_destroy_leaves_nothing(client: miosa.Miosa, computer: Computer) -> None:
    assert computer.destroy().success
    with pytest.raises(miosa.NotFoundError):
        client.computers.get(computer.id)
    with pytest.raises(miosa.NotFoundError):
        computer.destroy()
    assert computer.id not in {each.id for each in client.computers.list()}
