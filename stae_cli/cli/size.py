"""Sizes of pictures and names of networks as they are typed."""

from __future__ import annotations

import re

from stae_cli.errors import UsageError


def parse_size(text: str) -> tuple[int, int]:
    """`N` or `WxH` as (width, height) in pixels.

    Raises:
        UsageError: it is neither.
    """
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if match is None:
        raise UsageError(f"malformed size `{text}`", "write N or WxH, such as 1024 or 1920x1080")
    return int(match[1]), int(match[2] or match[1])


def parse_names(text: str) -> tuple[str, ...]:
    """A list with commas as its names, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
