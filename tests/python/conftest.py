"""What the conformance tests share: a client, a computer, and the list of the client's methods that were called.

ROOST_URL and ROOST_API_KEY say where.
"""

import functools
import importlib
import inspect
import os
import pkgutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import miosa
import miosa.client
import miosa.resources
import pytest
from miosa.resources.computer import Computer

URL = os.environ["ROOST_URL"]
API_KEY = os.environ["ROOST_API_KEY"]

#: Seconds. An emulated guest on a busy machine boots slowly; nothing here waits longer than it must.
PATIENCE = 240.0

#: Class and name of each method that has returned, or yielded, something.
CALLED: set[tuple[type, str]] = set()


def _noted(owner: type, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            for each in function(*args, **kwargs):
                CALLED.add((owner, name))
                yield each

        return generate

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        CALLED.add((owner, name))
        return result

    return call


def _watch() -> None:
    """Lets each public method of the synchronous client note that it was called. Nothing else of it is changed."""
    modules = [miosa.client]
    for found in pkgutil.walk_packages(miosa.resources.__path__, "miosa.resources."):
        modules.append(importlib.import_module(found.name))
    for module in modules:
        for _, owner in inspect.getmembers(module, inspect.isclass):
            if owner.__module__ != module.__name__:
                continue
            for name, value in list(vars(owner).items()):
                if not name.startswith("_") and inspect.isfunction(value):
                    setattr(owner, name, _noted(owner, name, value))


_watch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What was called is known at the end.
    items.sort(key=lambda item: item.path.name == "test_surface.py")
    # The introspection of the client calls everything.
    CALLED.clear()


@pytest.fixture(scope="session")
def client() -> Iterator[miosa.Miosa]:
    with miosa.Miosa(API_KEY, base_url=URL, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="session")
def computer(client: miosa.Miosa) -> Iterator[Computer]:
    """A computer that runs; who changes that brings it back."""
    made = client.computers.create(unique("conformance"), template_type="miosa-desktop", size="small")
    try:
        yield made.wait_until_ready(timeout=PATIENCE, poll_interval=0.2)
    finally:
        made.destroy()


@pytest.fixture(scope="session")
def user(client: miosa.Miosa) -> str:
    """A second user of the tenant, whom the client has no method to make."""
    tenant = client.account.whoami()["tenant_id"]
    made = client._transport.request("POST", f"/admin/tenants/{tenant}/users", json_body={"name": unique("colleague")})
    return made["data"]["id"]


def unique(name: str) -> str:
    return f"{name} {uuid.uuid4().hex[:8]}"
