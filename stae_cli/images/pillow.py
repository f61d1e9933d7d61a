"""Pillow: what it raises on damaged images, and the transforms that make colour profiles sRGB."""

from __future__ import annotations

import errno
import struct
import threading
import zlib
from functools import lru_cache
from io import BytesIO
from types import TracebackType

import numpy as np
from PIL import Image, ImageCms
from PIL import ImageFile as PillowFile

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
    Warning,  # if the caller turns warnings into errors
)

PROFILE_MODES = {  # of the profile that an image of each mode may have
    **dict.fromkeys(("RGB", "RGBA", "RGBa", "P", "PA", "RGBX"), "RGB"),
    **dict.fromkeys(("L", "LA", "La", "1"), "L"),
    "CMYK": "CMYK",
}


class _WholeFiles:
    """Has Pillow refuse truncated files in its block, whatever `LOAD_TRUNCATED_IMAGES` says.

    That setting is the process's: it is off as long as any thread is inside.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = PillowFile.LOAD_TRUNCATED_IMAGES
                PillowFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                PillowFile.LOAD_TRUNCATED_IMAGES = self._before


whole_files = _WholeFiles()


def damaged(error: BaseException) -> InputError:
    """The failure of an image; an error of the disk is raised as it is.

    Pillow's own errors have no number; offsets out of range in a damaged file give EINVAL.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"damaged or truncated image: {text[:200]}")


def to_srgb(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """The transform from the image's embedded profile; None if it changes nothing."""
    profile, mode = image.info.get("icc_profile"), PROFILE_MODES.get(image.mode)
    return _transform(profile, mode) if isinstance(profile, bytes) and mode else None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None for broken profiles, those of another mode, and sRGB under any name."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.getOpenProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
        )
        probe = _probe(mode)
        changed = np.asarray(transform.apply(probe)).astype(int)
    except (ImageCms.PyCMSError, *DAMAGED):
        return None
    unchanged = np.asarray(probe.convert("RGB"))
    return None if np.abs(changed - unchanged).max() <= 1 else transform


def _probe(mode: str) -> Image.Image:
    """A picture of colours from the whole range of the mode."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    channels = Image.getmodebands(mode)
    grid = np.stack(np.meshgrid(*[levels] * channels), axis=-1).reshape(1, -1, channels)
    return Image.fromarray(grid[..., 0] if channels == 1 else grid, mode)
