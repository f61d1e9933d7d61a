"""`LatentDataset` as those who train on latents use it: either layout, crops, workers, refusals."""

import errno
import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, default_collate

import stae_cli.latents.mapped
from stae_cli import LatentDataset, StaeError, collate_latents
from stae_cli.errors import UsageError
from stae_cli.latents import format as latents_format
from stae_cli.latents.format import latent_bytes, write_latent
from stae_cli.latents.info import LatentInfo, checksum
from stae_cli.latents.listing import list_latents
from tests.shards import write_latents

INFO = LatentInfo(
    "0.1.0", "f8c16", "photo-1", "ab" * 32, 8, 4, "a.jpg", 1, 2, 8, 8, 8, 8, "{}", "float32"
)  # fmt: skip
SIZES = [(5, 7), (6, 4), (9, 9), (4, 12), (8, 5)]


def latent(number, rows, columns):
    """(4, rows, columns) float16 in which every number tells its picture and position."""
    values = np.arange(rows)[:, None] * 16 + np.arange(columns) + 256 * number
    return np.stack([values + channel / 8 for channel in range(4)]).astype(np.float16)


def pictures():
    """Key, info and latent of five pictures of different sizes."""
    for number, (rows, columns) in enumerate(SIZES):
        info = replace(INFO, width=columns * 8 - 3, height=rows * 8, source=f"sub/p{number}.jpg")
        yield f"sub/p{number}", info, latent(number, rows, columns)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "files" / "sub").mkdir(parents=True)
    for key, info, values in pictures():
        write_latent(tmp_path / "files" / f"{key}.safetensors", values, info)
    return tmp_path / "files"


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    every = [(k, replace(i, data_crc32=checksum(latent_bytes(v))), v) for k, i, v in pictures()]
    for number, members in enumerate([every[:3], every[3:]]):
        write_latents(folder / f"shard-{number:05}.safetensors", members)
    return folder


@pytest.fixture(params=["files", "shards"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_either_layout_gives_the_latents(folder):
    dataset = LatentDataset(folder)
    assert (len(dataset), dataset.left_out) == (5, 0)
    assert (dataset.weights, dataset.weights_sha256) == ("photo-1", "ab" * 32)
    for sample, (key, info, values) in zip(dataset, pictures(), strict=True):
        assert (sample["key"], sample["width"], sample["height"]) == (key, info.width, info.height)
        assert (sample["top"], sample["left"]) == (0, 0)
        assert sample["latents"].dtype == torch.float32
        assert np.array_equal(sample["latents"], values)
    assert dataset[-1]["key"] == "sub/p4"
    with pytest.raises(IndexError):
        dataset[5]


def test_float32_latents_are_exact(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 1, 1)).astype(np.float32)
    write_latent(tmp_path / "a.safetensors", values, INFO)
    assert np.array_equal(LatentDataset(str(tmp_path))[0]["latents"], values)


def test_a_sample_is_the_callers_own(folder):
    dataset = LatentDataset(folder)
    dataset[0]["latents"].zero_()
    assert dataset[0]["latents"].any()


@pytest.mark.parametrize("crop", [4, (4, 4), (5, 2)])
def test_crops_lie_where_they_say_and_reach_everywhere(folder, crop):
    dataset = LatentDataset(folder, crop=crop)
    whole = {key: values for key, _, values in pictures()}
    rows, columns = (crop, crop) if isinstance(crop, int) else crop
    torch.manual_seed(0)
    seen = set()
    for _ in range(600):
        for sample in dataset:
            top, left = sample["top"], sample["left"]
            expected = whole[sample["key"]][:, top : top + rows, left : left + columns]
            assert sample["latents"].shape == (4, rows, columns)
            assert np.array_equal(sample["latents"], expected)
            seen.add((sample["key"], top, left))
    fitting = [(h, w) for h, w in SIZES if h >= rows and w >= columns]
    assert len(seen) == sum((h - rows + 1) * (w - columns + 1) for h, w in fitting)
    assert dataset.left_out == len(SIZES) - len(fitting)


def test_a_seed_repeats_the_crops(folder):
    dataset = LatentDataset(folder, crop=2)

    def drawn(seed):
        torch.manual_seed(seed)
        return [(sample["top"], sample["left"]) for sample in dataset]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(9)}) > 1


