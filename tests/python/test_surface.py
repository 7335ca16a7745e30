"""The conformance tests leave nothing of the official client out: each method of it that asks for a route of ours is
called by a test, and each other one is listed with its reason in unserved.py. The asynchronous client asks for the same.
"""

import inspect
import json
from pathlib import Path

import miosa
from miosa.resources.computer import AsyncComputer
from miosa.types import Computer as ComputerData

from conftest import CALLED
from surface import ID, PREFIX, Method, Routes, methods
from unserved import SILENT, UNSERVED

DOCUMENT = json.loads((Path(__file__).parents[2] / "openapi.json").read_text(encoding="utf-8"))
ROUTES = Routes(DOCUMENT)
METHODS = list(methods())
#: Ask for a route of ours. A path that is listed by itself is not one, even where a parameter would take its name.
SERVED = [
    method
    for method in METHODS
    if method.first is not None and ROUTES.has(*method.first) and method.first[1] not in UNSERVED
]


#: What the client forgot.
ONLY_SYNCHRONOUS = {"client.workspaces.list_computers"}


def listed(method: Method) -> bool:
    if method.first is None:
        return any(method.path == entry or method.path.startswith(entry + ".") for entry in SILENT)
    path = method.first[1].replace(ID, "{id}")
    if path.startswith("/computers/x"):
        path = "/computers/{id}" + path.removeprefix("/computers/x")
    return any(path.startswith(entry) for entry in UNSERVED)


def is_called(method: Method) -> bool:
    return (method.owner, method.name) in CALLED


def test_every_method_that_is_not_served_is_listed_with_its_reason() -> None:
    others = [method for method in METHODS if method not in SERVED and not is_called(method)]
    unlisted = [f"{method.path}: {method.first}" for method in others if not listed(method)]
    assert not unlisted, "\n".join(unlisted)


def test_every_served_method_is_called_by_a_test() -> None:
    missed = [f"{method.path}: {method.first}" for method in SERVED if not is_called(method)]
    assert len(SERVED) > 150, "the introspection finds next to nothing"
    assert not missed, "\n".join(missed)


def test_what_is_listed_is_there_and_not_served() -> None:
    asked = [method.first[1].replace(ID, "{id}") for method in METHODS if method.first is not None]
    asked += [path.replace("/computers/x", "/computers/{id}") for path in asked]
    nothing = [entry for entry in UNSERVED if not any(path.startswith(entry) for path in asked)]
    assert not nothing, f"the client asks for nothing of that: {nothing}"
    assert not [entry for entry in UNSERVED if PREFIX + entry in DOCUMENT["paths"]]


def test_the_asynchronous_client_asks_for_the_same() -> None:
    """Every method that is served has a twin with the same arguments and the same first request."""
    different = []
    client = miosa.AsyncMiosa("msk_u_x", base_url="http://roost.invalid")
    computer = AsyncComputer(client._transport, ComputerData(id=ID, name="x", status="running"))
    roots = {"client": client, "computer": computer}
    for method in SERVED:
        root, *way = method.path.split(".")
        twin = roots[root]
        for name in way:
            twin = getattr(twin, name.removesuffix("()"), None)
            if name.endswith("()"):
                twin = twin("x")
        if twin is None and method.path in ONLY_SYNCHRONOUS:
            continue
        if twin is None:
            different.append(f"{method.path}: there is none")
            continue
        wanted = list(inspect.signature(getattr(method.owner, method.name)).parameters)[1:]
        if list(inspect.signature(twin).parameters) != wanted:
            different.append(f"{method.path}: {list(inspect.signature(twin).parameters)} instead of {wanted}")
    assert not different, "\n".join(different)
