"""The parts of the official Python client that run commands, open terminals and move files, as published.

ROOST_URL and ROOST_API_KEY say where. What every user of the client does first is in test_miosa_client.py; this is
the rest: processes that are talked to, the asynchronous client, odd names, and much of everything.
"""

import asyncio
import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import miosa
import pytest
import websockets
from miosa.resources.computer import Computer

URL = os.environ["ROOST_URL"]
API_KEY = os.environ["ROOST_API_KEY"]

#: Seconds. Nothing here waits longer than it must.
PATIENCE = 240.0

T = TypeVar("T")


@pytest.fixture(scope="module")
def client() -> Iterator[miosa.Miosa]:
    with miosa.Miosa(API_KEY, base_url=URL, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def computer(client: miosa.Miosa) -> Iterator[Computer]:
    made = client.computers.create(f"python shell {uuid.uuid4().hex[:8]}", template_type="miosa-desktop", size="small")
    try:
        made.wait_until_ready(timeout=PATIENCE, poll_interval=0.2)
        yield made
    finally:
        made.destroy()


@asynccontextmanager
async def opened(computer: Computer) -> AsyncIterator[Any]:
    """The same computer, of the asynchronous client."""
    async with miosa.AsyncMiosa(API_KEY, base_url=URL, timeout=PATIENCE) as client:
        yield await client.computers.get(computer.id)


def with_computer(computer: Computer, use: Callable[[Any], Awaitable[T]]) -> T:
    async def run() -> T:
        async with opened(computer) as found:
            return await use(found)

    return asyncio.run(asyncio.wait_for(run(), PATIENCE))


# --- exec.spawn ---


def test_both_streams_are_followed_at_once(computer: Computer) -> None:
    async def use(found: Any) -> tuple[list[str], list[str], int]:
        process = await found.exec.spawn("for n in $(seq 200); do echo out $n; echo err $n >&2; done; exit 3")

        async def lines(stream: AsyncIterator[str]) -> list[str]:
            return "".join([chunk async for chunk in stream]).splitlines()

        out, err = await asyncio.gather(lines(process.stdout()), lines(process.stderr()))
        return out, err, await process.wait()

    out, err, code = with_computer(computer, use)
    assert out == [f"out {n}" for n in range(1, 201)]
    assert err == [f"err {n}" for n in range(1, 201)]
    assert code == 3


def test_characters_are_never_cut_apart(computer: Computer) -> None:
    text = "東京🐦é" * 60_000

    async def use(found: Any) -> tuple[str, int]:
        process = await found.exec.spawn("cat")
        hear = asyncio.create_task(collect(process))
        for start in range(0, len(text), 10_007):
            await process.write(text[start : start + 10_007])
        await process.close_stdin()
        return await hear, await process.wait()

    async def collect(process: Any) -> str:
        return "".join([chunk async for chunk in process.stdout()])

    output, code = with_computer(computer, use)
    assert code == 0
    assert output == text


def test_kill_ends_the_process(computer: Computer) -> None:
    async def use(found: Any) -> int:
        process = await found.exec.spawn("trap '' TERM HUP; echo $$; while true; do sleep 1; done")
        pid = ""
        async for chunk in process.stdout():
            pid += chunk
            if pid.endswith("\n"):
                break
        await process.kill()
        with pytest.raises(RuntimeError):
            await process.write("too late")
        return int(pid)

    pid = with_computer(computer, use)
    gone = computer.bash(f"timeout 60 sh -c 'while kill -0 {pid} 2>/dev/null; do sleep 0.1; done'", timeout=65)
    assert gone.exit_code == 0, "it lives on"


def test_close_hangs_up(computer: Computer) -> None:
    async def hang_up(found: Any) -> None:
        process = await found.exec.spawn("trap 'echo heard > /tmp/python-hup; exit' HUP; echo ready; while true; do sleep 0.1; done")
        async for chunk in process.stdout():
            if "ready" in chunk:
                break
        await process.close()
        await process.close()

    with_computer(computer, hang_up)
    heard = computer.bash("timeout 60 sh -c 'until [ -s /tmp/python-hup ]; do sleep 0.1; done'; cat /tmp/python-hup", timeout=65)
    assert heard.stdout == "heard\n"


def test_a_process_on_a_terminal_has_its_size(computer: Computer) -> None:
    async def use(found: Any) -> tuple[str, int]:
        process = await found.exec.spawn("stty -echo; trap 'stty size; exit 6' WINCH; stty size; while true; do sleep 0.05; done", rows=30, cols=90)
        text = ""
        async for chunk in process.stdout():
            text += chunk
            if text == "30 90\r\n":
                await process.resize(41, 123)
        return text, await process.wait()

    assert with_computer(computer, use) == ("30 90\r\n41 123\r\n", 6)


def test_many_processes_at_once(computer: Computer) -> None:
    async def use(found: Any) -> list[str]:
        async def one(number: int) -> str:
            process = await found.exec.spawn(f"read -r line; echo {number}:$line")
            await process.write(f"{number * number}\n")
            output = "".join([chunk async for chunk in process.stdout()])
            assert await process.wait() == 0
            return output

        return await asyncio.gather(*(one(number) for number in range(20)))

    assert with_computer(computer, use) == [f"{number}:{number * number}\n" for number in range(20)]


def test_a_program_that_is_not_there(computer: Computer) -> None:
    async def use(found: Any) -> tuple[str, int]:
        process = await found.exec.spawn("no-such-program-here")
        errors = "".join([chunk async for chunk in process.stderr()])
        return errors, await process.wait()

    errors, code = with_computer(computer, use)
    assert code == 127
    assert "no-such-program-here" in errors


def test_the_synchronous_client_says_that_it_cannot_spawn(computer: Computer) -> None:
    with pytest.raises(NotImplementedError):
        computer.exec.spawn("true")


# --- commands that are waited for ---


def test_commands_of_the_asynchronous_client(computer: Computer) -> None:
    async def use(found: Any) -> tuple[Any, Any]:
        return await asyncio.gather(
            found.exec.bash("echo one; echo two >&2; exit 4"),
            found.exec.python("import sys; print(sum(range(10))); sys.exit(5)"),
        )

    bash, python = with_computer(computer, use)
    assert (bash.exit_code, bash.success, bash.stderr) == (4, False, "two\n")
    assert (python.exit_code, python.stdout) == (5, "45\n")


def test_a_command_with_its_streams_apart(client: miosa.Miosa, computer: Computer) -> None:
    done = client.commands.run_computer(computer.id, "cat; pwd; echo oops >&2; exit 2", cwd="/tmp", stdin="typed\n")
    assert (done["stdout"], done["stderr"], done["exit_code"]) == ("typed\n/tmp\n", "oops\n", 2)
    assert done["timed_out"] is False
    late = client.commands.run_computer(computer.id, "sleep 300", timeout_seconds=1)
    assert late["timed_out"] is True


# --- terminals ---


def test_a_terminal_of_the_asynchronous_client(computer: Computer) -> None:
    async def use(found: Any) -> list[str]:
        session = await found.terminal.create(cols=70, rows=22, cwd="/tmp")
        host = urlsplit(URL)
        address = f"ws://{host.netloc}{urlsplit(session['ws_url']).path}?session_id={session['session_id']}&auth={session['token']}"

        async def until(socket: Any, wanted: str) -> str:
            seen = ""
            while wanted not in seen:
                seen += json.loads(await socket.recv()).get("data", "")
            return seen

        async with websockets.connect(address) as one, websockets.connect(address) as other:
            # Raw bytes are keys, too.
            await one.send(b'echo "<$(stty size) $PWD>"\r')
            await until(one, "<22 70 /tmp>")
            await until(other, "<22 70 /tmp>")
            resized = await found.terminal.resize(session["session_id"], cols=71, rows=23)
            assert (resized["cols"], resized["rows"]) == (71, 23)
            await other.send(json.dumps({"type": "input", "data": 'echo "<$(stty size)>"; exit 8\r'}))
            await until(one, "<23 71>")
            while (frame := json.loads(await other.recv()))["type"] != "exit":
                pass
            with pytest.raises(websockets.ConnectionClosedOK):
                await other.recv()
            return [frame["type"], str(frame["code"])]

    assert with_computer(computer, use) == ["exit", "8"]


# --- files ---

NAMES = ["with spaces ", " and\nnewlines\n", "quote\"s' `x` $(id)", "-rf", "%2e%2e%2f", "東京 🐦", "x" * 255]


def test_names_are_what_they_are(computer: Computer, tmp_path: Path) -> None:
    fs = computer.fs("/workspace/names")
    for name in NAMES:
        fs.write_file(name, name)
        assert fs.read_file(name) == name
        assert fs.stat(name).size == len(name.encode())
    assert {entry.name for entry in fs.readdir(".")} == set(NAMES)
    for name in NAMES:
        fs.rename(name, f"{name[:200]}.moved")
        computer.files.delete(f"/workspace/names/{name[:200]}.moved")
    assert fs.readdir(".") == []
    # An upload keeps the name that the file has here.
    for name in NAMES[3:6]:
        (tmp_path / name).write_text(name, encoding="utf-8")
        computer.files.upload(tmp_path / name, "/workspace/names/")
    assert {entry.name for entry in fs.readdir(".")} == set(NAMES[3:6])
    computer.files.delete("/workspace/names")


def test_a_large_file_is_the_same_on_both_sides(computer: Computer, tmp_path: Path) -> None:
    content = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(2**20))
    local = tmp_path / "large"
    local.write_bytes(content)
    computer.files.upload(local, "/workspace/large")
    there = computer.bash("sha256sum < /workspace/large", timeout=120).stdout.split()[0]
    assert there == hashlib.sha256(content).hexdigest()
    assert computer.files.download("/workspace/large") == content
    exported = computer.files.export("/workspace/large")
    assert exported.success
    computer.files.delete("/workspace/large")


