"""ICC profiles made by code (ICC.1:2022): matrix, grey and table profiles for the tests."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Linear RGB to D50 XYZ (Bradford-adapted), from the RGB spaces' published primaries.
ADOBE = [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
PROPHOTO = [[0.79767, 0.13519, 0.03135], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82491]]
SRGB = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]]
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def _text(kind: bytes, text: bytes) -> bytes:
    if kind == b"text":
        return b"text" + bytes(4) + text + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78)


def gamma(value: float) -> bytes:
    """curveType with one number."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256)) + bytes(2)


def sampled(points: Floats) -> bytes:
    """curveType with a table."""
    levels = np.round(points * 65535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", len(points)) + levels


def parametric(function: int, *values: float) -> bytes:
    return b"para" + bytes(4) + struct.pack(">HH", function, 0) + _fixed(*values)


def profile(space: bytes, pcs: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    white = b"XYZ " + bytes(4) + _fixed(0.9642, 1.0, 0.8249)
    tags = {b"desc": _text(b"desc", b"made"), b"cprt": _text(b"text", b"none"), **tags}
    tags = {**tags, b"wtpt": white}
    body, table = b"", b""
    start = 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sI4s4sQI12s4s44s",
        start + len(body), b"none", 0x02400000, kind, space, pcs,
        struct.pack(">6H", 2024, 1, 1, 0, 0, 0), b"acsp", b"", 0, b"", b"", 0, 1,
        _fixed(0.9642, 1.0, 0.8249), b"", b"",
    )  # fmt: skip
    return header + struct.pack(">I", len(tags)) + table + body


def matrix_profile(matrix: list[list[float]], curve: bytes) -> bytes:
    tags = {
        name: b"XYZ " + bytes(4) + _fixed(*(row[c] for row in matrix))
        for c, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    return profile(
        b"RGB ", b"XYZ ", b"mntr", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    )


def grey_profile(curve: bytes) -> bytes:
    return profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": curve})


def _lut(there: Callable[[Floats], Floats], inputs: int, outputs: int, nodes: int) -> bytes:
    """lut16Type: a grid of `nodes` per input, straight curves at both ends."""
    axes = np.meshgrid(*[np.linspace(0, 1, nodes)] * inputs, indexing="ij")
    grid = there(np.stack(axes, axis=-1).reshape(-1, inputs))
    levels = np.round(np.clip(grid, 0, 1) * 65535).astype(">u2").tobytes()
    straight = struct.pack(">HH", 0, 65535)
    head = b"mft2" + bytes(4) + struct.pack(">BBBx", inputs, outputs, nodes)
    head += _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">HH", 2, 2)
    return head + straight * inputs + levels + straight * outputs


def _lab(rgb: Floats) -> Floats:
    """SRGB values to Lab as lut16Type stores it: L over 100, a and b offset, in 65280ths."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(SRGB).T / (0.9642, 1.0, 0.8249)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)
    return (lab * (1 / 100, 1 / 255, 1 / 255) + (0, 128 / 255, 128 / 255)) * (65280 / 65535)


def _unlab(stored: Floats) -> Floats:
    lab = (stored * (65535 / 65280) - (0, 128 / 255, 128 / 255)) * (100, 255, 255)
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (116 * f - 16) * 27 / 24389) * (0.9642, 1.0, 0.8249)
    linear = np.clip(xyz @ np.linalg.inv(np.array(SRGB)).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def cmyk_profile(*, two_way: bool = True) -> bytes:
    """Inks whose sum is sRGB as (1 - cmy)(1 - k), by tables both ways or one."""

    def there(inks: Floats) -> Floats:
        return _lab((1 - inks[:, :3]) * (1 - inks[:, 3:]))

    def back(stored: Floats) -> Floats:
        rgb = _unlab(stored)
        light = rgb.max(axis=1, keepdims=True)
        return np.hstack([1 - rgb / np.maximum(light, 1e-6), 1 - light])

    tags = {b"A2B0": _lut(there, 4, 3, 9)}
    if two_way:
        tags[b"B2A0"] = _lut(back, 3, 4, 21)
    return profile(b"CMYK", b"Lab ", b"prtr", tags)


def table_profile(*, two_way: bool = True) -> bytes:
    """RGB whose red and blue are swapped, by tables; with or without a way back."""
    tags = {b"A2B0": _lut(lambda rgb: _lab(rgb[:, ::-1]), 3, 3, 33)}
    if two_way:
        tags[b"B2A0"] = _lut(lambda lab: _unlab(lab)[:, ::-1], 3, 3, 33)
    return profile(b"RGB ", b"Lab ", b"prtr" if two_way else b"scnr", tags)
