"""Clouds as files."""

from __future__ import annotations

import colorsys

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


def ply(points: Float[Tensor, "P C"], parts: Int[Tensor, " P"] | None = None) -> bytes:
    """A binary PLY of the first three channels; with parts, a colour for each and its number as ``part``."""
    places = np.ascontiguousarray(points[:, :3].cpu().float().numpy())
    columns = [(name, "<f4") for name in ("x", "y", "z")]
    if parts is not None:
        columns += [("red", "u1"), ("green", "u1"), ("blue", "u1"), ("part", "<i4")]
    rows = np.zeros(len(places), np.dtype(columns))
    for axis, name in enumerate("xyz"):
        rows[name] = places[:, axis]
    if parts is not None:
        numbers = parts.cpu().numpy()
        shades = np.array([colour_of(int(number)) for number in numbers], np.uint8)
        for channel, name in enumerate(("red", "green", "blue")):
            rows[name] = shades[:, channel]
        rows["part"] = numbers
    kinds = {"<f4": "float", "u1": "uchar", "<i4": "int"}
    properties = "".join(f"property {kinds[kind]} {name}\n" for name, kind in columns)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    return head.encode() + rows.tobytes()


def colour_of(part: int) -> tuple[int, int, int]:
    """Red, green and blue from 0 to 255: hues a golden angle apart."""
    red, green, blue = colorsys.hsv_to_rgb(part * 0.618034 % 1, 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
