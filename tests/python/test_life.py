"""What becomes of a computer: cloned, stopped, resized, moved, started, restarted, deleted."""

import miosa
import pytest
from miosa.resources.computer import Computer

from conftest import PATIENCE


def test_a_clone_has_what_its_source_had(computer: Computer) -> None:
    computer.run("echo cloned > ~/of-the-source")
    clone = computer.clone(name="clone")
    try:
        assert clone.wait_until_idle(timeout=PATIENCE, poll_interval=0.2, idle_seconds=0.4) is clone
        assert clone.read_file("/home/user/of-the-source") == "cloned\n"
        assert clone.name == "clone"
    finally:
        clone.destroy()


def test_a_stopped_computer_is_resized_and_moved(client: miosa.Miosa) -> None:
    made = client.computers.create("traveller", env={"FROM_THE_START": "yes"})
    made.wait_until_ready(timeout=PATIENCE, poll_interval=0.2)
    assert made.run("printf %s \"$FROM_THE_START\"").stdout == "yes"
    with pytest.raises(miosa.MiosaError) as caught:
        made.resize("medium")
    assert caught.value.status_code == 409
    made.stop()
    assert made.move(region="us-east-ny") is made
    assert client._transport.request("GET", f"/computers/{made.id}")["region"] == "us-east-ny"
    with pytest.raises(miosa.MiosaError) as caught:
        made.move(region="nowhere")
    assert caught.value.status_code in (404, 422)
    # It continues where it was.
    assert made.start(env={"FOR_THIS_START": "too"}).status == "running"
    assert made.run("printf %s \"$FROM_THE_START$FOR_THIS_START\"").stdout == "yestoo"
    made.stop()
    assert made.resize("medium").data.size.value == "medium"
    client.computers.delete(made.id)
    with pytest.raises(miosa.NotFoundError):
        made.refresh()


def test_a_command_in_one_request(client: miosa.Miosa, computer: Computer) -> None:
    result = client.commands.run_computer(computer.id, "cat; pwd", cwd="/tmp", stdin="in\n", timeout_seconds=60)
    assert "in\n/tmp" in str(result["stdout"] if "stdout" in result else result["output"])
    assert result["exit_code"] == 0
    assert computer.exec.python("print(6 * 7)").stdout == "42\n"
