"""Webhooks: made, delivered to a server of ours with a signature that the client accepts, and replayed.

The server under test has to be allowed to call this machine: `roost serve --webhooks-anywhere`.
"""

import http.server
import queue
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import miosa
import pytest

from conftest import PATIENCE


class Delivery(NamedTuple):
    headers: dict[str, str]
    body: bytes


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.arrived: queue.Queue[Delivery] = queue.Queue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.arrived.put(Delivery({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_the_kinds_of_events(client: miosa.Miosa) -> None:
    assert "computer.running" in client.event_subscriptions.webhook_events()["data"]


def test_a_webhook_is_delivered_and_replayed(client: miosa.Miosa, receiver: Receiver) -> None:
    made = client.webhooks.create(url=receiver.url, events=["computer.deleted"], name="mine")
    secret = made["secret"]
    try:
        assert made["id"] in {each["id"] for each in client.webhooks.list()}
        assert "secret" not in client.webhooks.get(made["id"])
        assert client.webhooks.update(made["id"], name="still mine")["name"] == "still mine"

        tested = client.webhooks.test(made["id"])
        assert tested["success"] is True, tested
        assert b"webhook.test" in receiver.arrived.get(timeout=PATIENCE).body

        brief = client.computers.create("brief")
        client.computers.delete(brief.id)
        delivered = receiver.arrived.get(timeout=PATIENCE)
        assert brief.id.encode() in delivered.body
        signature = next(value for name, value in delivered.headers.items() if name.endswith("signature"))
        assert client.webhooks.verify_signature(delivered.body, signature, secret)
        assert not client.webhooks.verify_signature(delivered.body + b" ", signature, secret)

        # It has arrived here before that is written down there.
        until = time.monotonic() + PATIENCE
        while (rows := client.webhooks.deliveries(made["id"])) and rows[0]["state"] == "pending":
            assert time.monotonic() < until, rows
            time.sleep(0.1)
        assert [(each["event_type"], each["success"]) for each in rows] == [("computer.deleted", True)]
        client.event_subscriptions.replay_delivery(made["id"], rows[0]["id"])
        again = receiver.arrived.get(timeout=PATIENCE)
        assert brief.id.encode() in again.body
    finally:
        client.webhooks.delete(made["id"])
    with pytest.raises(miosa.NotFoundError):
        client.webhooks.get(made["id"])
