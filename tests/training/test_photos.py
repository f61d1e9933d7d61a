"""The photos of a run: which are kept, which are skipped, and the crops drawn from them."""

import numpy as np
import pytest
import torch
from PIL import Image

from stae_cli.errors import StaeError, UsageError
from stae_cli.training.photos import Crops, list_photos, load_photos
from tests.pictures import noise

CPU = torch.device("cpu")


def write(folder, *sizes):
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        Image.fromarray(noise(width, height, seed=number)).save(folder / f"{number}.png")
    return folder


def crops_of(photos, **changes):
    settings = {"crop": 16, "batch": 8, "seed": 0, "device": CPU} | changes
    return Crops(photos, **settings)


def test_photos_are_decoded_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 24)).save(tmp_path / "turned.jpg", exif=exif)
    photos = load_photos([tmp_path], crop=8, memory=1 << 20)
    assert photos.sources[0][0].shape == (40, 24, 3)


def test_small_and_damaged_photos_are_counted_and_skipped(tmp_path, caplog):
    caplog.set_level("DEBUG", "stae_cli")
    folder = write(tmp_path / "photos", (40, 40), (40, 31), (31, 40))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    photos = load_photos([folder], crop=32, memory=1 << 20)
    assert (photos.photos, photos.small, photos.left_out) == (1, 2, 0)
    assert [problem.key for problem in photos.problems] == ["broken.png"]
    assert "skipped broken.png: " in caplog.text
    assert "skipped 1.png: smaller than the crop of 32" in caplog.text


def test_what_does_not_fit_in_memory_is_left_out_of_all_sources_alike(tmp_path):
    sources = [write(tmp_path / name, *[(32, 32)] * 6) for name in ("a", "b")]
    photos = load_photos(sources, crop=16, memory=7 * 32 * 32 * 3)
    assert [len(source) for source in photos.sources] == [4, 3]
    assert photos.left_out == 5


def test_only_pictures_of_runs_are_skipped(tmp_path):
    """Not those of a folder without a log, other pictures, or a picture that is named itself."""
    run = write(tmp_path / "mine.training", (32, 32))
    Image.fromarray(noise(32, 32)).save(run / "curve.png")
    assert [entry.key for entry in list_photos(run).entries] == ["0.png", "curve.png"]
    (run / "log.jsonl").touch()
    assert [entry.key for entry in list_photos(run).entries] == ["0.png"]
    assert [entry.key for entry in list_photos(run / "curve.png").entries] == ["curve.png"]


@pytest.mark.parametrize(
    ("size", "memory", "words"),
    [((20, 20), 1 << 20, "smaller than the crop of 32"), ((64, 64), 100, "beyond the memory")],
)
def test_no_usable_photo_is_an_error(tmp_path, size, memory, words):
    with pytest.raises(StaeError, match=words):
        load_photos([write(tmp_path / "photos", size)], crop=32, memory=memory)


def test_absent_and_empty_sources_are_errors(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load_photos([tmp_path / "absent"], crop=8, memory=1)
    with pytest.raises(StaeError, match="no inputs found"):
        load_photos([tmp_path], crop=8, memory=1)


def test_a_batch_depends_on_seed_and_step_alone(tmp_path):
    photos = load_photos([write(tmp_path / "p", (60, 50), (50, 90))], crop=16, memory=1 << 20)
    again = load_photos([tmp_path / "p"], crop=16, memory=1 << 20, workers=3)
    first = crops_of(photos).batch(5)
    assert torch.equal(first, crops_of(again).batch(5))
    assert not torch.equal(first, crops_of(photos).batch(6))
    assert not torch.equal(first, crops_of(photos, seed=1).batch(5))
    assert first.shape == (8, 3, 16, 16)
    assert first.dtype == torch.float32
    assert -1 <= first.min() < first.max() <= 1


def test_processes_share_one_batch(tmp_path):
    photos = load_photos([write(tmp_path / "p", (60, 50))], crop=16, memory=1 << 20)
    crops = crops_of(photos)
    parts = [crops.batch(2, rank=rank, processes=4) for rank in range(4)]
    assert torch.equal(torch.cat(parts), crops.batch(2))


def test_samples_are_as_many_as_the_photos_are_worth(tmp_path):
    photos = load_photos([write(tmp_path / "p", (32, 32))], crop=16, memory=1 << 20)
    samples = torch.cat(list(crops_of(photos).samples(1, pixels=1 << 30)))
    assert samples.shape == (32, 3, 16, 16)  # every pixel eight times
    assert len(torch.cat(list(crops_of(photos).samples(1, pixels=1000)))) == 4
    other = torch.cat(list(crops_of(photos).samples(2, pixels=1 << 30)))
    assert not torch.equal(samples, other)


def test_sources_have_equal_shares_of_the_crops(tmp_path):
    for name, level, count in (("black", 0, 1), ("white", 255, 9)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / name / f"{number}.png")
    photos = load_photos([tmp_path / "black", tmp_path / "white"], crop=16, memory=1 << 20)
    batch = crops_of(photos, batch=400).batch(0)
    assert 0.4 < float((batch[:, 0, 0, 0] > 0).float().mean()) < 0.6


def test_all_eight_turns_occur_and_keep_every_pixel(tmp_path):
    pixels = noise(16, 16)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    photos = load_photos([tmp_path], crop=16, memory=1 << 20)
    batch = crops_of(photos, batch=200).batch(0)
    whole = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    turned = {tuple(crop.flatten().tolist()) for crop in batch}
    assert len(turned) == 8
    assert all(np.isclose(sum(one), float(whole.sum()), atol=1e-2) for one in turned)


def test_large_photos_are_also_seen_shrunk(tmp_path):
    """Stripes two pixels wide turn grey where a crop is shrunk by much."""
    stripes = np.zeros((1536, 1536, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    photos = load_photos([tmp_path], crop=16, memory=1 << 30)
    contrast = crops_of(photos, batch=64).batch(0).std((1, 2, 3))
    assert contrast.max() > 0.9
    assert contrast.min() < 0.2
