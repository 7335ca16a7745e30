"""Ways to the live desktop: addresses with a token, and the viewer password."""

import time
from urllib.parse import parse_qs, urlsplit

import miosa
import pytest
from miosa.resources.computer import Computer


def test_an_embed_is_an_address_with_a_token(computer: Computer) -> None:
    embed = computer.embed()
    assert (embed["computer_id"], embed["view_only"], embed["mode"]) == (computer.id, False, "desktop")
    assert embed["url"] == embed["embed_url"]
    address = urlsplit(embed["url"])
    assert address.path == "/desktop/index.html"
    assert parse_qs(address.fragment)["auth"] == [embed["token"]]
    assert time.time() < embed["expires_at"] <= time.time() + embed["ttl_seconds"] + 1


def test_a_viewer_may_only_watch_for_as_long_as_was_asked(computer: Computer) -> None:
    viewer = computer.viewer_url(ttl_seconds=120, view_only=True)
    assert viewer.view_only is True
    assert viewer.url is not None and urlsplit(viewer.url).path == "/desktop/index.html"
    assert viewer.expires_at is not None and viewer.expires_at.timestamp() <= time.time() + 121
    assert computer.viewer_url(view_only=False).view_only is False
    with pytest.raises(miosa.MiosaError) as caught:
        computer.viewer_url(ttl_seconds=0)
    assert caught.value.status_code in (400, 422)


def test_a_password_is_shown_once(client: miosa.Miosa, computer: Computer) -> None:
    first = computer.rotate_viewer_password()
    assert first["viewer_password"] and first["computer_id"] == computer.id
    known = computer.viewer_password()
    assert known["viewer_password_set"] is True and "viewer_password" not in known
    second = client.computers.rotate_viewer_password(computer.id)
    assert second["viewer_password"] != first["viewer_password"]
    assert client.computers.viewer_password(computer.id)["viewer_password_set_at"] >= known["viewer_password_set_at"]


def test_waiting_for_the_desktop_gives_a_way_to_it(computer: Computer) -> None:
    assert computer.wait_for_desktop()["url"]
    assert computer.wait_for_desktop(vnc=True)["ws_url"]


def test_a_preview_address_is_that_of_the_port(computer: Computer) -> None:
    exposed = computer.ports.create(8123, visibility="public")
    host = urlsplit(exposed["url"]).hostname
    assert host is not None and host.startswith("8123-") and computer.slug in host
    assert urlsplit(computer.preview_url(8123, "/path")).path == "/path"
    computer.ports.delete(8123)
