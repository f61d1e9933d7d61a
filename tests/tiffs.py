"""TIFFs by hand: every depth, layout and compression, as other programs write them."""

from __future__ import annotations

import struct
import zlib

import numpy as np

PACK = {1: "B", 2: "s", 3: "H", 4: "I", 16: "Q"}


def tiff_of(
    samples,
    bits=8,
    photometric=None,
    *,
    order="<",
    big=False,
    compression=1,
    predictor=1,
    planar=1,
    tile=None,
    rows=None,
    extra=(),
    format=None,  # noqa: A002
    fill=1,
    **tags,
):
    """One page of unsigned (H, W, samples per pixel) samples as they are stored.

    Args:
        samples: what is stored.
        bits: of a sample.
        photometric: 2 for three and more samples, otherwise 1.
        order: `<` or `>`.
        big: a BigTIFF.
        compression: 1 none, 5 LZW, 8 deflate, 32773 packbits.
        predictor: 2 for differences.
        planar: 2 for separate planes.
        tile: the side of tiles; strips otherwise.
        rows: of a strip; all by default.
        extra: ExtraSamples.
        format: SampleFormat.
        fill: 2 for bytes whose bits are reversed.
        tags: others, as `t330=(kind, values)`.
    """
    samples = np.atleast_3d(samples)
    height, width, count = samples.shape
    photometric = (2 if count > 2 else 1) if photometric is None else photometric
    entries = {256: (4, width), 257: (4, height), 258: (3, [bits] * count), 259: (3, compression),
               262: (3, photometric), 277: (3, count), 284: (3, planar)}  # fmt: skip
    optional = {317: (3, predictor, 1), 338: (3, list(extra), []), 339: (3, format, None)}
    entries |= {tag: entry[:2] for tag, entry in optional.items() if entry[1] != entry[2]}
    entries |= {266: (3, 2)} if fill == 2 else {}
    entries |= {322: (4, tile), 323: (4, tile)} if tile else {278: (4, rows or height)}
    entries |= {int(name[1:]): entry for name, entry in tags.items()}
    planes = [samples[..., n : n + 1] for n in range(count)] if planar == 2 else [samples]
    segments = [
        _segment(part, bits, order, compression, predictor, fill)
        for plane in planes
        for part in _parts(plane, tile, rows or height)
    ]
    return file_of([(entries, segments)], order=order, big=big, tiled=bool(tile))


def file_of(pages, *, order="<", big=False, tiled=False):
    """A TIFF of pages, each its entries {tag: (kind, values)} and its segments."""
    word, size = ("Q", 20) if big else ("I", 12)
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0) if big else (42,)), 0)
    body, links = bytearray(head), [len(head) - struct.calcsize(word)]
    for given, segments in pages:
        entries, offsets = dict(given), []
        for segment in segments:
            offsets.append(len(body))
            body += segment + bytes(len(segment) % 2)
        places = (324, 325) if tiled else (273, 279)
        entries[places[0]] = (16 if big else 4, offsets)
        entries[places[1]] = (16 if big else 4, [len(segment) for segment in segments])
        table = struct.pack(order + ("Q" if big else "H"), len(entries))
        start = len(body)
        behind = bytearray()
        end = start + len(table) + size * len(entries) + struct.calcsize(word)
        for tag, (kind, values) in sorted(entries.items()):
            values = values if isinstance(values, (list, tuple, bytes)) else [values]
            if kind in (2, 7):
                data, n = bytes(values), len(values)
            elif kind == 5:
                data = b"".join(struct.pack(order + "II", *value) for value in values)
                n = len(values)
            else:
                data, n = struct.pack(order + PACK[kind] * len(values), *values), len(values)
            room = struct.calcsize(word)
            if len(data) > room:
                place = end + len(behind)
                behind += data + bytes(len(data) % 2)
                data = struct.pack(order + word, place)
            table += struct.pack(order + "HH" + word, tag, kind, n) + data.ljust(room, b"\0")
        struct.pack_into(order + word, body, links[-1], start)
        links.append(start + len(table))
        body += table + bytes(struct.calcsize(word)) + behind
    return bytes(body)


def _parts(plane, tile, rows):
    height, width = plane.shape[:2]
    if not tile:
        return [plane[y : y + rows] for y in range(0, height, rows)]
    padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    return [
        padded[y : y + tile, x : x + tile]
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]


def _segment(part, bits, order, compression, predictor, fill):
    values = part.astype(np.uint64)
    if predictor == 2:
        before = np.pad(values, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        values = (values - before) & np.uint64(2**bits - 1)
    data = _packed(values.reshape(len(values), -1), bits, order)
    if compression == 5:
        data = _lzw(data)
    elif compression == 8:
        data = zlib.compress(data)
    elif compression == 32773:
        data = b"".join(
            bytes([len(data[n : n + 128]) - 1]) + data[n : n + 128]
            for n in range(0, len(data), 128)
        )
    if fill == 2:
        data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
    return data


def _packed(values, bits, order):
    if bits in (8, 16, 32, 64):
        return values.astype(f"{order}u{bits // 8}").tobytes()
    if bits == 24:
        parts = values.astype(f"{order}u4").view(np.uint8).reshape(*values.shape, 4)
        return (parts[..., :3] if order == "<" else parts[..., 1:]).tobytes()
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    flags = (values[..., None] >> shifts) & np.uint64(1)
    return np.packbits(flags.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def _lzw(data):
    """Literals, and a clear code before codes would need a tenth bit."""
    codes = []
    for n, byte in enumerate(data):
        codes += [256] * (n % 200 == 0) + [byte]
    text = "".join(f"{code:09b}" for code in [*codes, 257])
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
