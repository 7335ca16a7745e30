"""Windows, clipboard, held keys and buttons, drags, and parts of the screen."""

import struct

import miosa
import pytest
from miosa.resources.computer import Computer


def opened(computer: Computer, title: str) -> str:
    """A terminal's window, by its id. X tells xdotool when it is there; it dies of a window that goes while it looks."""
    started = computer.bash(
        f"(xfce4-terminal --title={title} >/dev/null 2>&1 &); "
        f"export title='^{title}$'; timeout 100 sh -c "
        "'until xdotool search --sync --onlyvisible --name $title windowfocus --sync >/dev/null 2>&1; do :; done'",
        timeout=110,
    )
    assert started.exit_code == 0, started.output
    [window] = [window for window in computer.windows() if window.title == title]
    return window.id


def test_windows(computer: Computer) -> None:
    first, second = opened(computer, "first"), opened(computer, "second")
    assert computer.focus_window(first).success
    focused = {window.id: window.focused for window in computer.windows()}
    assert focused[first] and not focused[second]
    assert computer.set_window_position(first, 40, 80).success
    place = computer.get_window_position(first)
    assert (place.x, place.y) == (40, 80)
    # A terminal takes whole characters: about what was asked for.
    assert computer.set_window_size(first, 500, 300).success
    size = computer.get_window_size(first)
    assert abs(size.width - 500) < 20 and abs(size.height - 300) < 30, size
    assert computer.maximize_window(first).success
    assert computer.get_window_size(first).width == 1280
    assert computer.minimize_window(first).success
    assert computer.close_window(second).success
    assert second not in [window.id for window in computer.windows()]
    with pytest.raises(miosa.NotFoundError, match="no window"):
        computer.close_window(second)
    assert computer.close_window(first).success


def test_clipboard_and_keys(computer: Computer) -> None:
    assert computer.set_clipboard("Žluťoučký 日本語 😀").success
    assert computer.get_clipboard() == computer.clipboard_get() == "Žluťoučký 日本語 😀"
    assert computer.clipboard_set("").success
    assert computer.get_clipboard() == ""
    assert computer.key_down("shift").success
    assert computer.key_up("shift").success
    assert computer.hotkey("ctrl", "shift", "Escape").success
    assert computer.wait(0.01).success


def test_buttons(computer: Computer) -> None:
    assert computer.mouse_down(300, 300).success
    assert computer.mouse_up(320, 300).success
    assert computer.drag(300, 300, 500, 400).success
    place = computer.cursor()
    assert (place.x, place.y) == (500, 400)


def test_what_kind_of_desktop_it_is(computer: Computer) -> None:
    environment = computer.get_desktop_environment()
    assert environment == computer.get_desktop_env()
    assert (environment.name, environment.session_type, environment.resolution) == ("XFCE", "x11", "1280x720")


def test_a_part_of_the_screen(computer: Computer) -> None:
    part = computer.screenshot_region(100, 100, 64, 48)
    assert part.startswith(b"\x89PNG") and struct.unpack(">II", part[16:24]) == (64, 48)


def test_accessibility_tree(computer: Computer) -> None:
    window = opened(computer, "told")
    tree = computer.get_accessibility_tree()
    assert (tree["role"], tree["truncated"]) == ("desktop frame", False)
    [shown] = [child for child in tree["children"] if child.get("window") == window]
    assert (shown["name"], shown["role"]) == ("told", "frame")
    assert shown["bounds"]["width"] > 100 and shown["children"]
    again = computer.accessibility_tree()
    assert window in [child.get("window") for child in again["children"]]
    found = computer.look(include_image=False).find("told")
    assert found is not None and found["id"] == shown["id"] and found["coordinates"]
    assert computer.close_window(window).success


def test_wallpaper(computer: Computer) -> None:
    assert computer.set_wallpaper("/usr/share/backgrounds/roost.png").success
    with pytest.raises(miosa.MiosaError, match="no file"):
        computer.set_wallpaper("/usr/share/backgrounds/none.png")
