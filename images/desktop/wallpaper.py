"""Draws the wallpaper: a clear evening sky over three ridges, as a PNG, with the standard library only."""

import math
import struct
import sys
import zlib

WIDTH, HEIGHT = 1280, 720
SKY = [(0.00, (18, 32, 66)), (0.45, (52, 84, 140)), (0.75, (226, 144, 116)), (1.00, (250, 205, 150))]
# baseline (part of the height), swing (pixels), waves over the width, phase, colour
RIDGES = [
    (0.70, 46, 1.3, 0.4, (70, 82, 128)),
    (0.79, 38, 1.9, 2.1, (42, 54, 96)),
    (0.89, 30, 2.6, 4.0, (22, 30, 60)),
]


def mix(a, b, t):
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b))


def sky(y):
    t = y / (HEIGHT * 0.85)
    for (t0, c0), (t1, c1) in zip(SKY, SKY[1:]):
        if t <= t1:
            return mix(c0, c1, (t - t0) / (t1 - t0))
    return SKY[-1][1]


def top(ridge, x):
    base, swing, waves, phase, _ = ridge
    a = 2 * math.pi * waves * x / WIDTH + phase
    return HEIGHT * base + swing * (0.7 * math.sin(a) + 0.3 * math.sin(2.7 * a + 1))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


tops = [[top(ridge, x) for x in range(WIDTH)] for ridge in RIDGES]
rows = bytearray()
for y in range(HEIGHT):
    rows.append(0)
    background = sky(y)
    for x in range(WIDTH):
        colour = background
        for ridge, line in zip(RIDGES, tops):
            cover = min(max(y - line[x] + 0.5, 0.0), 1.0)
            if cover > 0:
                colour = mix(colour, ridge[4], cover)
        rows += bytes(colour)

with open(sys.argv[1], "wb") as out:
    out.write(b"\x89PNG\r\n\x1a\n")
    out.write(chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)))
    out.write(chunk(b"IDAT", zlib.compress(bytes(rows), 9)))
    out.write(chunk(b"IEND", b""))
