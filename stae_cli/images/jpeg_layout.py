"""The segments of a JPEG: what is missing among them, and the file without what does no harm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# Patterns begin with one literal byte, which `re` finds twenty times as fast as `\xff+`.
MARKER = re.compile(rb"\xff[^\x00\xff]", re.S)
END_OF_SCAN = re.compile(rb"\xff(?![\x00\xff\xd0-\xd7])", re.S)
RESTART = re.compile(rb"\xff[\xd0-\xd7]")

SOI, EOI, SOS, DQT, DNL, COM, APP0, APP14 = 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xFE, 0xE0, 0xEE
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1, 0xC9)
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
WITHOUT_BODY = (0x01, SOI, *range(0xD0, 0xD8))
HARMLESS = (DNL, COM, *range(0xE0, 0xF0))
JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"
OVERWRITTEN = re.compile(rb"\0{16,}[^\0]")  # zeros alone are padding; here a segment's end follows
BANDS = 64  # coefficients of a block


class Segment(NamedTuple):
    """A marker and what it holds; of a scan also the entropy-coded data that follow it."""

    kind: int
    body: bytes
    junk: bytes = b""  # in front of the marker
    scan: bytes = b""


class Layout:
    """The segments of a JPEG up to its end.

    Args:
        data: the file.
        briefly: only up to the first scan's data, if the file has no other scan.
    """

    def __init__(self, data: bytes, *, briefly: bool = False) -> None:
        self.segments: list[Segment] = []
        self._frame = Segment(0, b"")
        self._read(data, briefly)
        body = self._frame.body
        # The quantisation table of each component, by the component's name.
        self._components = {body[at]: body[at + 2] for at in range(6, len(body) - 2, 3)}

    def _read(self, data: bytes, briefly: bool) -> None:
        place = 2
        while found := MARKER.search(data, place):
            kind, junk = data[found.start() + 1], data[place : found.start()]
            place = found.end()
            if kind == EOI:
                return
            if kind in WITHOUT_BODY:
                continue
            size = max(2, int.from_bytes(data[place : place + 2]))
            body, scan = data[place + 2 : place + size], b""
            place += size
            if kind in FRAMES:
                self._frame = Segment(kind, body)
            if kind == SOS:
                if briefly and self._frame.kind in SEQUENTIAL and body[:1] == self._frame.body[5:6]:
                    self.segments.append(Segment(kind, body, junk))
                    return
                end = END_OF_SCAN.search(data, place)
                stop = end.start() if end else len(data)
                scan, place = data[place:stop].rstrip(b"\xff"), stop
            self.segments.append(Segment(kind, body, junk, scan))

    @property
    def is_lossless(self) -> bool:
        return self._frame.kind in LOSSLESS

    def fault(self, *, to_the_last_bit: bool = False) -> str | None:
        """What is missing in files that libjpeg does not complain about; None if nothing is.

        Args:
            to_the_last_bit: whether the scans must send all bits of all coefficients.
        """
        if not self._zero_tables().isdisjoint(self._components.values()):
            return "a quantisation table was overwritten"
        for segment in self.segments:
            if segment.junk and OVERWRITTEN.match(segment.junk):
                return "a segment was overwritten"
            if segment.kind == SOS:
                break
        for bits in self._unsent_bits().values():
            if bits[0] is None:
                return "a colour component is missing"
            if to_the_last_bit and any(bit != 0 for bit in bits):
                return "the last scans are missing"
        return None

    def _zero_tables(self) -> set[int]:
        """Quantisation tables with a zero, which no encoder writes."""
        zeros = set()
        for segment in self.segments:
            body = segment.body if segment.kind == DQT else b""
            while body:
                wide, table = body[0] >> 4, body[0] & 15
                size = BANDS << bool(wide)
                values = body[1 : 1 + size]
                if 0 in (memoryview(values).cast("H") if wide and len(values) == size else values):
                    zeros.add(table)
                else:
                    zeros.discard(table)
                body = body[1 + size :]
        return zeros

    def _unsent_bits(self) -> dict[int, list[int | None]]:
        """How many bits of each component's coefficients no scan has sent yet; None if all."""
        unsent: dict[int, list[int | None]]
        unsent = {name: [None] * BANDS for name in self._components}
        for body in (each.body for each in self.segments if each.kind == SOS):
            names, (first, last, bits) = body[1:-3:2], body[-3:] if len(body) > 5 else (0, 0, 0)
            if self._frame.kind in (*SEQUENTIAL, *LOSSLESS):
                first, last, bits = 0, BANDS - 1, 0
            for name in names:
                if name in unsent:
                    unsent[name][first : last + 1] = [bits & 15] * (min(last, 63) + 1 - first)
        return unsent

    def rewritten(self, *, strip_zeros: bool = False, filler: bytes = b"") -> bytes:
        """The file without junk between segments, comments and the like, with an end.

        Args:
            strip_zeros: also without the zeros that some encoders append to a scan.
            filler: is appended to each scan, and to the data before each restart marker.
        """
        parts = [b"\xff\xd8"]
        for segment in self.segments:
            body = self._kept(segment)
            if body is None:
                continue
            parts += [bytes((0xFF, segment.kind)), (len(body) + 2).to_bytes(2), body]
            parts += _intervals(segment.scan, strip_zeros, filler)
        return b"".join([*parts, b"\xff\xd9"])

    def _kept(self, segment: Segment) -> bytes | None:
        """The body of a segment as decoding needs it; None if it does not."""
        kind, body = segment.kind, segment.body
        if kind == SOS and self._frame.kind in SEQUENTIAL and len(body) > 5:
            return body[:-3] + bytes((0, BANDS - 1, 0))
        # These two decide what the colours are.
        if kind == APP0 and len(body) >= len(JFIF) and body.startswith(JFIF[:5]):
            return JFIF
        if kind == APP14 and len(body) >= 12 and body.startswith(b"Adobe"):
            known = (0, 2 if len(self._components) == 4 else 1)
            return body[:11] + bytes((known[bool(body[11])],))
        return None if kind in HARMLESS else body


def _intervals(scan: bytes, strip_zeros: bool, filler: bytes) -> Iterator[bytes]:
    """The data of a scan between its restart markers, and these."""
    if not (strip_zeros or filler):
        yield scan
        return
    place = 0
    for found in [*RESTART.finditer(scan), None]:
        interval = scan[place : found.start() if found else len(scan)].rstrip(b"\xff")
        if strip_zeros:
            stripped = interval.rstrip(b"\0")
            # A zero behind FF is a part of it.
            interval = interval[: len(stripped) + stripped.endswith(b"\xff")]
        yield interval + filler
        if found:
            yield found[0]
            place = found.end()
