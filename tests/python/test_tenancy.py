"""Who may do what: the caller, workspaces with their members, projects, API keys and scoped tokens, tenants."""

import miosa
import pytest

from conftest import PATIENCE, URL, unique


def as_key(key: str) -> miosa.Miosa:
    return miosa.Miosa(key, base_url=URL, timeout=PATIENCE, max_retries=0)


def test_who_am_i(client: miosa.Miosa) -> None:
    me = client.account.whoami()
    assert me["role"] == "owner" and me["key_type"] == "admin" and me["is_operator"] is True
    assert client.account.whoami(tenant=me["tenant_id"])["tenant_id"] == me["tenant_id"]
    assert client.account.whoami(tenant=me["organization_slug"])["user_id"] == me["user_id"]
    with pytest.raises(miosa.MiosaError) as caught:
        client.account.whoami(tenant="nobody-s")
    assert caught.value.status_code in (403, 404)


def test_organizations(client: miosa.Miosa) -> None:
    current = client.organizations.current()["data"]
    assert current["id"] == client.account.whoami()["tenant_id"]
    assert current["id"] in {each["id"] for each in client.organizations.list()}
    switched = client.organizations.switch(current["slug"])
    assert current["id"] in str(switched)


def test_tenants_of_an_operator(client: miosa.Miosa) -> None:
    made = client._transport.request("POST", "/admin/tenants", json_body={"name": unique("brief")})["data"]
    assert made["id"] in {each["id"] for each in client.admin.list_tenants(limit=100)["data"]}
    with client.with_tenant(made["id"]) as there:
        assert there.account.whoami()["tenant_id"] == made["id"]
        assert there.computers.list() == []
    client.admin.delete_tenant(made["id"])
    assert made["id"] not in {each["id"] for each in client.admin.list_tenants()["data"]}


def test_workspaces(client: miosa.Miosa) -> None:
    name = unique("clinic")
    external = unique("clinic").replace(" ", "_")
    made = client.workspaces.create(name, description="first", external_workspace_id=external)
    assert (made.name, client.workspaces.get(made.id).name) == (name, name)
    assert made.id in {each.id for each in client.workspaces.list()}
    # Another one with the same external id is the same one.
    assert client.workspaces.create(name, external_workspace_id=external).id == made.id
    assert client.workspaces.update(made.id, description="second").name == name
    inside = client.computers.create("inside", workspace_id=made.id)
    assert [each.id for each in client.workspaces.list_computers(made.id)] == [inside.id]
    assert [each.id for each in client.computers.list(workspace_id=made.id)] == [inside.id]
    client.workspaces.delete(made.id)
    with pytest.raises(miosa.NotFoundError):
        client.workspaces.get(made.id)
    # The computer has gone to the default workspace.
    assert client.computers.get(inside.id).data.workspace_id != made.id
    client.computers.delete(inside.id)


def test_members(client: miosa.Miosa, user: str) -> None:
    workspace = client.workspaces.create(unique("ward"))
    member = client.workspace_members.add(workspace.id, user_id=user, role="member")
    assert member["user_id"] == user
    assert client.workspace_members.update_role(workspace.id, user, role="viewer")["role"] == "viewer"
    roles = {each["user_id"]: each["role"] for each in client.workspace_members.list(workspace.id)}
    assert roles == {user: "viewer", client.account.whoami()["user_id"]: "owner"}
    client.workspace_members.remove(workspace.id, user)
    assert user not in {each["user_id"] for each in client.workspace_members.list(workspace.id)}
    client.workspaces.delete(workspace.id)


