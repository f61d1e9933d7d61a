"""`stae decode --grid`: one picture of all samples, for a quick look."""

import numpy as np
import pytest
from PIL import Image

from stae_cli.images.write import read_picture_record
from tests.pictures import noise, write_photos

pytestmark = pytest.mark.usefixtures("same_codec")


@pytest.fixture
def decode(stae, tiny, tmp_path):
    """Runs `decode` with the tiny network, to `out`."""

    def run(*arguments):
        return stae("decode", *arguments, tmp_path / "out", "--weights", tiny, "--json")

    return run


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def drawn(shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_a_grid_shows_all_pictures(decode, tmp_path):
    np.save(tmp_path / "a.npy", drawn((5, 16, 4, 6)))
    ran = decode(tmp_path / "a.npy", "--grid")
    assert ran.code == 0, ran.err
    assert ran.json["grid"] == {"file": str(tmp_path / "out" / "grid.png"), "pictures": 5}
    grid = pixels_of(tmp_path / "out" / "grid.png")
    assert grid.shape == (2 + 2 * 34, 2 + 3 * 50, 3)
    assert (grid[:2] == 0).all()
    for number in range(5):
        row, column = divmod(number, 3)
        cell = grid[2 + row * 34 :, 2 + column * 50 :][:32, :48]
        assert (cell == pixels_of(tmp_path / "out" / "a" / f"{number:05d}.png")).all()
    assert (grid[36:, 102:] == 0).all()
    again = decode(tmp_path / "a.npy", "--grid")
    assert (again.json["skipped"], again.json["grid"]["pictures"]) == (5, 5)


def test_a_grid_of_stae_latents_of_all_sizes_is_bounded(stae, tiny, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos")
    assert stae("encode", photos, tmp_path / "l", "--weights", tiny).code == 0
    arguments = ["decode", tmp_path / "l", tmp_path / "out", "--weights", tiny, "--grid"]
    ran = stae(*arguments)
    assert ran.code == 0, ran.err
    assert "shows 9 pictures" in ran.err
    monkeypatch.setattr("stae_cli.images.sheet.MOST_PIXELS", 10_000)
    ran = stae(*arguments)
    assert "of 9 pictures" in ran.err
    grid = pixels_of(tmp_path / "out" / "grid.png")
    assert grid.shape[0] * grid.shape[1] <= 10_000
    monkeypatch.setattr("stae_cli.images.sheet.MOST_PIXELS", 10)
    assert "no grid" in stae(*arguments).err
    assert stae(*arguments[:-1]).code == 0  # the grid is not in its way


def test_a_grid_never_replaces_another_file(decode, tmp_path):
    np.save(tmp_path / "a.npy", drawn((3, 16, 4, 6)))
    np.save(tmp_path / "grid.npy", drawn((16, 4, 6)))
    decode(tmp_path / "grid.npy", "--grid").assert_fails(2, "would both write `grid.png`")
    (tmp_path / "out").mkdir()
    Image.fromarray(noise(8, 8)).save(tmp_path / "out" / "grid.png")
    before = (tmp_path / "out" / "grid.png").read_bytes()
    decode(tmp_path / "a.npy", "--grid").assert_fails(1, "grid.png")
    assert (tmp_path / "out" / "grid.png").read_bytes() == before
    assert decode(tmp_path / "a.npy", "--grid", "--overwrite").code == 0
    assert read_picture_record(tmp_path / "out" / "grid.png")
