"""What an SVG that charts are drawn to holds: its texts, and the shapes of a colour."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"

Point = tuple[float, float]


def texts_of(path: Path) -> list[str]:
    """The texts in the order in which they are drawn."""
    return [each.text or "" for each in _root(path).iter(f"{SVG}text")]


def shapes_of(path: Path, *, fill: str = "", stroke: str = "") -> list[list[Point]]:
    """The corners of every path that has this fill, or this stroke and no fill, in points."""
    wanted = f"fill: {fill}" if fill else f"fill: none; stroke: {stroke}"
    paths = (p for p in _root(path).iter(f"{SVG}path") if p.get("style", "").startswith(wanted))
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", p.attrib["d"])]
        for p in paths
    ]


def cells_of(path: Path) -> list[str]:
    """The colours of a heat map's cells, row by row; constant ones have none."""
    meshes = [g for g in _root(path).iter(f"{SVG}g") if g.get("id", "").startswith("QuadMesh")]
    styles = [p.get("style", "") for p in meshes[0].iter(f"{SVG}path")]
    return [found[1] for style in styles if (found := re.match(r"fill: (#\w+)", style))]


def width_of(shape: list[Point]) -> float:
    """In points."""
    across = [x for x, _ in shape]
    return max(across) - min(across)


def _root(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()
