"""Coded colours: the numbers of ITU-T H.273 that stand for a colour space, as an ICC profile."""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from stae_cli.errors import InputError

Matrix = npt.NDArray[np.float64]
Point = tuple[float, float]  # chromaticity

D65, C, DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
D50 = (0.9642, 1.0, 0.8249)  # XYZ, of profiles
PRIMARIES: dict[int, tuple[Point, Point, Point, Point]] = {  # red, green, blue, white
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65),
    4: ((0.670, 0.330), (0.210, 0.710), (0.140, 0.080), C),
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060), D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), C),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), DCI),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), D65),
}
UNSPECIFIED = 2
# Pictures with the curves of television are shown with that of sRGB, as viewers do.
SRGB_CURVES = (1, 6, 13, 14, 15)
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
HIGH_RANGE = {16: "PQ", 18: "HLG"}
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


@lru_cache(maxsize=32)
def profile_of(primaries: int, transfer: int) -> bytes | None:
    """The ICC profile of a colour space; None for sRGB, and where nothing is said.

    Raises:
        InputError: it has a high dynamic range, or is not known.
    """
    if transfer in HIGH_RANGE:
        raise InputError(
            f"it has a high dynamic range ({HIGH_RANGE[transfer]}), which has no one form in sRGB: "
            "convert it to sRGB first"
        )
    primaries = 1 if primaries == UNSPECIFIED else primaries
    transfer = 13 if transfer in SRGB_CURVES or transfer == UNSPECIFIED else transfer
    if primaries not in PRIMARIES or transfer not in (13, *GAMMAS):
        raise InputError(
            f"its colours are coded as {primaries}/{transfer} of H.273, which stae does not "
            "convert: convert it to sRGB first"
        )
    if (primaries, transfer) == (1, 13):
        return None
    return _profile(_to_d50(*PRIMARIES[primaries]), _curve(transfer))


def _to_d50(red: Point, green: Point, blue: Point, white: Point) -> Matrix:
    """The matrix (3, 3) from linear RGB to XYZ with the white of profiles."""
    columns = np.array([_xyz(point) for point in (red, green, blue)]).T
    native = columns * np.linalg.solve(columns, _xyz(white))
    cones = (BRADFORD @ np.array(D50)) / (BRADFORD @ _xyz(white))
    return np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ native


def _xyz(point: Point) -> Matrix:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _curve(transfer: int) -> bytes:
    """A `para` tag: a power, or the curve of sRGB."""
    if transfer in GAMMAS:
        return struct.pack(">4sIHH", b"para", 0, 0, 0) + _numbers(GAMMAS[transfer])
    values = _numbers(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return struct.pack(">4sIHH", b"para", 0, 3, 0) + values


def _profile(matrix: Matrix, curve: bytes) -> bytes:
    """A display profile, version 4, of a matrix and one curve."""
    tags = {b"wtpt": _tag(D50)}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True):
        tags[name] = _tag(tuple(column))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    at, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, at + len(data), len(value))
        data += value
    header = struct.pack(">II", at + len(data), 0) + b"\x04\x30\0\0mntrRGB XYZ " + bytes(12)
    header += b"acsp" + bytes(28) + _numbers(*D50)
    return header.ljust(128, b"\0") + table + data


def _tag(xyz: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + _numbers(*xyz)


def _numbers(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))
