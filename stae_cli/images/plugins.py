"""HEIC and JPEG XL: recognised by their first bytes, read by Pillow plugins if installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import BinaryIO

from PIL import Image

from stae_cli.errors import InputError
from stae_cli.images.heif import open_heif
from stae_cli.images.jpegxl import STARTS, open_jpegxl

Reader = Callable[[BinaryIO], Image.Image]

PLUGINS: dict[str, tuple[str, tuple[str, ...], Reader]] = {
    "HEIC": ("pillow_heif", (".heic", ".heif", ".hif"), open_heif),
    "JPEG XL": ("pillow_jxl", (".jxl",), open_jpegxl),
}
INSTALL = "`pip install 'stae[heif]'`"
INSTALLED = {name for name, (module, _, _) in PLUGINS.items() if find_spec(module) is not None}
# Lowercase suffixes that are read, and what to do about those that are not.
PLUGIN_SUFFIXES = tuple(s for name in PLUGINS if name in INSTALLED for s in PLUGINS[name][1])
REMEDIES = {
    suffix: f"{INSTALL} reads {name} ({suffix})"
    for name, (_, suffixes, _) in PLUGINS.items()
    if name not in INSTALLED
    for suffix in suffixes
}
HEVC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}  # brands
LONGEST_BRANDS = 512  # bytes


def opened_by_plugin(file: BinaryIO) -> Image.Image | None:
    """A HEIC or JPEG XL image, whatever its name; None for any other file.

    Raises:
        InputError: its plugin is not installed, or the image is damaged or of a kind that the
            plugin reads wrongly.
        OSError: the disk fails.
    """
    name = _kind_of(file)
    if name is None:
        return None
    if name not in INSTALLED:
        raise InputError(f"a {name} image, which stae reads with {INSTALL}")
    try:
        return PLUGINS[name][2](file)
    except ImportError as error:
        raise InputError(f"a {name} image, whose reader does not work here: {error}") from error


def _kind_of(file: BinaryIO) -> str | None:
    file.seek(0)
    beginning = file.read(LONGEST_BRANDS)
    if beginning.startswith(STARTS):
        return "JPEG XL"
    if beginning[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(beginning[:4], "big"), len(beginning))
    first, others = beginning[8:12], {beginning[at : at + 4] for at in range(16, end, 4)}
    general = first in (b"mif1", b"msf1")  # of AVIF too
    return "HEIC" if first in HEVC or (general and HEVC & others) else None
