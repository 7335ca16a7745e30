"""Runs in a terminal inside the guest and reports what reached it.

Prints nothing to look at: it switches the terminal to raw input with mouse reports, collects what arrives,
and on F12 writes the list as one line of JSON into the named pipe given as its argument, then starts over.
It writes an empty list first, to say that it runs. Input events are ordered, so everything sent before F12 is
in the list, with no waiting and no guessing.
"""

import codecs
import json
import os
import re
import sys
import tty

MOUSE = re.compile(r"\x1b\[<(\d+);(\d+);(\d+)([Mm])")
KEY = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])")
END = "\x1b[24~"


def main() -> None:
    pipe = sys.argv[1]
    tty.setraw(0)
    os.write(1, b"\x1b[?1000h\x1b[?1006h")
    answer(pipe, [])
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = ""
    while data := os.read(0, 4096):
        pending += decoder.decode(data)
        while END in pending:
            batch, pending = pending.split(END, 1)
            answer(pipe, events(batch))


def events(batch: str) -> list[list[object]]:
    """Splits what a terminal sends into `["mouse", button, column, line, pressed]`, `["key", bytes]` and `["text", text]`."""
    found: list[list[object]] = []
    at = 0
    while at < len(batch):
        if mouse := MOUSE.match(batch, at):
            button, column, line = (int(group) for group in mouse.groups()[:3])
            found.append(["mouse", button, column, line, mouse[4] == "M"])
            at = mouse.end()
        elif key := KEY.match(batch, at):
            found.append(["key", key[0]])
            at = key.end()
        else:
            if not (found and found[-1][0] == "text"):
                found.append(["text", ""])
            found[-1][1] += batch[at]
            at += 1
    return found


def answer(pipe: str, found: list[list[object]]) -> None:
    columns, lines = os.get_terminal_size(0)
    with open(pipe, "w", encoding="utf-8") as out:
        out.write(json.dumps({"columns": columns, "lines": lines, "events": found}) + "\n")


main()
