"""PCD, as the Point Cloud Library writes it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim_pointcloud.columns import NAMES, from_fields
from mim_pointcloud.files_shape import Shape
from mim_pointcloud.limits import check_end, check_numbers

LARGEST_POINT = 1 << 16
"""Bytes of one point."""


def read_pcd(path: Path) -> Shape:
    """PCD 0.7: ascii, binary or binary_compressed; rgb packed into one number is taken apart. Points with NaN for x, y
    and z are left out: so a depth camera's picture says that it saw nothing there.

    Raises:
        ValueError: The header is missing, lacks an entry, is damaged, or contradicts itself.
    """
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    start = re.search(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", data, re.MULTILINE)
    if start is None:
        raise ValueError("it has no PCD header that ends in DATA")
    header: dict[str, list[str]] = {}
    for line in data[: start.start()].decode("latin-1").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
    missing = [name for name in ("FIELDS", "TYPE", "SIZE") if name not in header]
    if missing or not ({"POINTS"} <= set(header) or {"WIDTH", "HEIGHT"} <= set(header)):
        raise ValueError(f"its header has no {missing[0] if missing else 'POINTS'}")
    names, kinds = header["FIELDS"], [kind.lower() for kind in header["TYPE"]]
    counts = [int(count) for count in header.get("COUNT", ["1"] * len(names))]
    if any(not 0 < count < LARGEST_POINT for count in counts) or sum(counts) > LARGEST_POINT:
        raise ValueError(f"its header is damaged: COUNT {' '.join(map(str, counts))[:60]}")
    columns = [(f"{name} {at}", f"<{kind}{size}", (count,)) for at, (name, kind, size, count)
               in enumerate(zip(names, kinds, header["SIZE"], counts, strict=True))]  # fmt: skip
    if {"POINTS", "WIDTH", "HEIGHT"} <= set(header):
        points, width, height = (int(header[name][0]) for name in ("POINTS", "WIDTH", "HEIGHT"))
        if points != width * height:
            raise ValueError(f"its header says {width} x {height} points, and then {points}")
    points = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    if points < 0:
        raise ValueError(f"its header says {points} points")
    table = _pcd_rows(data[start.end() :], start.group(1).decode().lower(), np.dtype(columns), points)
    fields: dict[str, NDArray[Any]] = {}
    for name, column in zip(names, columns, strict=True):
        if name in ("rgb", "rgba"):
            packed = np.ascontiguousarray(table[column[0]][:, 0]).view(np.uint32)
            fields |= {colour: (packed >> at & 255).astype(np.uint8) for colour, at in zip("rgb", (16, 8, 0))}  # noqa: B905
        elif name != "_":
            fields[name] = table[column[0]][:, 0]
    places = [values for name, values in fields.items() if name.lower() in NAMES["xyz"] and values.dtype.kind == "f"]
    seen = ~np.logical_and.reduce([np.isnan(values) for values in places]) if len(places) == 3 else slice(None)
    return from_fields({name: values[seen] for name, values in fields.items()})


def _pcd_rows(body: bytes, coding: str, kind: np.dtype[Any], points: int) -> NDArray[Any]:
    if coding == "ascii":
        if points > len(body):
            raise ValueError(f"it is cut off: its header says {points} points, {len(body)} bytes follow")
        check_numbers(points, max(len(kind.names or ()), kind.itemsize // 8))
        text = io.TextIOWrapper(io.BytesIO(body), encoding="latin-1")
        flat = np.loadtxt(text, dtype=kind, ndmin=1, max_rows=points + 1)
        if len(flat) != points:
            raise ValueError(f"its header says {points} points, {len(flat)} follow")
        return flat
    needs = points * kind.itemsize
    if coding == "binary":
        check_end(len(body), needs)
        check_numbers(points, max(len(kind.names or ()), kind.itemsize // 8))
        return np.frombuffer(body, kind, points)
    if coding != "binary_compressed":
        raise ValueError(f"DATA {coding} is not known; ascii, binary and binary_compressed are")
    if len(body) < 8:
        raise ValueError("it is cut off: its packed data has no sizes")
    packed, whole = (int(size) for size in np.frombuffer(body[:8], "<u4"))
    if whole != needs:
        raise ValueError(f"its packed data says {whole} bytes, its {points} points need {needs}")
    check_end(len(body), 8 + packed)
    check_numbers(points, max(len(kind.names or ()), kind.itemsize // 8))
    plain, rows, at = _unpack(body[8 : 8 + packed], whole), np.empty(points, kind), 0
    for name in kind.names or ():
        field = kind[name]
        rows[name] = np.frombuffer(plain, field.base, points * field.shape[0], at).reshape(points, -1)
        at += points * field.itemsize
    return rows


def _unpack(packed: bytes, size: int) -> bytes:
    """LZF, as liblzf describes it: runs of bytes as they are, and copies of earlier ones that may overlap."""
    out, at = bytearray(), 0
    while at < len(packed) and len(out) <= size:
        code = packed[at]
        at += 1
        if code < 32:
            out += packed[at : at + code + 1]
            at += code + 1
            continue
        length = code >> 5
        if length == 7:
            length += packed[at]
            at += 1
        back = ((code & 31) << 8 | packed[at]) + 1
        at += 1
        if back > len(out):
            raise ValueError("its packed data is broken")
        start = len(out) - back
        piece = bytes(out[start : start + length + 2])
        out += (piece * ((length + 2) // back + 1))[: length + 2]
    if len(out) != size:
        raise ValueError("its packed data is broken")
    return bytes(out)
