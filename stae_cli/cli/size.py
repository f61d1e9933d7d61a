"""Sizes of pictures and names of networks as they are typed."""

from __future__ import annotations

import re

from stae_cli.errors import UsageError

DIGITS = 6  # of a side


def parse_size(text: str) -> tuple[int, int]:
    """`N` or `WxH` as (width, height) in pixels.

    Raises:
        UsageError: it is neither, or a side is too long.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if match is None:
        raise UsageError(f"malformed size `{text}`", "write N or WxH, such as 1024 or 1920x1080")
    sides = match[1], match[2] or match[1]
    if max(map(len, sides)) > DIGITS:
        raise UsageError(f"size `{text}` is too large", f"give sides of at most {DIGITS} digits")
    return int(sides[0]), int(sides[1])


def parse_names(text: str) -> tuple[str, ...]:
    """A list with commas as its names, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