def test_members_by_their_address(client: miosa.Miosa) -> None:
    tenant = client.account.whoami()["tenant_id"]
    email = f"{unique('nurse').replace(' ', '-')}@example.org"
    body = {"name": "nurse", "email": email}
    user = client._transport.request("POST", f"/admin/tenants/{tenant}/users", json_body=body)["data"]["id"]
    workspace = client.workspaces.create(unique("ward"))
    members = client.workspaces(workspace.id).members
    assert members.invite(email, role="member")["user_id"] == user
    assert user in {each["user_id"] for each in members.list()}
    assert members.update_role(user, "viewer")["role"] == "viewer"
    members.remove(user)
    assert user not in {each["user_id"] for each in members.list()}
    client.workspaces.delete(workspace.id)


def test_projects(client: miosa.Miosa) -> None:
    workspace, other = (client.workspaces.create(unique(name)) for name in ("ward", "other ward"))
    made = client.projects.create("Records", workspace_id=workspace.id, description="first", metadata={"a": "b"})
    assert client.projects.get(made["id"])["workspace_id"] == workspace.id
    assert client.projects.update(made["id"], name="Files", description="second")["name"] == "Files"
    assert [each["id"] for each in client.projects.list(workspace_id=workspace.id)] == [made["id"]]
    assert client.projects.summary(made["id"])
    client.projects.move(made["id"], other.id)
    assert client.projects.get(made["id"])["workspace_id"] == other.id
    assert client.projects.list(workspace_id=workspace.id) == []
    client.projects.delete(made["id"])
    with pytest.raises(miosa.NotFoundError):
        client.projects.get(made["id"])
    for each in (workspace, other):
        client.workspaces.delete(each.id)


def test_keys(client: miosa.Miosa) -> None:
    made = client.api_keys.create(name="reader", scopes=["computers:read"])
    assert made["id"] in {each["id"] for each in client.api_keys.list()}
    assert "key" not in client.api_keys.get(made["id"]), "a key is shown once"
    with as_key(made["key"]) as reader:
        reader.computers.list()
        with pytest.raises(miosa.MiosaError) as caught:
            reader.computers.create("not allowed")
        assert (caught.value.status_code, caught.value.code) == (403, "insufficient_scope")
    assert client.api_keys.update(made["id"], name="another name")["name"] == "another name"
    rotated = client.api_keys.rotate(made["id"])
    assert rotated["key"] != made["key"]
    with as_key(made["key"]) as old, pytest.raises(miosa.AuthenticationError):
        old.computers.list()
    with as_key(rotated["key"]) as new:
        new.computers.list()
    client.api_keys.delete(rotated["id"])
    with as_key(rotated["key"]) as gone, pytest.raises(miosa.AuthenticationError):
        gone.computers.list()


def test_key_presets_and_what_happens_to_a_key(client: miosa.Miosa) -> None:
    name = unique("preset").replace(" ", "-")
    client.api_keys.create_preset(name=name, scopes=["computers:read"])
    assert name in {each["name"] for each in client.api_keys.presets()}
    client.api_keys.delete_preset(name)
    assert name not in {each["name"] for each in client.api_keys.presets()}
    made = client.api_keys.create(name="watched")
    client.api_keys.update(made["id"], name="renamed")
    assert [each["type"] for each in client.api_keys.events(made["id"])] == ["changed", "created"]
    client.api_keys.delete(made["id"])


def test_a_quota_of_an_end_user_holds(client: miosa.Miosa) -> None:
    user = unique("patient")
    assert client.quotas.set(user, max_sandboxes=0, max_concurrent=2)["max_sandboxes"] == 0
    assert client.quotas.get(user)["max_concurrent"] == 2
    made = client.api_keys.create_scoped(external_user_id=user, scopes=["computers:read", "computers:write"])
    with as_key(made["key"]) as theirs, pytest.raises(miosa.PermissionError) as caught:
        theirs.computers.create("one too many")
    assert caught.value.code == "QUOTA_EXCEEDED"
    client.quotas.delete(user)
    assert client.quotas.get(user)["max_sandboxes"] is None
    client.api_keys.delete(made["id"])