def test_normalised_as_a_codec_does_it(folder):
    plain, scaled = LatentDataset(folder), LatentDataset(folder, shift=3.5, scale=0.25)
    assert torch.equal(scaled[2]["latents"], (plain[2]["latents"] - 3.5) * 0.25)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_normalised_per_channel(folder, kind):
    shift, scale = [0.5, -1.0, 2.0, 0.0], [1.0, 2.0, 0.25, 4.0]
    plain = LatentDataset(folder)[2]["latents"]
    scaled = LatentDataset(folder, shift=kind(shift), scale=kind(scale))[2]["latents"]
    for channel in range(4):
        expected = (plain[channel] - shift[channel]) * scale[channel]
        assert torch.equal(scaled[channel], expected)
    wide = torch.tensor(shift).view(1, 4, 1, 1)  # as trainers keep them
    assert torch.equal(LatentDataset(folder, shift=wide)[2]["latents"], plain - wide[0])
    one = LatentDataset(folder, shift=shift, scale=kind([2.0]))[2]["latents"]
    assert torch.equal(one, (plain - wide[0]) * 2)
    assert pickle.loads(pickle.dumps(LatentDataset(folder, shift=shift)))[2]["latents"].equal(
        plain - wide[0]
    )


@pytest.mark.parametrize(
    "shift", [[1.0, 2.0], "x", [[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0, 3.0, float("nan")], None]
)
def test_numbers_for_other_channels_are_refused(folder, shift):
    with pytest.raises(UsageError, match="shift") as caught:
        LatentDataset(folder, shift=shift)
    assert caught.value.hint == "give one number, or 4"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_everything_once(shards, start):
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip("not on this system")
    dataset = LatentDataset(shards, crop=2)
    dataset[0]  # with a file mapped already
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=start)
    torch.manual_seed(0)
    batches = list(loader)
    assert [tuple(batch["latents"].shape) for batch in batches] == [
        (2, 4, 2, 2), (2, 4, 2, 2), (1, 4, 2, 2)
    ]  # fmt: skip
    assert [key for batch in batches for key in batch["key"]] == [k for k, _, _ in pictures()]


def test_whole_pictures_come_as_a_list(folder):
    loader = DataLoader(
        LatentDataset(folder), batch_size=2, num_workers=1, collate_fn=collate_latents
    )
    batches, every = list(loader), list(pictures())
    assert [len(batch["latents"]) for batch in batches] == [2, 2, 1]
    found = [latents for batch in batches for latents in batch["latents"]]
    assert all(np.array_equal(a, values) for a, (_, _, values) in zip(found, every, strict=True))
    assert [key for batch in batches for key in batch["key"]] == [key for key, _, _ in every]
    widths = torch.cat([batch["width"] for batch in batches])
    assert widths.tolist() == [info.width for _, info, _ in every]


def test_a_batch_from_a_worker_takes_few_open_files(folder):
    """Each storage is one, and a process may have about 1,000."""
    loader = DataLoader(
        LatentDataset(folder), batch_size=5, num_workers=1, collate_fn=collate_latents
    )
    (batch,) = loader
    tensors = [*batch["latents"], *(batch[name] for name in ("width", "height", "top", "left"))]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 2


def test_latents_of_several_dtypes_are_collated_too(folder):
    samples = list(LatentDataset(folder))
    dtypes = [torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.float16]
    for sample, dtype in zip(samples, dtypes, strict=True):
        sample["latents"] = sample["latents"].to(dtype)
    found = collate_latents(samples)["latents"]
    assert [latents.dtype for latents in found] == dtypes
    assert all(torch.equal(a, b["latents"]) for a, b in zip(found, samples, strict=True))


