"""Images that are decoded here, when their pixels are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image


class Lazy(Image.Image):
    """An image of a known size that a function decodes; not turned upright.

    Args:
        size: width and height as stored.
        decode: gives the image.
        profile: its ICC profile.
        orientation: as EXIF counts them.
    """

    def __init__(
        self,
        size: tuple[int, int],
        decode: Callable[[], Image.Image],
        *,
        profile: bytes = b"",
        orientation: int = 1,
    ) -> None:
        super().__init__()
        self._size, self._mode, self.orientation = size, "RGB", orientation
        self._decode: Callable[[], Image.Image] | None = decode
        if profile:
            self.info["icc_profile"] = profile

    def load(self) -> Any:
        if self._decode:
            image = self._decode()
            image.load()
            self._mode, self._decode = image.mode, None
            self.im = image.im
        return super().load()
