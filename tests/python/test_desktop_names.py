"""The other names under which the client drives a desktop. What they do is in test_miosa_client.py."""

import base64
import shlex

from miosa.resources.computer import Computer


def test_where_the_pointer_is(computer: Computer) -> None:
    for move in (computer.move_mouse, computer.move_cursor):
        assert move(200, 300).success
    for position in (computer.cursor(), computer.cursor_position(), computer.get_cursor_position()):
        assert (position.x, position.y) == (200, 300)


def test_clicks_and_keys(computer: Computer) -> None:
    assert computer.left_click(10, 10).success
    assert computer.right_click(640, 500).success
    assert computer.double_click(640, 360).success
    assert computer.press("Escape").success
    assert computer.write("a").success
    for scroll in (computer.scroll_up, computer.scroll_down, computer.scroll_left, computer.scroll_right):
        assert scroll().success


def test_what_is_to_be_seen(computer: Computer) -> None:
    size = computer.get_screen_size()
    assert (size.width, size.height) == (1280, 720)
    assert base64.b64decode(computer.screenshot_base64()).startswith(b"\x89PNG")
    look = computer.look(include_tree=False)
    assert (look.width, look.height) == (1280, 720)
    assert look.image_base64 is not None and base64.b64decode(look.image_base64).startswith(b"\x89PNG")


def test_actions_by_name(computer: Computer) -> None:
    for action, parameters in (
        ("left_click", {"coordinate": [200, 200]}),
        ("scroll", {"scroll_direction": "down", "scroll_amount": 1}),
        ("key", {"text": "Escape"}),
        ("type", {"text": "a"}),
        ("mouse_move", {"coordinate": [400, 300]}),
    ):
        assert computer.act(action, parameters).ok, action
    position = computer.act("cursor_position")
    assert position.ok and position.coordinates is not None
    assert computer.act("screenshot").image_base64


def test_a_program_is_launched(computer: Computer) -> None:
    assert computer.launch("xfce4-terminal").success
    # A search that meets a window which goes away fails; the next one does not.
    search = "until xdotool search --onlyvisible --class xfce4-terminal 2>/dev/null; do sleep 0.5; done"
    shown = computer.bash(f"timeout 200 bash -c {shlex.quote(search)}", timeout=210)
    assert shown.exit_code == 0, shown.output