def test_batches_of_one_size_differ_from_torchs_own_in_latents_alone(folder):
    dataset = LatentDataset(folder, crop=2)
    samples = [dataset[number] for number in range(3)]
    ours, torchs = collate_latents(samples), default_collate(samples)
    assert ours.keys() == torchs.keys()
    assert torch.equal(torch.stack(ours["latents"]), torchs["latents"])
    assert ours["key"] == torchs["key"]
    for name in ("width", "height", "top", "left"):
        assert torch.equal(ours[name], torchs[name])


def test_workers_and_epochs_draw_crops_of_their_own(tmp_path):
    for number in range(40):
        info = replace(INFO, width=800, height=800)
        write_latent(tmp_path / f"{number}.safetensors", latent(0, 100, 100), info)
    loader = DataLoader(LatentDataset(tmp_path, crop=1), batch_size=20, num_workers=2)
    batches = [tuple(batch["top"].tolist()) for _ in range(2) for batch in loader]
    assert len(set(batches)) == 4


def test_few_files_stay_mapped_whatever_the_number_of_datasets(tmp_path):
    datasets = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(40):
            values = latent(number, 1, 1)
            write_latent(tmp_path / folder / f"{number:02}.safetensors", values, INFO)
        datasets.append(LatentDataset(tmp_path / folder))
    for sample, number in zip(ConcatDataset(datasets), [*range(40)] * 2, strict=True):
        assert np.array_equal(sample["latents"], latent(number, 1, 1))
    assert stae_cli.latents.mapped._map.cache_info().currsize == stae_cli.latents.mapped.OPEN_MAPS
    copy = pickle.loads(pickle.dumps(datasets[0]))
    assert torch.equal(copy[3]["latents"], datasets[0][3]["latents"])


def test_a_crop_that_nothing_fits_is_refused(folder):
    with pytest.raises(StaeError, match="all 5 latents are smaller"):
        LatentDataset(folder, crop=50)
    with pytest.raises(StaeError, match="at least 1"):
        LatentDataset(folder, crop=(0, 4))


@pytest.mark.parametrize("crop", [(1, 2, 3), (1,), 2.5, (2.5, 1), "44", {1: 2}])
def test_what_is_no_crop_is_refused(folder, crop):
    with pytest.raises(UsageError, match="is not a crop"):
        LatentDataset(folder, crop=crop)


def test_what_is_no_path_is_refused(folder):
    with pytest.raises(UsageError, match="give each as an argument"):
        LatentDataset([folder])
    with pytest.raises(UsageError, match="`s3://bucket/latents` is a URL"):
        LatentDataset("s3://bucket/latents")


def test_several_checkpoints_are_refused(files):
    other = replace(INFO, weights="photo-2", weights_sha256="cd" * 32)
    write_latent(files / "sub" / "z.safetensors", latent(0, 1, 1), other)
    with pytest.raises(StaeError, match=r"z\.safetensors.*photo-2.*p0\.safetensors.*photo-1"):
        LatentDataset(files)


def test_a_key_that_comes_twice_is_refused(files, shards):
    with pytest.raises(StaeError, match=r"`sub/p0` is stored twice.*p0.safetensors.*shard-00000"):
        LatentDataset(files, shards)


@pytest.mark.parametrize("also", [".", "./", "../link"])
def test_a_folder_that_is_given_twice_is_read_once(files, also):
    (files.parent / "link").symlink_to(files)
    assert len(LatentDataset(files, f"{files}/{also}")) == len(LatentDataset(files))


@pytest.mark.parametrize("also", ["sub", "sub/p1.safetensors", "link/sub"])
def test_sources_that_overlap_are_refused(files, also):
    """Else everything would come twice."""
    (files.parent / "link").symlink_to(files)
    other = files.parent / also if also.startswith("link") else f"{files}/{also}"
    with pytest.raises(StaeError, match=r"listed twice.*overlap|stored twice"):
        LatentDataset(files, other)


