"""What the official client can ask for: every method of it, and the route it asks for first.

Each method is called once with made-up arguments on a transport that answers nothing and writes down what was asked.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import miosa
from miosa.resources.computer import Computer
from miosa.types import Computer as ComputerData

#: Any computer.
ID = "550e8400-e29b-41d4-a716-446655440000"
#: The base address is no part of a route.
PREFIX = "/api/v1"


class _Asked(BaseException):
    """Ends a method once it is known what it asks for."""


class Method:
    """A method of the client, by its path from there."""

    def __init__(self, path: str, owner: type, name: str, asked: list[tuple[str, str]]) -> None:
        self.path = path
        self.owner = owner
        self.name = name
        #: Method and path of its first request, if it makes one.
        self.first = asked[0] if asked else None


def _argument(parameter: inspect.Parameter) -> Any:
    text = str(parameter.annotation)
    for word, value in (("Dict", {"a": "b"}), ("dict", {"a": "b"}), ("List", ["a"]), ("list", ["a"])):
        if word in text:
            return value
    if "str" in text:
        return "x"
    for word, value in (("int", 3000), ("float", 1.0), ("bool", True)):
        if word in text:
            return value
    return "x"


def _call(method: Callable[..., Any]) -> None:
    positional, named = [], {}
    for parameter in inspect.signature(method).parameters.values():
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        if parameter.kind == parameter.KEYWORD_ONLY:
            named[parameter.name] = _argument(parameter)
        else:
            positional.append(_argument(parameter))
    result = method(*positional, **named)
    if inspect.iscoroutine(result):
        result.close()
    elif hasattr(result, "__next__"):
        next(result)


def methods() -> Iterator[Method]:
    """All of them, of a client and of a computer."""
    asked: list[tuple[str, str]] = []

    def note(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path.removeprefix(PREFIX)))
        raise _Asked

    client = miosa.Miosa("msk_u_x", base_url="http://roost.invalid")
    transport = client._transport
    transport._client = httpx.Client(base_url=transport._base_url, transport=httpx.MockTransport(note))
    computer = Computer(transport, ComputerData(id=ID, name="x", status="running"))

    def walk(thing: Any, path: str) -> Iterator[Method]:
        for name in dir(thing):
            if name.startswith("_") or name in ("close", "with_tenant"):
                continue
            value = getattr(thing, name)
            if inspect.ismethod(value):
                asked.clear()
                try:
                    _call(value)
                except (_Asked, Exception):  # whatever it makes of such arguments; what counts is what it asked
                    pass
                owner = next(each for each in type(thing).__mro__ if name in vars(each))
                yield Method(f"{path}.{name}", owner, name, list(asked))
            elif type(value).__module__.startswith("miosa.resources.") and path.count(".") < 3:
                yield from walk(value, f"{path}.{name}")

    yield from walk(client, "client")
    # What is made by a call, for one workspace and for one end user.
    yield from walk(client.workspaces("x"), "client.workspaces()")
    yield from walk(client.external_users("x"), "client.external_users()")
    yield from walk(computer, "computer")


class Routes:
    """The routes of an OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.known = [
            (method.upper(), re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)) + "$"))
            for path, operations in document["paths"].items()
            for method in operations
        ]

    def has(self, method: str, path: str) -> bool:
        return any(method == known and pattern.match(PREFIX + path) for known, pattern in self.known)
