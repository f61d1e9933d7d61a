"""Keys from tars, shards and stores: which of them may name an output."""

from __future__ import annotations

import os
import re

from stae_cli.errors import InputError

RESERVED = "__metadata__"  # which safetensors keeps for itself
LONGEST_NAME = 255  # bytes, with most file systems
LONGEST_PART = 240  # bytes; outputs add a suffix
LONGEST_KEY = 1024  # bytes, as with object stores; paths of 4096 have room for a DEST before it
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE)


def check_key(key: str) -> None:
    """Makes sure that a key from an archive cannot lead out of DEST, on any system.

    Raises:
        InputError: it could.
    """
    if key == RESERVED or "\0" in key:
        raise InputError("its name is no file's")
    if key.startswith("/") or "\\" in key or ":" in key:
        raise InputError("its name is an absolute path, or not portable")
    if len(_encoded(key)) > LONGEST_KEY:
        raise InputError(f"its name is longer than {LONGEST_KEY} bytes")
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise InputError("its name leads out of its folder")
        if DEVICES.fullmatch(part.rstrip(" .")):
            raise InputError("its name is that of a device")
        if len(_encoded(part)) > LONGEST_PART:
            raise InputError(f"its name is longer than {LONGEST_PART} bytes")


def problem_of(key: str) -> str | None:
    """Why a key may not name an output; None if it may."""
    try:
        check_key(key)
    except InputError as error:
        return error.message
    return None


def is_too_long(output: str) -> bool:
    """Whether a part of an output's name exceeds what file systems hold."""
    return any(len(os.fsencode(part)) > LONGEST_NAME for part in output.split("/"))


def _encoded(part: str) -> bytes:
    try:
        return part.encode()
    except UnicodeEncodeError as error:
        raise InputError("its name is no valid UTF-8") from error