def test_latents_with_each_others_names_are_refused(files):
    one, other = files / "sub" / "p0.safetensors", files / "sub" / "p3.safetensors"
    one.rename(files / "aside")
    other.rename(one)
    assert len(LatentDataset(files)) == 4  # merely renamed
    (files / "aside").rename(other)
    with pytest.raises(StaeError, match=r"p0.safetensors.*is that of `sub/p0.jpg`.*p3.jpg.*rename"):
        LatentDataset(files)


def test_damaged_and_foreign_files_are_named(folder, tmp_path):
    broken = next(path for path in folder.rglob("*.safetensors"))
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(StaeError, match=f"{broken.name}.*truncated"):
        LatentDataset(folder)


def test_a_file_that_was_replaced_is_noticed(folder):
    dataset = LatentDataset(folder)
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StaeError, match="has changed"):
        dataset[0]
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(StaeError, match="cannot read"):
        dataset[0]


def overwrite_data(folder, values):
    """Puts values in the place of the data of `sub/p1`, behind the same header."""
    (place,) = (s for s in list_latents([folder]).latents if s.key == "sub/p1")
    with place.file.path.open("r+b") as file:
        file.seek(place.begin)
        file.write(latent_bytes(values))
    return place.file.place


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("value", [0, np.nan, 5])
def test_data_that_are_not_those_written_are_refused(folder, value, workers):
    place = overwrite_data(folder, np.full((4, 6, 4), value, np.float16))
    loader = DataLoader(LatentDataset(folder, crop=1), batch_size=1, num_workers=workers)
    with pytest.raises(StaeError, match=r"`sub/p1` in .* is damaged.*not those.*--check") as error:
        list(loader)
    assert place in str(error.value)
    assert len(list(DataLoader(LatentDataset(folder, check=False, crop=1)))) == 5


def test_without_a_checksum_only_finite_data_pass(tmp_path, monkeypatch):
    """As in files of early versions."""
    monkeypatch.setattr(latents_format, "checksum", lambda _: "")
    write_latent(tmp_path / "a.safetensors", np.zeros((4, 1, 1), np.float16), INFO)
    write_latent(tmp_path / "b.safetensors", np.full((4, 1, 1), np.inf, np.float32), INFO)
    dataset = LatentDataset(tmp_path)
    assert not dataset[0]["latents"].any()
    with pytest.raises(StaeError, match=r"b\.safetensors.*NaN or infinity"):
        dataset[1]


def test_each_latent_is_checked_once_also_in_workers(folder, monkeypatch):
    checked = []
    monkeypatch.setattr(
        stae_cli.latents.mapped, "checksum", lambda data: checked.append(1) or zlib.crc32(data)
    )
    dataset = LatentDataset(folder, crop=1)
    if "fork" in torch.multiprocessing.get_all_start_methods():
        list(DataLoader(dataset, num_workers=2, multiprocessing_context="fork"))
        list(dataset)
        assert not checked
    else:
        list(dataset)
    assert len(list(pickle.loads(pickle.dumps(dataset)))) == 5
    assert len(checked) in (0, 5)


def test_a_file_that_is_replaced_at_the_last_moment_is_noticed(files, monkeypatch):
    """The new one would be read where the old one's data were."""
    dataset, memmap = LatentDataset(files, check=False), np.memmap

    def late(place, *rest):
        (files / "new").write_bytes(b"x" + Path(place).read_bytes())
        (files / "new").replace(place)
        return memmap(place, *rest)

    monkeypatch.setattr(np, "memmap", late)
    with pytest.raises(StaeError, match="has changed"):
        dataset[0]


def test_there_must_be_latents(tmp_path):
    with pytest.raises(StaeError, match="no such file"):
        LatentDataset(tmp_path / "absent")
    with pytest.raises(StaeError, match="no inputs found"):
        LatentDataset(tmp_path)


def test_file_systems_that_map_nothing_are_read(folder, monkeypatch):
    whole = [sample["latents"] for sample in LatentDataset(folder)]

    def unmapped(*_arguments):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(np, "memmap", unmapped)
    stae_cli.latents.mapped._map.cache_clear()
    read = [sample["latents"] for sample in LatentDataset(folder)]
    assert all(map(torch.equal, read, whole))
