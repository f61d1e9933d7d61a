"""Reports for tests: pages with their pictures, as `roundtrip` leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stae_cli.images.write import write_picture, write_thumbnail
from stae_cli.metrics import compare
from stae_cli.report.page import ORIGINAL, THUMBNAIL, Column, Photo, Report, render
from tests.pictures import noise

FACTS = (("command", "stae roundtrip photos report"), ("device", "cpu"))


def write_report(
    folder: Path, originals: dict[str, np.ndarray], made: dict[str, dict[str, np.ndarray]], **more
) -> Path:
    """Writes pictures and the page; `made` has the reconstructions of each autoencoder by name."""
    columns = [Column(name, f"{name}.reconstruction.png", "16 at 1/8", 13_000_000) for name in made]
    photos = []
    for key, pixels in originals.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        write_picture(folder / f"{key}.{ORIGINAL}", pixels, format="png", record="{}")
        write_thumbnail(folder / f"{key}.{THUMBNAIL}", pixels)
        for column in columns:
            place = folder / f"{key}.{column.suffix}"
            write_picture(place, made[column.name][key], format="png", record="{}")
        scores = [compare(pixels, made[column.name][key]) for column in columns]
        photos.append(Photo(key, pixels.shape[1], pixels.shape[0], scores))
    report = Report(columns, photos, FACTS, **more)
    (folder / "index.html").write_text(render(report), encoding="utf-8")
    return folder


def with_noise(pixels: np.ndarray, strength: int, seed: int = 0) -> np.ndarray:
    grain = np.random.default_rng(seed).integers(-strength, strength + 1, pixels.shape)
    return np.clip(pixels.astype(int) + grain, 0, 255).astype(np.uint8)


def photos(count: int, width: int = 96, height: int = 64) -> dict[str, np.ndarray]:
    return {f"photo-{n:03}.jpg": noise(width + n, height, seed=n) for n in range(count)}
