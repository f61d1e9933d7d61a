"""GIF as Pillow reads it, but transparent where a smaller first frame leaves the canvas empty."""

from __future__ import annotations

from typing import Any

from PIL import GifImagePlugin, Image


class Gif(GifImagePlugin.GifImageFile):
    """A GIF. Pillow fills what its first frame leaves empty with a colour; viewers show none."""

    def load(self) -> Any:
        frame = self.tile[0][1] if self.tile else None
        result = super().load()
        if frame in (None, (0, 0, *self.size)):
            return result
        image = Image.new("RGBA", self.size)
        image.paste(self.convert("RGBA").crop(frame), frame)
        self.info.pop("transparency", None)
        self.im, self._mode, self.palette = image.im, image.mode, None
        return super().load()
