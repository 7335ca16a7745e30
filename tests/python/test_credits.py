"""Credits and usage, of a tenant whose credits are counted."""

import miosa

from conftest import PATIENCE, unique


def test_credits_are_spent_by_running(client: miosa.Miosa) -> None:
    made = client._transport.request("POST", "/admin/tenants", json_body={"name": unique("paying")})["data"]
    grant = {"tenant_id": made["id"], "credits": 1000, "description": "to begin with"}
    client._transport.request("POST", "/credits/grants", json_body=grant)
    with client.with_tenant(made["id"]) as there:
        balance = there.get_balance()
        assert (balance.balance, balance.tenant_id) == (1000, made["id"])
        earned = there.get_transactions().data
        assert [(each.type, each.amount) for each in earned] == [("earn", 1000)]
        assert there.get_usage().total == 0
    client.admin.delete_tenant(made["id"])


def test_usage_of_a_computer_that_has_run(client: miosa.Miosa) -> None:
    computer = client.computers.create("meter").wait_until_ready(timeout=PATIENCE, poll_interval=0.2)
    computer.run("sleep 2")
    computer.stop()
    used = client.usage.get(group_by="workspace_id")
    workspaces = {each["workspace_id"]: each for each in used["results"]}
    assert workspaces[computer.data.workspace_id]["computer_seconds"] >= 2
    assert client.usage.get(period="7d")["period_start"] > client.usage.get(period="30d")["period_start"]
    for summary in (client.usage.current(), client.usage.report(used["period_start"], used["period_end"])):
        assert summary["compute_hours"] >= 0
    sessions = client.usage.sessions(computer_id=computer.id)
    assert sessions and {each["computer_id"] for each in sessions} == {computer.id}
    assert sessions[0]["ended_at"] is not None and sessions[0]["duration_sec"] >= 2
    computer.destroy()
