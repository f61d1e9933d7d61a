"""Pictures: every pixel back, a record to find, and none in what is cut or foreign."""

import zlib

import numpy as np
import pytest
from PIL import Image

from stae_cli.images import write as pictures
from stae_cli.images.write import read_picture_record, write_picture
from tests.pictures import noise

RECORD = '{"latents": "a b.safetensors"}'
SIZES = [(1, 1), (1, 500), (500, 1), (3, 2), (101, 67)]


def read(path):
    with Image.open(path) as image:
        image.load()
        return np.asarray(image)


@pytest.mark.parametrize("codec", ["isal", "zlib"])
@pytest.mark.parametrize("size", SIZES)
def test_png_keeps_every_pixel(tmp_path, monkeypatch, size, codec):
    if codec == "zlib":
        monkeypatch.setattr(pictures, "deflate", zlib)
    monkeypatch.setattr(pictures, "BAND_BYTES", 1000)  # several bands even here
    pixels = noise(*size)
    write_picture(tmp_path / "a", pixels, format="png", record=RECORD)
    assert np.array_equal(read(tmp_path / "a"), pixels)
    assert read_picture_record(tmp_path / "a") == RECORD


def test_png_of_a_view(tmp_path):
    pixels = noise(64, 64)[3:50, 5:60]
    write_picture(tmp_path / "a", pixels, format="png", record=RECORD)
    assert np.array_equal(read(tmp_path / "a"), pixels)


def test_png_of_noise_and_of_one_colour(tmp_path):
    for pixels in (
        np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8),
        np.full((700, 900, 3), 77, np.uint8),
    ):
        write_picture(tmp_path / "a", pixels, format="png", record=RECORD)
        assert np.array_equal(read(tmp_path / "a"), pixels)


@pytest.mark.parametrize("format", ["webp", "jpg"])
def test_lossy_formats_are_close(tmp_path, format):  # noqa: A002
    pixels = noise(120, 80)
    write_picture(tmp_path / "a", pixels, format=format, record=RECORD)
    assert np.abs(read(tmp_path / "a").astype(int) - pixels).mean() < 6
    assert read_picture_record(tmp_path / "a") == RECORD


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_no_record_in_a_cut_or_lengthened_file(tmp_path, format):  # noqa: A002
    path = tmp_path / "a"
    write_picture(path, noise(120, 80), format=format, record=RECORD)
    whole = path.read_bytes()
    for twentieth in range(20):
        path.write_bytes(whole[: len(whole) * twentieth // 20])
        assert read_picture_record(path) is None
    path.write_bytes(whole + b"xx")
    assert read_picture_record(path) is None


def test_no_record_in_what_is_not_ours(tmp_path):
    assert read_picture_record(tmp_path / "absent") is None
    for form in ("PNG", "WEBP", "JPEG", "GIF"):
        Image.fromarray(noise(20, 20)).save(tmp_path / "a", form)
        assert read_picture_record(tmp_path / "a") is None
    (tmp_path / "b").write_bytes(b"RIFF")
    assert read_picture_record(tmp_path / "b") is None
