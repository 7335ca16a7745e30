"""Our own OpenAPI document, taken at its word.

For each of its routes requests are made up from what it says, most of them about things that are there; each answer must
be one that it declares: its status, its content type, its body. No answer is a 5xx, except where a route declares it.
And every route must be seen to succeed, so that nothing is tested on refusals alone.

ROOST_URL and ROOST_API_KEY say where. The requests are the same in every run.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from examples import NO_SUCCESS, examples
from world import HEADERS, PATIENCE, URL, World, api, parameters, text

DOCUMENT = json.loads(requests.get(f"{URL}/openapi.json", timeout=PATIENCE).text)
COMMITTED = json.loads((Path(__file__).parents[2] / "openapi.json").read_text(encoding="utf-8"))

#: Made up for each route, beside those of examples.py.
REQUESTS = 12

CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]

#: What a route may answer with a 5xx that it declares: the host is full, or nothing listens in the computer.
DECLARED_FAILURES = {"NO_READY_MACHINE", "PORT_UNAVAILABLE"}

schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.update(base_url=URL)
schema.config.phases.coverage.enabled = False



@schemathesis.serializer("application/x-tar")
def as_it_is(_context: Any, value: Any) -> bytes:
    """An archive is bytes; whatever else was made up is sent as its text."""
    return value if isinstance(value, bytes) else text(value).encode()


#: The statuses that were seen of each route.
seen: dict[str, set[int]] = defaultdict(set)


@pytest.fixture(scope="session")
def world() -> World:
    return World()


def declared(case: schemathesis.Case) -> dict[str, Any]:
    return case.operation.definition.raw["responses"]


def send(case: schemathesis.Case) -> requests.Response:
    """The answer; of a stream that goes on for ever, the head."""
    arguments = case.as_transport_kwargs(base_url=URL, headers=HEADERS)
    with requests.request(**arguments, stream=True, timeout=PATIENCE, allow_redirects=False) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            answer._content = b""
        else:
            answer.content
    return answer


def tidy(answer: requests.Response) -> None:
    """A computer that was made is in nobody's way for long."""
    if answer.status_code == 201 and "application/json" in answer.headers.get("content-type", ""):
        made = answer.json()
        computer = made.get("computer", made)
        if isinstance(computer, dict) and "desktop_url" in computer:
            api("DELETE", f"/computers/{computer['id']}", statuses=(200, 404))


def exchange(case: schemathesis.Case) -> requests.Response:
    answer = send(case)
    name = f"{case.method} {case.path}"
    seen[name].add(answer.status_code)
    tidy(answer)
    # What is declared as `default` is an error.
    assert answer.status_code >= 400 or str(answer.status_code) in declared(case), f"{name}: {answer.status_code}"
    checks = CHECKS
    if str(answer.status_code) not in declared(case):
        checks = [not_a_server_error, *CHECKS]
    elif answer.status_code >= 500:
        assert answer.json()["code"] in DECLARED_FAILURES, f"{name}: {answer.text}"
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        assert answer.status_code == 200, f"{name}: a stream with {answer.status_code}"
        assert "text/event-stream" in declared(case)["200"]["content"], f"{name}: a stream that is not declared"
        return answer
    assert answer.headers.get("x-request-id"), f"{name}: an answer without an id"
    case.validate_response(answer, checks=checks)
    return answer


def with_ids(case: schemathesis.Case, world: World, always: bool) -> dict[str, Any]:
    """The parameters of the path: those of things that are there, or now and then what was made up."""
    made_up = case.path_parameters or {}
    digest = hashlib.sha256(text([made_up, case.query, case.body]).encode()).digest()
    if not always and digest[0] % 4 == 0:
        return made_up
    found = {name: world.value(case.method, case.path, name) for name in parameters(case.path)}
    return made_up | {name: value for name, value in found.items() if value is not None}


def test_the_server_says_what_is_committed() -> None:
    assert DOCUMENT == COMMITTED


@schema.parametrize()
@settings(
    max_examples=REQUESTS,
    derandomize=True,
    database=None,
    deadline=None,
    # Nothing is shrunk: each request costs, and what failed is told as it was.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_declared(case: schemathesis.Case, world: World) -> None:
    name = f"{case.method} {case.path}"
    if name not in seen:
        world.prepare()
        seen[name] = set()
        good(case.operation, world)
    case.path_parameters = with_ids(case, world, always=False)
    exchange(case)


def good(operation: Any, world: World) -> None:
    """The requests that are known to succeed."""
    name = f"{operation.method.upper()} {operation.path}"
    for example in examples(world).get(name, [{}]):
        case = operation.Case(
            path_parameters={each: "x" for each in parameters(operation.path)},
            **{part: value() if callable(value) else value for part, value in example.items()},
        )
        case.path_parameters = with_ids(case, world, always=True)
        if name == "DELETE /api/v1/computers/{id}":
            case.path_parameters = {"id": world.computer("leaves")}
        exchange(case)


def test_every_route_was_seen_to_succeed() -> None:
    missed = []
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if method == "parameters":
                continue
            name = f"{method.upper()} {path}"
            wanted = {int(status) for status in operation["responses"] if status.isdigit() and int(status) < 400}
            if not wanted & seen[name] and name not in NO_SUCCESS:
                missed.append(f"{name}: {sorted(seen[name])}")
    assert not missed, "\n".join(missed)
