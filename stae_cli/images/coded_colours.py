"""Profiles of colours that are coded in numbers (ITU-T H.273): cICP of PNG, nclx of AVIF."""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError

Matrix = npt.NDArray[np.float64]

UNSPECIFIED = 2
D65, DCI, C = (0.3127, 0.329), (0.314, 0.351), (0.31, 0.316)
PRIMARIES = {  # x, y of red, green, blue and white
    1: ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06), D65),
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), C),
    5: ((0.64, 0.33), (0.29, 0.6), (0.15, 0.06), D65),
    6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), D65),
    7: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), D65),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), C),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046), D65),
    11: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), DCI),
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65),
    22: ((0.63, 0.34), (0.295, 0.605), (0.155, 0.077), D65),
}
# Those of BT.601, BT.709 and BT.2020 mean how cameras see; viewers take them as sRGB's.
AS_SRGB = (1, 6, UNSPECIFIED, 13, 14, 15)
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
HDR = {16: "PQ", 18: "HLG"}
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
D50 = (0.9642, 1.0, 0.8249)
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


@lru_cache(maxsize=32)
def profile_of(primaries: int, transfer: int, *, is_grey: bool = False) -> bytes | None:
    """The ICC profile of coded colours: empty for sRGB, None if nothing is specified.

    Raises:
        InputError: they do not fit 8-bit sRGB, or are unknown.
    """
    if primaries == transfer == UNSPECIFIED:
        return None
    if transfer in HDR:
        raise InputError(f"an HDR image ({HDR[transfer]}): map its tones and save it as sRGB")
    if primaries not in PRIMARIES and primaries != UNSPECIFIED:
        raise InputError(f"its colour primaries ({primaries}) are unknown: save it as sRGB")
    if transfer not in AS_SRGB and transfer not in GAMMAS:
        raise InputError(f"its transfer curve ({transfer}) is unknown: save it as sRGB")
    if transfer in AS_SRGB and (is_grey or primaries in (1, UNSPECIFIED)):
        return b""
    curve = _curve(GAMMAS[transfer]) if transfer in GAMMAS else _curve(*SRGB_CURVE)
    return _profile(1 if primaries == UNSPECIFIED else primaries, curve, is_grey=is_grey)


@lru_cache(maxsize=32)
def profile_of_gamma(gamma: float, *, is_grey: bool) -> bytes:
    """The ICC profile of sRGB's colours whose levels, to the power of `gamma`, are light."""
    return _profile(1, _curve(gamma), is_grey=is_grey)


def _profile(primaries: int, curve: bytes, *, is_grey: bool) -> bytes:
    if is_grey:
        return _icc(b"GRAY", [(b"kTRC", curve)])
    columns = _to_d50(PRIMARIES[primaries]).T
    tags = [
        (name + b"XYZ", _xyz(column))
        for name, column in zip((b"r", b"g", b"b"), columns, strict=True)
    ]
    return _icc(b"RGB ", [*tags, *((name + b"TRC", curve) for name in (b"r", b"g", b"b"))])


def _to_d50(corners: tuple[tuple[float, float], ...]) -> Matrix:
    """(3, 3): linear RGB of these primaries to XYZ, adapted to D50."""
    red, green, blue, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in corners)
    columns = np.stack([red, green, blue], axis=1)
    to_xyz = columns * np.linalg.solve(columns, white)
    gains = (BRADFORD @ D50) / (BRADFORD @ white)
    return np.linalg.inv(BRADFORD) @ np.diag(gains) @ BRADFORD @ to_xyz


def _curve(*numbers: float) -> bytes:
    """A power, or the parameters of a curve like sRGB's."""
    head = b"para\0\0\0\0" + struct.pack(">HH", 0 if len(numbers) == 1 else 3, 0)
    return head + b"".join(map(_fixed, numbers))


def _xyz(values: npt.ArrayLike) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, np.asarray(values).tolist()))


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _icc(space: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    """A version 4 display profile."""
    tags = [(b"wtpt", _xyz(D50)), *tags]
    place = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x", place + len(body), 0x04300000, b"mntr", space, b"XYZ ", b"acsp"
    )
    head += b"".join(map(_fixed, D50))
    return head.ljust(128, b"\0") + table + body
