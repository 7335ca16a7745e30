"""Variables and ports of a computer."""

import miosa
import pytest
from miosa.resources.computer import Computer


def test_variables_are_set_changed_and_taken_away(computer: Computer) -> None:
    made = computer.env.set("CONFORMANCE", "first")
    assert made["name"] == "CONFORMANCE" and "first" not in str(made)
    assert computer.bash("printf %s \"$CONFORMANCE\"").stdout == "first"
    computer.env.update("CONFORMANCE", "second")
    assert computer.bash("printf %s \"$CONFORMANCE\"").stdout == "second"
    assert len(computer.env.bulk_set({"ONE": "1", "TWO": "2"})) == 2
    listed = {each["name"]: each for each in computer.env.list()}
    assert {"CONFORMANCE", "ONE", "TWO"} <= set(listed)
    assert "second" not in str(listed), "values are not shown"
    for name in ("CONFORMANCE", "ONE", "TWO"):
        computer.env.delete(name)
    assert computer.bash("env | grep -c -e CONFORMANCE -e ^ONE= -e ^TWO=").stdout == "0\n"
    with pytest.raises(miosa.NotFoundError):
        computer.env.update("CONFORMANCE", "third")


def test_a_wrong_name_is_refused(computer: Computer) -> None:
    for name in ("1A", "A-B", ""):
        with pytest.raises(miosa.MiosaError) as caught:
            computer.env.set(name, "x")
        assert caught.value.status_code in (400, 422), name


def test_ports_are_exposed_changed_and_taken_away(computer: Computer) -> None:
    made = computer.ports.create(4321, visibility="private")
    assert (made["port"], made["visibility"]) == (4321, "private")
    assert computer.ports.update(4321, visibility="public")["visibility"] == "public"
    found = computer.ports.get(4321)
    assert found is not None and found["visibility"] == "public" and found["url"]
    assert 4321 in {each["port"] for each in computer.ports.list()}
    computer.ports.delete(4321)
    assert computer.ports.get(4321) is None
    for port in (0, 65536):
        with pytest.raises(miosa.MiosaError) as caught:
            computer.ports.create(port)
        assert caught.value.status_code == 422
