"""`stae inspect --preview`: pictures of latents without the network, and a sheet of all."""

import os
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stae_cli.latents.format import StoredLatent, write_latent
from stae_cli.latents.listing import read_latent
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.names import NameRules
from tests import shards
from tests.pictures import noise

SHEET = "contact-sheet.png"


@pytest.fixture
def info(latents):
    return read_latent(latents / "p0.safetensors")[1]


@pytest.fixture
def preview(stae, tmp_path):
    """Runs `inspect --preview` of sources, to `out`."""

    def run(*sources):
        return stae("inspect", *sources, "--preview", tmp_path / "out", "--json")

    return run


def pixels_of(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def pictures_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def write(folder, key, latent, info):
    path = folder / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_latent(path, latent, of_shape(info, latent))
    return path


def of_shape(info, latent):
    _, rows, columns = latent.shape
    return replace(info, width=8 * columns, height=8 * rows, data_crc32="")


def drawn(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((16, rows, columns), np.float32)


def small(pixels, rows, columns):
    """One pixel for each position, once the enlargement has been checked."""
    height, width, _ = pixels.shape
    factor = height // rows
    assert (height, width) == (rows * factor, columns * factor)
    blocks = pixels.reshape(rows, factor, columns, factor, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return blocks[:, 0, :, 0].astype(int)


def test_every_latent_is_drawn(preview, latents, tmp_path):
    before = {p: p.read_bytes() for p in latents.rglob("*") if p.is_file()}
    ran = preview(latents)
    assert ran.code == 0, ran.err
    out = tmp_path / "out"
    assert ran.json["preview"] == {
        "folder": str(out),
        "pictures": 9,
        "contact_sheet": {"file": str(out / SHEET), "pictures": 9},
        "invalid": [],
    }
    assert ran.json["latents"] == 9
    keys = {p.relative_to(latents).with_suffix("").as_posix() for p in before}
    keys -= {"stae"}  # the run record
    assert pictures_in(out).keys() == {f"{key}.png" for key in keys} | {SHEET}
    for key in keys:
        _, rows, columns = read_latent(latents / f"{key}.safetensors")[0].shape
        pixels = pixels_of(out / f"{key}.png")
        assert 170 < max(pixels.shape) < 342
        small(pixels, rows, columns)
    assert {p: p.read_bytes() for p in latents.rglob("*") if p.is_file()} == before


def test_the_report(stae, latents, tmp_path):
    ran = stae("inspect", latents, "--preview", tmp_path / "out", "--files")
    assert ran.code == 0
    assert f"previews: 9 in {tmp_path / 'out'}; 0 not drawn" in ran.out
    assert f"contact sheet: {tmp_path / 'out' / SHEET} shows 9" in ran.out
    assert "preview" not in stae("inspect", latents).out
    assert "preview" not in stae("inspect", latents, "--json").json


def test_the_colours_are_the_components_of_all_latents(preview, info, tmp_path):
    """Channel 5 varies most, then 2, then 9; a latent's place in that is its colour."""
    scales = np.full((16, 1, 1), 0.01, np.float32)
    scales[[5, 2, 9], 0, 0] = 8, 4, 2
    latents = [drawn(6, 7, seed) * scales + 1 for seed in range(30)]
    for number, latent in enumerate(latents):
        write(tmp_path / "l", f"{number}", latent, info)
    assert preview(tmp_path / "l").code == 0
    values = np.stack(latents)
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    for number, latent in enumerate(latents):
        found = small(pixels_of(tmp_path / "out" / f"{number}.png"), 6, 7)
        apart = (latent[[5, 2, 9]] - mean[[5, 2, 9], None, None]) / std[[5, 2, 9], None, None]
        wanted = (127.5 + 127.5 * (apart / 2.5).clip(-1, 1)).transpose(1, 2, 0)
        assert np.abs(found - wanted).mean() < 4  # the channels of noise correlate a little


def test_files_and_shards_have_the_same_colours(stae, preview, photos, tiny, latents, tmp_path):
    args = ["encode", photos, tmp_path / "shards", "--weights", tiny, "--shard-size", 4]
    assert stae(*args).code == 0
    assert preview(latents).code == 0
    one = {name: pixels_of(tmp_path / "out" / name) for name in pictures_in(tmp_path / "out")}
    shutil.rmtree(tmp_path / "out")
    assert preview(tmp_path / "shards").code == 0
    assert pictures_in(tmp_path / "out").keys() == one.keys()
    for name, pixels in one.items():
        assert (pixels_of(tmp_path / "out" / name) == pixels).all()


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((1, 1), (256, 256)), ((3, 400), (3, 400)), ((64, 96), (192, 288)), ((500, 2), (500, 2))],
)
def test_small_ones_are_enlarged_and_large_ones_not_shrunk(preview, info, tmp_path, shape, sides):
    write(tmp_path / "l", "a", drawn(*shape), info)
    write(tmp_path / "l", "b", drawn(4, 4), info)
    assert preview(tmp_path / "l").code == 0
    assert pixels_of(tmp_path / "out" / "a.png").shape == (*sides, 3)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_the_sheet_shows_all(preview, info, tmp_path, count):
    rows, columns = 4, 6  # enlarged 43 times
    latents = [(f"k/{number:03d}", drawn(rows, columns, number)) for number in range(count)]
    latents = [(key, of_shape(info, latent), latent) for key, latent in latents]
    shards.write_latents(tmp_path / "s.safetensors", latents)
    ran = preview(tmp_path / "s.safetensors")
    assert ran.code == 0, ran.err
    assert ran.json["preview"]["contact_sheet"]["pictures"] == count
    sheet = pixels_of(tmp_path / "out" / SHEET)
    across, down, gap = columns * 43, rows * 43, 16
    on_a_row = int(np.ceil(np.sqrt(count)))
    assert sheet.shape[1] == gap + on_a_row * (across + gap)
    step = (sheet.shape[0] - gap) // -(-count // on_a_row)
    for number in range(count):
        row, column = divmod(number, on_a_row)
        cell = sheet[gap + row * step :, gap + column * (across + gap) :][:, :across]
        picture = pixels_of(tmp_path / "out" / "k" / f"{number:03d}.png")
        assert (cell[:down] == picture).all()
        assert (cell[down : step - gap] != 250).any()  # a label


def test_a_sheet_has_as_many_of_the_first_as_fit(stae, latents, tmp_path, monkeypatch):
    monkeypatch.setattr("stae_cli.images.sheet.MOST_PIXELS", 700_000)
    ran = stae("inspect", latents, "--preview", tmp_path / "out")
    assert ran.code == 0
    assert "previews: 9 in" in ran.out
    assert "shows the first 8 of 9" in ran.out
    monkeypatch.setattr("stae_cli.images.sheet.MOST_PIXELS", 10)
    ran = stae("inspect", latents, "--preview", tmp_path / "none", "--json")
    assert ran.json["preview"]["contact_sheet"] == {"file": None, "pictures": 0}
    assert not (tmp_path / "none" / SHEET).exists()


def test_damaged_ones_are_listed_and_the_others_drawn(stae, preview, latents, info, tmp_path):
    broken = drawn(5, 5)
    broken[3, 1, 1] = np.nan
    write(latents, "nan", broken, info)
    (latents / "cut.safetensors").write_bytes((latents / "p1.safetensors").read_bytes()[:-3])
    with (latents / "p2.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\1\2\3\4\5")
    ran = preview(latents)
    assert ran.code == 3
    assert {row["file"] for row in ran.json["invalid"]} == {"cut.safetensors"}
    reasons = {row["file"]: row["reason"] for row in ran.json["preview"]["invalid"]}
    assert reasons.keys() == {"nan.safetensors", "p2.safetensors"}
    assert "NaN" in reasons["nan.safetensors"]
    assert "damaged" in reasons["p2.safetensors"]
    assert ran.json["preview"]["pictures"] == 8
    assert ran.json["preview"]["contact_sheet"]["pictures"] == 8
    names = pictures_in(tmp_path / "out").keys()
    assert len(names) == 9
    assert not names & {"nan.png", "cut.png", "p2.png"}
    ran = stae("inspect", latents, "--preview", tmp_path / "out")
    assert ran.code == 3
    for word in ("nan.safetensors: it holds NaN", "p2.safetensors: damaged", "cut.safetensors: "):
        assert word in ran.err
    assert "previews: 8 in" in ran.out


def test_without_a_valid_latent_there_is_nothing_to_draw(preview, latents, info, tmp_path):
    shutil.rmtree(latents)
    write(latents, "nan", drawn(5, 5) * np.nan, info)
    preview(latents).assert_fails(1, "too few valid latents", "nan.safetensors", "NaN")
    assert pictures_in(tmp_path / "out") == {}


def test_latents_of_two_checkpoints_are_refused(
    stae, preview, latents, photos, other_tiny, tmp_path
):
    assert stae("encode", photos, tmp_path / "other", "--weights", other_tiny).code == 0
    ran = preview(latents, tmp_path / "other")
    ran.assert_fails(1, "tiny.safetensors", "other.safetensors", "separately")
    assert ran.out == ""
    assert not (tmp_path / "out").exists()


def test_wrong_places(stae, preview, latents, tmp_path):
    stae("inspect", latents, "--preview", latents / "in").assert_fails(2, "inside SOURCE")
    assert not (latents / "in").exists()
    stae("inspect", latents, "--preview", "memory://out").assert_fails(2, "folders only")
    (tmp_path / "out").write_text("a file")
    preview(latents).assert_fails(2, "is a file")
    ran = stae("inspect", latents, "--preview", tmp_path / "out" / "in")
    ran.assert_fails(2, "cannot be made")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_a_place_that_cannot_be_written_to(stae, latents):
    ran = stae("inspect", latents, "--preview", "/proc/preview")
    ran.assert_fails(1, "cannot write `/proc/preview", "permissions")
    assert ran.out == ""


def test_collisions_are_refused(preview, latents, info, tmp_path, monkeypatch):
    shutil.copytree(latents, tmp_path / "copy")
    preview(latents, tmp_path / "copy").assert_fails(2, "would both write `p0.png`")
    path = write(latents, "contact-sheet", drawn(5, 5), info)
    preview(latents).assert_fails(2, f"would both write `{SHEET}`", "--preview")
    path.unlink()
    write(latents, "p0.png/x", drawn(5, 5), info)
    preview(latents).assert_fails(2, "which is a folder for")
    shutil.rmtree(latents / "p0.png")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(FolderDestination, "rules", NameRules(case=True))
    write(latents, "P0", drawn(5, 5), info)
    preview(latents).assert_fails(2, "would both write", "tells their names apart")
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_that_are_not_previews_stay(stae, preview, latents, tiny, tmp_path):
    out = tmp_path / "out"
    assert stae("decode", latents, tmp_path / "decoded", "--weights", tiny).code == 0
    out.mkdir()
    Image.fromarray(noise(8, 8)).save(out / "p0.png")
    shutil.copy(tmp_path / "decoded" / "p1.png", out / "p1.png")
    (out / "p2.png").touch()  # empty: a crash can leave that
    before = pictures_in(out)
    ran = preview(latents)
    assert ran.code == 3
    listed = ran.json["preview"]["invalid"]
    assert [row["file"] for row in listed] == ["p0.safetensors", "p1.safetensors"]
    assert all("is not a preview; move it" in row["reason"] for row in listed)
    after = pictures_in(out)
    assert [after[name] for name in ("p0.png", "p1.png")] == [before["p0.png"], before["p1.png"]]
    assert len(pixels_of(out / "p2.png"))
    assert ran.json["preview"]["contact_sheet"]["pictures"] == 7


def test_a_sheet_never_replaces_another_picture(preview, latents, tmp_path):
    (tmp_path / "out").mkdir()
    Image.fromarray(noise(8, 8)).save(tmp_path / "out" / SHEET)
    before = pictures_in(tmp_path / "out")
    preview(latents).assert_fails(1, SHEET, "is not a preview", "move it")
    assert pictures_in(tmp_path / "out") == before


def test_previews_of_an_earlier_run_are_replaced(preview, latents, tmp_path):
    assert preview(latents).code == 0
    before = pictures_in(tmp_path / "out")
    assert preview(latents).code == 0
    assert pictures_in(tmp_path / "out") == before
    (latents / "p3.safetensors").unlink()
    shutil.copy(latents / "p4.safetensors", latents / "p0.safetensors")
    assert preview(latents).json["preview"]["pictures"] == 8
    after = pictures_in(tmp_path / "out")
    assert after.keys() == before.keys()
    assert (pixels_of(tmp_path / "out" / "p0.png") == pixels_of(tmp_path / "out" / "p4.png")).all()


def test_previews_of_another_folder_stay(preview, latents, tmp_path):
    shutil.copytree(latents, tmp_path / "copy")
    (tmp_path / "copy" / "p3.safetensors").rename(tmp_path / "copy" / "new.safetensors")
    assert preview(latents).code == 0
    before = pictures_in(tmp_path / "out")
    ran = preview(tmp_path / "copy")
    assert (ran.code, ran.json["preview"]["pictures"]) == (3, 1)
    assert "another latent of its name" in ran.json["preview"]["invalid"][0]["reason"]
    after = pictures_in(tmp_path / "out")
    assert {name: after[name] for name in before if name != SHEET} == {
        name: data for name, data in before.items() if name != SHEET
    }


def test_other_runs_do_not_write_among_previews(stae, preview, latents, photos, tiny, tmp_path):
    assert preview(latents).code == 0
    before = pictures_in(tmp_path / "out")
    for command, source in (("decode", latents), ("encode", photos)):
        ran = stae(command, source, tmp_path / "out", "--weights", tiny)
        ran.assert_fails(1, "was made with other weights or settings")
    assert pictures_in(tmp_path / "out") == before


@pytest.mark.skipif(os.name == "nt", reason="names that Windows forbids")
def test_odd_keys(preview, info, tmp_path):
    keys = ["<b>", "\u05e9\u05dc\u05d5\u05dd", "a\u202eb", "k" * 200, "a b/c&d", "p.q", "e\u0301"]
    for number, key in enumerate(keys):
        write(tmp_path / "l", key, drawn(4, 6, number), info)
    ran = preview(tmp_path / "l")
    assert ran.code == 0, ran.err
    assert pictures_in(tmp_path / "out").keys() == {f"{key}.png" for key in keys} | {SHEET}
    assert ran.json["preview"]["contact_sheet"]["pictures"] == len(keys)
    assert preview(tmp_path / "l").code == 0  # they are known again
    bad = os.fsdecode(b"\xff\xfe")
    write(tmp_path / "l", bad, drawn(4, 6, 9), info)
    assert preview(tmp_path / "l").code == 0
    assert (tmp_path / "out" / f"{bad}.png").exists()


def test_a_full_disk_leaves_whole_pictures(preview, latents, tmp_path, monkeypatch):
    write_picture, written = sys.modules["stae_cli.images.write"].write_picture, []

    def filling(path, pixels, **rest):
        written.append(path)
        if len(written) > 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write_picture(path, pixels, **rest)

    monkeypatch.setattr("stae_cli.verify.preview.write_picture", filling)
    preview(latents).assert_fails(1, "disk is full")
    assert len(pictures_in(tmp_path / "out")) == 4
    for name in pictures_in(tmp_path / "out"):
        assert len(pixels_of(tmp_path / "out" / name))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_signal_leaves_whole_pictures(stae, latents, tmp_path, monkeypatch):
    read, readings = StoredLatent.read, []

    def reading(self):
        readings.append(self.key)
        if len(readings) == 5:  # once: a second signal would end the tests
            os.kill(os.getpid(), signal.SIGINT)
        return read(self)

    monkeypatch.setattr(StoredLatent, "read", reading)
    ran = stae("inspect", latents, "--preview", tmp_path / "out")
    assert ran.code == 130
    assert ran.out == ""
    for name in pictures_in(tmp_path / "out"):
        assert len(pixels_of(tmp_path / "out" / name))
    assert not (tmp_path / "out" / SHEET).exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_latents_on_a_store(preview, latents, tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="needs pip install 'stae[remote]'")
    assert preview(latents).code == 0
    before = {name: pixels_of(tmp_path / "out" / name) for name in pictures_in(tmp_path / "out")}
    shutil.rmtree(tmp_path / "out")
    store = fsspec.filesystem("memory")
    try:
        for path in latents.rglob("*.safetensors"):
            store.pipe_file(f"/in/{path.relative_to(latents).as_posix()}", path.read_bytes())
        ran = preview("memory://in")
        assert ran.code == 0, ran.err
    finally:
        store.store.clear()
    for name, pixels in before.items():
        assert (pixels_of(tmp_path / "out" / name) == pixels).all()
