"""Requests that a document cannot say how to write: what makes each route answer as it does when all is well.

What is not here succeeds with any values, or with none.
"""

import io
import tarfile
from typing import Any

from world import OF, World

#: Routes whose success no request of HTTP alone can bring about, or that would end the test.
NO_SUCCESS = {
    "GET /api/v1/computers/{id}/exec/spawn": "a WebSocket",
    "GET /api/v1/computers/{id}/exec/stream": "a WebSocket",
    "GET /api/v1/computers/{id}/exec/ws": "a WebSocket",
    "GET /api/v1/computers/{id}/tunnel/{port}": "a WebSocket",
    "POST /api/v1/computers/{id}/restart": "boots for half a minute; the official client's tests do it",
}


def archive() -> bytes:
    """A tar archive of one file."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as written:
        entry = tarfile.TarInfo("unpacked")
        entry.size = 4
        written.addfile(entry, io.BytesIO(b"text"))
    return whole.getvalue()


def examples(world: World) -> dict[str, list[dict[str, Any]]]:
    """By method and path: `body` and `query` of requests that succeed, or what makes them when they are needed."""
    spot = {"x": 20, "y": 30}
    part = {"x": 20, "y": 30, "width": 40, "height": 50}
    where = {"path": "/workspace/contract"}
    file = {"path": "/workspace/contract/file"}
    key = {"name": "made here"}
    domain = {"domain": "previews.invalid"}
    new = {"name": "brief", "template_type": "miosa-desktop"}
    of = OF

    def bodies(*each: Any) -> list[dict[str, Any]]:
        return [{"body": body} for body in each]

    def queries(*each: Any) -> list[dict[str, Any]]:
        return [{"query": query} for query in each]

    return {
        "POST /api/v1/admin/tenants": bodies({"name": "third"}),
        "PATCH /api/v1/admin/tenants/{tid}": bodies({"name": "another name"}),
        "POST /api/v1/admin/tenants/{tid}/keys": bodies(key),
        "POST /api/v1/admin/tenants/{tid}/users": bodies({"name": "somebody"}),
        "PATCH /api/v1/admin/tenants/{tid}/users/{uid}": bodies({"name": "another"}),
        "POST /api/v1/api-keys": bodies(key, {"name": "made here", "scopes": ["computers:read"]}),
        "POST /api/v1/api-keys/scoped": bodies(
            {"name": "made here", "scopes": ["computers:read"], "external_user_id": "theirs"}
        ),
        "PATCH /api/v1/api-keys/{kid}": bodies({"name": "another name"}),
        "POST /api/v1/tokens/scoped": bodies({"user_id": world.colleague, "workspace_id": world.used["wid"]}),
        "POST /api/v1/computers": bodies(new),
        "PUT " + of: bodies({"metadata": {"a": 1}}),
        "PATCH " + of: bodies({"agent_session_id": "session"}),
        f"POST {of}/apps": bodies({"apps": ["geany"]}),
        f"PATCH {of}/auto-stop": bodies({"auto_stop_seconds": 3600}),
        f"POST {of}/clone": bodies({}),
        f"POST {of}/commands": bodies({"command": "true"}),
        f"POST {of}/desktop/accessibility/action": bodies(
            lambda: {"id": world.element(), "action": "press"}
        ),
        f"GET {of}/desktop/accessibility/find": queries({"role": "button"}),
        f"GET {of}/desktop/accessibility-tree": queries({"format": "compact"}, {"limit": 20}, {"depth": 2}),
        f"POST {of}/desktop/actions": bodies(
            {"actions": [{"type": "move", **spot}]},
            {"actions": [{"type": "key", "key": "Escape"}], "screenshot": {"format": "webp", "quiet_ms": 0}},
            {"actions": [{"type": "wait_until_settled", "quiet_ms": 10, "timeout_ms": 50}]},
        ),
        f"POST {of}/desktop/click": bodies(spot),
        f"POST {of}/desktop/double-click": bodies(spot),
        f"POST {of}/desktop/hotkey": bodies({"keys": ["ctrl", "shift", "Escape"]}),
        f"POST {of}/desktop/key": bodies({"key": "Escape"}),
        f"POST {of}/desktop/launch": bodies({"app": "xfce4-terminal"}),
        f"POST {of}/desktop/move": bodies(spot),
        f"GET {of}/desktop/screenshot/region": queries(part),
        f"POST {of}/desktop/screenshot/region": bodies(part),
        f"POST {of}/desktop/scroll": bodies({"direction": "down"}),
        f"POST {of}/desktop/type": bodies({"text": "a"}),
        f"POST {of}/desktop/wait": bodies({"seconds": 0.01}, {"ms": 10}),
        f"PUT {of}/desktop/screen-size": bodies({"width": 1280, "height": 720}),
        f"POST {of}/desktop/wallpaper": bodies({"path": "/usr/share/backgrounds/roost.png"}),
        f"POST {of}/desktop/window/focus": bodies(lambda: {"window_id": world.window()}),
        f"POST {of}/desktop/window/{{wid}}/move": bodies(spot),
        f"POST {of}/desktop/window/{{wid}}/resize": bodies({"width": 400, "height": 300}),
        f"POST {of}/env": bodies({"name": "MADE_HERE", "value": "1"}, {"name": "MADE_HERE", "value": "2"}),
        f"PATCH {of}/env/{{name}}": bodies({"value": "3"}),
        f"POST {of}/exec": bodies({"command": "true"}, {"command": "false"}),
        f"POST {of}/exec/python": bodies({"code": "print(1)"}),
        f"POST {of}/exec/stream": bodies({"command": "echo streamed"}),
        f"GET {of}/exec/stream/events": [{"query": lambda: {"ticket": world.output_ticket()}}],
        f"POST {of}/files/mkdir": bodies(where | {"recursive": True}),
        f"POST {of}/files/write": bodies(file | {"content": "text"}),
        f"POST {of}/files/write-many": bodies({"files": [file | {"content": "text"}]}),
        f"POST {of}/files/chmod": bodies(file | {"mode": "644"}),
        f"POST {of}/files/copy": bodies({"from": file["path"], "to": "/workspace/contract/copy"}),
        f"POST {of}/files/rename": bodies({"from": "/workspace/contract/old", "to": "/workspace/contract/new"}),
        f"POST {of}/files/export": bodies(file),
        f"POST {of}/files/stat": bodies(file),
        f"GET {of}/files/stat": queries(file),
        f"GET {of}/files": queries(where),
        f"GET {of}/files/list": queries(where),
        f"GET {of}/files/readdir": queries(where),
        f"GET {of}/files/read": queries(file),
        f"GET {of}/files/download": queries(file, where | {"archive": "zip"}, where | {"archive": "tar"}),
        f"GET {of}/files/search": queries(where | {"name": "file"}),
        f"GET {of}/files/watch": queries(where),
        f"PUT {of}/files/archive": [{"query": where, "body": archive()}],
        f"PUT {of}/files/content": [
            {"query": file, "body": b"whole"},
            {"query": file | {"upload_id": "upload-1", "offset": 0, "total": 9}, "body": b"half"},
        ],
        f"GET {of}/files/uploads/{{name}}": queries(file),
        f"DELETE {of}/files/uploads/{{name}}": queries(file),
        f"POST {of}/files/upload": [{"body": {"path": "/workspace/contract/uploaded", "file": b"content"}}],
        f"DELETE {of}/files": queries({"path": "/workspace/contract/removed"}),
        f"GET {of}/metrics": queries({}, {"window": "24h"}),
        f"POST {of}/move": bodies({"region": "us-east-ny"}, {"region": "local"}),
        f"POST {of}/resize": bodies({"size": "medium"}),
        f"PATCH {of}/resize": bodies({"size": "small"}),
        f"POST {of}/ports": bodies({"port": 3000}, {"port": 3000, "visibility": "public"}),
        f"PATCH {of}/ports/{{port}}": bodies({"visibility": "protected"}),
        f"POST {of}/pty/{{session_id}}/resize": bodies({"cols": 90, "rows": 30}),
        f"POST {of}/shares": bodies({"kind": "link", "role": "viewer"}),
        f"POST {of}/snapshots": bodies({}),
        f"POST {of}/start": bodies({}),
        f"POST {of}/viewer-session": bodies(lambda: {"password": world.password()}),
        "POST /api/v1/credits/grants": bodies({"tenant_id": world.used["tid"], "credits": 5}),
        "POST /api/v1/named-snapshots": bodies({"name": "made-here", "snapshot_id": world.used["sid"]}),
        "POST /api/v1/projects": bodies({"name": "made here"}),
        "PATCH /api/v1/projects/{pid}": bodies({"name": "another name"}),
        "POST /api/v1/projects/{pid}/move": bodies({"target_workspace_id": world.used["wid"]}),
        "POST /api/v1/snapshots/delete": bodies({"ids": [world.spare["sid"]]}),
        "GET /api/v1/snapshots/{sid}/files": queries({"path": "/etc/hostname"}, {"path": "/etc/xdg"}),
        "GET /api/v1/snapshots/{sid}/tree": queries({"path": "/etc"}),
        "POST /api/v1/webhooks": bodies({"url": "https://example.org/", "events": ["computer.*"], "active": False}),
        "PATCH /api/v1/webhooks/{wid}": bodies({"name": "another name"}),
        "POST /api/v1/workspaces": bodies({"name": "made here"}),
        "PATCH /api/v1/workspaces/{wid}": bodies({"name": "another name"}),
        "POST /api/v1/workspaces/{wid}/members": bodies({"user_id": world.colleague, "role": "member"}),
        "PATCH /api/v1/workspaces/{wid}/members/{user_id}": bodies({"role": "viewer"}),
        "POST /api/v1/api-keys/presets": bodies({"name": "made-here", "scopes": ["computers:read"]}),
        "PUT /api/v1/quotas/external/{external_user_id}": bodies({"max_concurrent": 100}),
        "PUT /api/v1/workspaces/{wid}/policy": bodies({"max_computers": 100}),
        "POST /api/v1/workspaces/{wid}/transfer": bodies(
            lambda: {"resource_ids": [world.placed()], "target_workspace_id": world.another_workspace()}
        ),
        "PUT /api/v1/workspaces/{wid}/settings": bodies({"colour": "red"}),
        "PUT /api/v1/tenant/preview-domain": bodies(domain),
        "PUT /api/v1/workspaces/{wid}/preview-domain": bodies(domain),
        "PUT /api/v1/projects/{pid}/preview-domain": bodies(domain),
        "POST /api/v1/tenant/preview-domain/verify": queries(lambda: world.domain("/tenant")),
        "GET /api/v1/workspaces/{wid}/preview-domain/verify": queries(
            lambda: world.domain(f"/workspaces/{world.used['wid']}")
        ),
        "GET /api/v1/projects/{pid}/preview-domain/verify": queries(
            lambda: world.domain(f"/projects/{world.used['pid']}")
        ),
        "PUT /api/v1/settings": bodies({"colour": "red"}),
        "PUT /api/v1/settings/branding": bodies({"colour": "red"}),
        "PUT /api/v1/tenant/branding": bodies({"colour": "red"}),
        "POST /api/v1/actions/authorize": bodies({"capability": {"name": "computer.create"}}),
    }
