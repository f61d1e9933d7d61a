"""CRC-32 by `isal` where it is installed: many times faster than zlib, with the same result."""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