def test_files_of_the_asynchronous_client(computer: Computer, tmp_path: Path) -> None:
    local = tmp_path / "sent"
    local.write_bytes(bytes(range(256)))

    async def use(found: Any) -> None:
        files = found.files
        await files.upload(local, "/workspace/async/")
        assert await files.download("/workspace/async/sent") == bytes(range(256))
        fs = found.fs("/workspace/async")
        await asyncio.gather(*(fs.write_file(f"n{number}", str(number)) for number in range(30)))
        assert {entry.name for entry in await fs.readdir(".")} == {"sent", *(f"n{number}" for number in range(30))}
        await fs.mkdir("sub/dir", mode=0o700)
        await fs.chmod("n1", "0640")
        assert (await fs.stat("n1")).mode == 0o640
        await fs.copy("n1", "sub/dir/n1")
        assert await fs.read_file("sub/dir/n1") == "1"
        await fs.rename("sub", "moved")
        assert (await fs.stat("moved/dir")).is_dir
        assert len(await files.list("/workspace/async")) == 32
        await files.delete("/workspace/async")
        with pytest.raises(miosa.NotFoundError):
            await files.stat("/workspace/async")

    with_computer(computer, use)


def test_what_cannot_be_says_why(computer: Computer) -> None:
    files = computer.files
    files.write_file("/workspace/file", "x")
    cases: list[tuple[Callable[[], object], int, str]] = [
        (lambda: files.download("/workspace/nothing"), 404, "NOT_FOUND"),
        (lambda: files.stat("relative"), 400, "INVALID_PATH"),
        (lambda: files.list("/etc"), 403, "FORBIDDEN_PATH"),
        (lambda: files.write_file("/workspace/../etc/planted", "x"), 403, "FORBIDDEN_PATH"),
        (lambda: files.mkdir("/workspace/a/b", recursive=False), 404, "NOT_FOUND"),
        (lambda: files.mkdir("/workspace/file/below"), 422, "VALIDATION_FAILED"),
        (lambda: files.copy("/workspace", "/tmp/copy"), 422, "VALIDATION_FAILED"),
        (lambda: files.chmod("/workspace/file", "rwx"), 422, "VALIDATION_FAILED"),
        (lambda: files.delete("/workspace"), 422, "VALIDATION_FAILED"),
    ]
    for call, status, code in cases:
        with pytest.raises(miosa.MiosaError) as caught:
            call()
        assert (caught.value.status_code, caught.value.code) == (status, code), caught.value
