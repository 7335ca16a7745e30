"""Snapshots: taken, read, named, and made into computers again."""

import miosa
import pytest
from miosa.resources.computer import Computer

from conftest import PATIENCE, unique


def test_a_snapshot_is_taken_and_restored(computer: Computer) -> None:
    computer.write_file("/home/user/kept", "before")
    statuses: list[str] = []
    taken = computer.checkpoints.create(comment="before", on_progress=lambda event: statuses.append(event.status))
    assert statuses[-1] == "ready"
    assert computer.checkpoints.get(taken.id).comment == "before"
    assert taken.id in {each.id for each in computer.checkpoints.list()}
    assert [event.status for event in computer.checkpoints.events(taken.id)] == ["ready"]
    computer.write_file("/home/user/kept", "after")
    restored = computer.checkpoints.restore(taken.id)
    try:
        assert restored.id != computer.id
        restored.wait_until_ready(timeout=PATIENCE, poll_interval=0.2)
        assert restored.read_file("/home/user/kept") == "before"
        assert computer.read_file("/home/user/kept") == "after"
    finally:
        restored.destroy()
    assert computer.checkpoints.delete(taken.id).id == taken.id
    with pytest.raises(miosa.NotFoundError):
        computer.checkpoints.get(taken.id)


def test_the_history(client: miosa.Miosa, computer: Computer) -> None:
    computer.write_file("/home/user/in-the-past", "text")
    first, second = (computer.checkpoints.create(on_progress=lambda _: None) for _ in range(2))
    listed = client.snapshot_history.list(resource_id=computer.id)
    assert {first.id, second.id} <= {each["id"] for each in listed["data"]}
    assert computer.id in {each["resource_id"] for each in client.snapshot_history.groups()["data"]}
    assert client.snapshot_history.get(first.id)["data"]["status"] == "ready"
    tree = client.snapshot_history.tree(first.id, path="/home/user")
    assert "in-the-past" in str(tree)
    assert client.snapshot_history.file(first.id, path="/home/user/in-the-past") == b"text"
    assert first.id in {each["id"] for each in client.snapshots.list()}
    assert client.snapshots.get(first.id)["id"] == first.id

    key = unique("fork").replace(" ", "-")
    forked = client.snapshot_history.fork(first.id, idempotency_key=key)
    again = client.snapshot_history.fork(first.id, idempotency_key=key)
    assert again == forked, "the same request made two computers"
    fork = client.computers.get(forked["data"]["id"])
    fork.wait_until_ready(timeout=PATIENCE, poll_interval=0.2)
    assert fork.read_file("/home/user/in-the-past") == "text"
    fork.destroy()

    client.snapshot_history.delete(first.id)
    deleted = client.snapshot_history.bulk_delete(ids=[second.id])
    assert second.id in str(deleted)
    left = {each["id"] for each in client.snapshot_history.list(resource_id=computer.id)["data"]}
    assert not {first.id, second.id} & left


def test_names(client: miosa.Miosa, computer: Computer) -> None:
    taken = computer.checkpoints.create(on_progress=lambda _: None)
    name = unique("release").replace(" ", "-")
    assert client.named_snapshots.create(name, snapshot_id=taken.id)["data"]["name"] == name
    assert client.named_snapshots.get(name)["data"]["snapshot_id"] == taken.id
    assert name in {each["name"] for each in client.named_snapshots.list()["data"]}
    deployed = client.named_snapshots.deploy(name)
    made = client.computers.get(deployed["data"]["id"])
    made.wait_until_ready(timeout=PATIENCE, poll_interval=0.2)
    made.destroy()
    client.named_snapshots.delete(name)
    with pytest.raises(miosa.NotFoundError):
        client.named_snapshots.get(name)
    client.snapshot_history.delete(taken.id)
