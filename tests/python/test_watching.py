"""What a computer says of itself: measurements, logs, programs, and events."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import miosa
import pytest
from miosa.resources.computer import Computer

from conftest import API_KEY, PATIENCE, URL


def test_measurements(computer: Computer) -> None:
    for window in ("1h", "24h", "7d"):
        found = computer.metrics(window)
        assert set(found) >= {"cpu_percent", "memory_percent", "credits_per_hour"}
    assert computer.metrics_resource.get()["credits_per_hour"] == 3
    with pytest.raises(miosa.MiosaError) as caught:
        computer.metrics("1y")
    assert caught.value.status_code == 422


def test_logs_by_number_and_time(computer: Computer) -> None:
    found = computer.logs.get(lines=5)
    assert found["computer_id"] == computer.id
    assert 0 < len(found["lines"]) <= 5
    assert computer.logs.get(since="2100-01-01T00:00:00Z")["lines"] == []


def test_logs_go_on(computer: Computer) -> None:
    word = "from-the-conformance-test"
    lines = computer.logs.stream()
    first = next(lines)
    assert first["data"]
    computer.bash(f"logger -t conformance {word} || systemd-cat -t conformance echo {word}")
    assert any(word in line["data"] for line in lines)


def test_programs(computer: Computer) -> None:
    programs = computer.apps()
    assert {"id", "name", "icon", "exec", "categories"} <= set(programs[0])
    assert "Firefox ESR" in {each["name"] for each in programs}


def test_auto_stop(computer: Computer) -> None:
    assert computer.auto_stop.get() == {"auto_stop_seconds": 0, "enabled": False}
    assert computer.auto_stop.update(3600) == {"auto_stop_seconds": 3600, "enabled": True}
    assert computer.refresh().data is not None
    assert computer.auto_stop.get()["auto_stop_seconds"] == 3600
    assert computer.auto_stop.update(0)["enabled"] is False
    with pytest.raises(miosa.MiosaError) as caught:
        computer.auto_stop.update(-1)
    assert caught.value.status_code == 422


def first_of(open_stream: Callable[[miosa.Miosa], Iterator[dict[str, Any]]], act: Callable[[], Any]) -> dict[str, Any]:
    """The first event of a stream, which something is done for until it is there."""
    found: list[dict[str, Any]] = []
    heard = threading.Event()

    def listen() -> None:
        # A client of its own: the stream stays open until the test is over.
        with miosa.Miosa(API_KEY, base_url=URL, timeout=PATIENCE) as client:
            for event in open_stream(client):
                found.append(event)
                heard.set()
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    # The stream may begin after what was done: nobody says when it is open.
    for _ in range(int(PATIENCE)):
        act()
        if heard.wait(1):
            thread.join(PATIENCE)
            return found[0]
    raise AssertionError("no event")


def test_events_of_the_tenant(client: miosa.Miosa, computer: Computer) -> None:
    def make_and_remove() -> None:
        made = client.computers.create("brief", template_type="miosa-desktop")
        client.computers.delete(made.id)

    for listen in (
        lambda listener: listener.events.stream(types=["computer.deleted"]),
        lambda listener: listener.tenant.events.stream(types=["computer.deleted"]),
    ):
        event = first_of(listen, make_and_remove)
        assert "computer.deleted" in json.dumps(event, default=str)


def test_events_of_a_computer(computer: Computer) -> None:
    # The stream begins with the status as it is.
    event = next(computer.audit.tail())
    assert event["computer_id"] == computer.id, event


def test_events_inside_a_computer(computer: Computer) -> None:
    event = first_of(
        lambda listener: listener.computers.get(computer.id).events.subscribe(["file", "clipboard"]),
        lambda: computer.bash("date > told.txt"),
    )
    assert event.type in ("file.created", "file.modified"), event
    assert event.payload == {"path": "/home/user/told.txt"}
    assert event.timestamp is not None


def test_a_ticket_opens_a_stream_once(client: miosa.Miosa) -> None:
    ticket = client.sse_ticket.create()["ticket"]
    # Where no header can be set, as in a browser.
    with httpx.Client(base_url=f"{URL}/api/v1", timeout=PATIENCE) as browser:
        with browser.stream("GET", "/events/stream", params={"ticket": ticket}) as first:
            assert first.status_code == 200
        with browser.stream("GET", "/events/stream", params={"ticket": ticket}) as second:
            assert second.status_code == 401
