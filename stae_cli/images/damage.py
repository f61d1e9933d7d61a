"""Damaged images: what Pillow raises on them, and what is said of it."""

from __future__ import annotations

import errno
import struct
import zlib

from PIL import Image

from stae_cli.errors import InputError

DAMAGED = (  # what Pillow raises on damaged files, found by mutating some
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
    BufferError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # should the caller turn warnings into errors
)


def damaged(error: BaseException) -> InputError:
    """The failure of an image; an error of the disk itself is raised as what it is.

    Pillow's own have no number; offsets out of range in a damaged file give EINVAL.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"damaged or truncated image: {text[:200]}")
