"""What the requests of the contract test are about: one of every kind of thing that a path can name, really there.

Requests with ids that somebody made up would all end at 404. Of each kind there are two: one to work with, and one that
a DELETE may have.
"""

import json
import os
import re
import time
from typing import Any

import requests

URL = os.environ["ROOST_URL"]
API_KEY = os.environ["ROOST_API_KEY"]
HEADERS = {"Authorization": f"Bearer {API_KEY}"}

#: Seconds. An emulated guest on a busy machine is slow; nothing here waits longer than it must.
PATIENCE = 120.0

OF = "/api/v1/computers/{id}"
#: These are of a computer that is stopped, and leave it so or are told that they cannot.
OF_A_STOPPED_ONE = (f"{OF}/start", f"{OF}/restart", f"{OF}/move")

#: What the requests about files find.
FILES = "mkdir -p /workspace/contract; cd /workspace/contract; echo text | tee file old copied removed"


def api(method: str, path: str, body: Any = None, statuses: tuple[int, ...] = (200, 201, 202)) -> Any:
    """A request that must succeed."""
    answer = requests.request(method, f"{URL}/api/v1{path}", headers=HEADERS, json=body, timeout=PATIENCE)
    assert answer.status_code in statuses, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json()


class World:
    """Ids by the names that parameters of paths have; `spare` is what may be deleted."""

    def __init__(self) -> None:
        self.running = self.computer("runs")
        self.stopped = self.computer("stands still")
        #: Has another size than its memory, and is never started.
        self.resized = self.computer("grows")
        self.tenant = api("GET", "/whoami")["data"]["tenant_id"]
        self.colleague = self.user("colleague")
        self.used = self.things()
        self.spare = self.things()
        api("POST", f"/computers/{self.running}/exec", {"command": FILES})
        for computer in (self.stopped, self.resized):
            api("POST", f"/computers/{computer}/stop", {})
        for things in (self.used, self.spare):
            things["did"] = self.delivery(things["webhook"])

    def computer(self, name: str) -> str:
        made = api("POST", "/computers?wait=100", {"name": name, "template_type": "miosa-desktop"})
        assert made["status"] == "running", made
        return made["id"]

    def user(self, name: str) -> str:
        return api("POST", f"/admin/tenants/{self.tenant}/users", {"name": name})["data"]["id"]

    def things(self) -> dict[str, str]:
        """One of each, made anew."""
        number = f"{time.time_ns():x}"
        computer = f"/computers/{self.running}"
        tenant = api("POST", "/admin/tenants", {"name": f"other {number}"})["data"]["id"]
        workspace = api("POST", "/workspaces", {"name": f"shop {number}"})["id"]
        member = self.user("member")
        api("POST", f"/workspaces/{workspace}/members", {"user_id": member, "role": "member"})
        project = api("POST", "/projects", {"name": f"till {number}", "workspace_id": workspace})["data"]["id"]
        # Nobody listens there, and nothing is tried twice.
        hook = {"url": "http://127.0.0.1:9/", "events": ["computer.*"], "retry_count": 0}
        hook = api("POST", "/webhooks", hook)["data"]["id"]
        token = {"user_id": member, "workspace_id": workspace}
        port = 1024 + int(number, 16) % 60_000
        api("POST", f"{computer}/ports", {"port": port, "visibility": "private"})
        name = f"VARIABLE_{number.upper()}"
        api("POST", f"{computer}/env", {"name": name, "value": "secret"})
        share = api("POST", f"{computer}/shares", {"kind": "link", "role": "viewer"})
        return {
            "tid": tenant,
            "tenant_key": api("POST", f"/admin/tenants/{tenant}/keys", {"name": "theirs"})["data"]["id"],
            "kid": api("POST", "/api-keys", {"name": f"key {number}"})["data"]["id"],
            "scoped": api("POST", "/tokens/scoped", token)["data"]["id"],
            "uid": self.user("other"),
            "user_id": member,
            "wid": workspace,
            "pid": project,
            "webhook": hook,
            "port": str(port),
            "variable": name,
            "share_id": share["data"]["id"],
            "token": share["share_url"].rsplit("/", 1)[1],
            "session_id": api("POST", f"{computer}/terminal", {})["session_id"],
            "sid": self.snapshot(),
            "another_sid": self.snapshot(),
            "name": self.named(number),
            "preset": self.preset(number),
        }

    def preset(self, number: str) -> str:
        made = {"name": f"preset-{number}", "scopes": ["computers:read"]}
        return api("POST", "/api-keys/presets", made)["data"]["name"]

    def domain(self, owner: str) -> dict[str, str]:
        """Gives an owner a domain, and says what a request to verify it says: nothing."""
        api("PUT", f"{owner}/preview-domain", {"domain": "previews.invalid"})
        return {}

    def another_workspace(self) -> str:
        return api("POST", "/workspaces", {"name": f"another {time.time_ns():x}"})["id"]

    def placed(self) -> str:
        """A computer in the workspace that is worked with."""
        made = {"name": "placed", "template_type": "miosa-desktop", "workspace_id": self.used["wid"]}
        return api("POST", "/computers?wait=100", made)["id"]

    def delivery(self, hook: str) -> str:
        """Of the event that a computer was stopped."""
        until = time.monotonic() + PATIENCE
        while not (rows := api("GET", f"/webhooks/{hook}/deliveries")["data"]):
            assert time.monotonic() < until, "no delivery"
            time.sleep(0.1)
        return rows[0]["id"]

    def password(self) -> str:
        """Of the viewer, and a new one."""
        return api("POST", f"/computers/{self.running}/viewer-password/rotate", {})["viewer_password"]

    def output_ticket(self) -> str:
        """What opens the output of a command; for once."""
        return api("POST", f"/computers/{self.running}/exec/stream", {"command": "echo streamed"})["ticket"]

    def window(self) -> str:
        """Of some program on the screen; a new one where all were closed."""
        computer = f"/computers/{self.running}"
        while not (windows := api("GET", f"{computer}/desktop/windows")):
            # X tells when it is there.
            shown = "timeout 100 xdotool search --sync --onlyvisible --class xfce4-terminal"
            line = f"(xfce4-terminal >/dev/null 2>&1 &); {shown}"
            api("POST", f"{computer}/exec", {"command": line, "timeout": 110})
        return windows[0]["id"]

    def element(self) -> str:
        """A button of the panel that opens nothing."""
        found = api("GET", f"/computers/{self.running}/desktop/accessibility/find?role=toggle+button&name=show+desktop")
        return found["elements"][0]["id"]

    def snapshot(self) -> str:
        path = f"/computers/{self.running}/snapshots"
        made = api("POST", path, {})["data"]["id"]
        # Ends with the snapshot's work.
        requests.get(f"{URL}/api/v1{path}/{made}/events", headers=HEADERS, timeout=PATIENCE)
        state = api("GET", f"{path}/{made}")["data"]
        assert state["status"] == "ready", state
        return made

    def named(self, number: str) -> str:
        name = f"name-{number}"
        api("POST", "/named-snapshots", {"name": name, "snapshot_id": self.snapshot()})
        return name

    def prepare(self) -> None:
        """Both computers are as they should be, whatever the last requests did to them."""
        for computer, wanted, verb in ((self.running, "running", "start"), (self.stopped, "stopped", "stop")):
            found = api("GET", f"/computers/{computer}")
            if found["status"] != wanted:
                changed = api("POST", f"/computers/{computer}/{verb}", {}, (200, 409))
                assert verb == "start" or changed.get("status") == wanted, changed
            if found["auto_stop"] != 0:
                api("PATCH", f"/computers/{computer}/auto-stop", {"auto_stop_seconds": 0})

    def value(self, method: str, path: str, parameter: str) -> str | None:
        """What a parameter of a path is to be, for a request that finds something."""
        things = self.spare if method == "DELETE" else self.used
        match parameter:
            case "id" if path == OF and method == "DELETE":
                return None
            case "id" if path in OF_A_STOPPED_ONE:
                return self.stopped
            case "id" if path == f"{OF}/resize":
                return self.resized
            case "id":
                return self.running
            case "tid" if "{uid}" in path or path.endswith("/users"):
                return self.tenant
            # The other one may be gone by then.
            case "tid" if "/keys" in path:
                return self.used["tid"]
            case "kid" if "/admin/" in path:
                return self.used["tenant_key"]
            case "kid" if "/tokens/" in path:
                return things["scoped"]
            case "wid" if "/webhooks/" in path:
                return things["webhook"]
            case "wid" if "/desktop/window/" in path:
                return self.window()
            # The other one is gone by then.
            case "wid" if "{user_id}" in path or path.endswith(("/policy", "/preview-domain")):
                return self.used["wid"]
            case "pid" if path.endswith("/preview-domain"):
                return self.used["pid"]
            # A member by then.
            case "user_id":
                return self.colleague if method == "DELETE" else self.used["user_id"]
            case "sid" if path.startswith("/api/v1/snapshots/"):
                return things["another_sid"]
            case "name" if "/env/" in path:
                return things["variable"]
            case "name" if "/presets/" in path:
                return things["preset"]
            case "name" if "/regions/" in path:
                return "local"
            case "name" if "/templates/" in path:
                return "miosa-desktop"
            case "name" if "/uploads/" in path:
                return "upload-1"
        return things.get(parameter)


def parameters(path: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", path)


def text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