def test_a_workspace_has_a_policy_and_gives_computers_away(client: miosa.Miosa) -> None:
    source, target = (client.workspaces.create(unique(name)) for name in ("ward", "lab"))
    computer = client.computers.create("box", workspace_id=source.id)
    policy = client.workspaces(target.id).policy
    assert policy.set({"max_computers": 0})["max_computers"] == 0
    with pytest.raises(miosa.PermissionError) as caught:
        client.workspaces(source.id).transfer([computer.id], target.id)
    assert caught.value.code == "QUOTA_EXCEEDED"
    policy.delete()
    assert policy.get()["max_computers"] is None
    assert client.workspaces(source.id).transfer([computer.id], target.id)["transferred"] == [computer.id]
    assert [each.id for each in client.workspaces.list_computers(target.id)] == [computer.id]
    client.computers.delete(computer.id)
    for each in (source, target):
        client.workspaces.delete(each.id)


def test_the_plan_is_that_of_a_server_of_ones_own(client: miosa.Miosa) -> None:
    assert client.tenant.current()["plan"] == "self-hosted"


def test_a_tenant_has_a_domain_for_its_previews(client: miosa.Miosa) -> None:
    domain = client.tenant.preview_domain
    # Nobody has this name: it leads nowhere.
    set_ = domain.set("previews.invalid")
    assert (set_["domain"], set_["verified_at"]) == ("previews.invalid", None)
    assert domain.get()["cname_target"] == set_["cname_target"]
    checked = domain.verify()
    assert checked["verified_at"] is None and "has no address" in checked["problem"]
    domain.delete()
    assert domain.get()["domain"] is None


def test_settings_and_branding_are_kept(client: miosa.Miosa) -> None:
    assert client.settings.update(time_zone="UTC") == {"time_zone": "UTC"}
    assert client.settings.get() == {"time_zone": "UTC"}
    assert client.settings.update() == {}
    assert client.settings.update_branding(product_name="Ward") == {"product_name": "Ward"}
    assert client.tenant.branding.get() == client.settings.get_branding() == {"product_name": "Ward"}
    assert client.tenant.branding.set({"product_name": "Lab"}) == {"product_name": "Lab"}
    client.tenant.branding.delete()
    assert client.settings.get_branding() == {}


def test_a_client_that_asks_first_is_told(client: miosa.Miosa) -> None:
    known = next(each for each in client.authority.catalog() if each["name"] == "computer.create")
    assert client.authority.authorize(known, surface="mcp")["data"]["decision"] == "allow"
    assert client.authority.authorize({"name": "computer.fly"})["data"]["decision"] == "deny"


def test_a_key_for_an_end_user_reaches_what_is_theirs(client: miosa.Miosa) -> None:
    made = client.api_keys.create_scoped(external_user_id="patient-1", scopes=["computers:read", "computers:write"])
    with as_key(made["key"]) as theirs:
        assert theirs.computers.list() == []
        computer = theirs.computers.create("theirs")
        assert [each.id for each in theirs.computers.list()] == [computer.id]
        assert computer.id in {each.id for each in client.computers.list()}
        assert client._transport.request("GET", f"/computers/{computer.id}")["external_user_id"] == "patient-1"
        theirs.computers.delete(computer.id)
    client.api_keys.delete(made["id"])


def test_scoped_tokens(client: miosa.Miosa, user: str) -> None:
    workspace = client.workspaces.create(unique("ward"))
    client.workspace_members.add(workspace.id, user_id=user)
    made = client.tokens.create_scoped(user_id=user, workspace_id=workspace.id, expires_in_seconds=600)
    assert made["id"] in {each["id"] for each in client.tokens.list_scoped()}
    with as_key(made["token"]) as theirs:
        assert theirs.computers.list() == []
    client.tokens.delete_scoped(made["id"])
    with as_key(made["token"]) as gone, pytest.raises(miosa.AuthenticationError):
        gone.computers.list()
    client.workspaces.delete(workspace.id)
