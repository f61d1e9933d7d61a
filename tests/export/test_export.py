"""`stae export` as users run it: each format read back as its trainer reads it, to the last bit."""

import io
import json
import os
import signal
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from stae_cli import LatentDataset
from stae_cli.export.run import MARK
from stae_cli.latents.format import write_latent
from stae_cli.latents.listing import stored_in
from stae_cli.storage.entry import FileEntry
from tests.launcher import wait_for
from tests.pictures import noise
from tests.shards import write_latents

LEAVES_FILES_OPEN = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
FORMATS = ["lightningdit", "webdataset", "parquet", "npy", "fast-dit", "mar"]
CAPTION = 'a "cat",\nasleep — 猫'


@pytest.fixture
def photos(tmp_path):
    """Six pictures in two class folders, one of them below another folder; some have captions."""
    for number, name in enumerate(["ant/0", "ant/1.v2", "ant/deep/2", "bee/3", "bee/4", "bee/5"]):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(40 + number, 33, seed=number)).save(path)
    (tmp_path / "photos" / "bee" / "3.txt").write_text(CAPTION, encoding="utf-8")
    return tmp_path / "photos"


@pytest.fixture(params=[[], ["--shard-size", 4]], ids=["files", "shards"])
def latents(request, stae, photos, tiny, tmp_path):
    command = ["encode", photos, tmp_path / "latents", "--weights", tiny, "--square", 32]
    ran = stae(*command, "--flip", "--class-folders", *request.param)
    assert ran.code == 0, ran.err
    return tmp_path / "latents"


@pytest.fixture
def export(stae, latents, tmp_path):
    def run(to, *options, code=0):
        ran = stae("export", latents, tmp_path / "out", "--to", to, *options, "--json")
        assert ran.code == code, ran.err
        assert not list(tmp_path.glob(".stae-*"))
        return ran

    return run


def stored(folder):
    """Everything by key, read with the package's own reader, which other tests are about."""
    files = sorted(folder.rglob("*.safetensors"))
    found = [each for file in files for each in stored_in(FileEntry(file.name, str(file)))]
    places = {file.name: file for file in files}
    named = {}
    for each in found:
        source = each.info.source.rpartition(".")[0]
        path = places[each.file.key]
        named[source] = (
            *replace(each, file=FileEntry(path.name, str(path))).read_both(),
            each.info,
        )
    return named


def figures(latents):
    """Mean and deviation of each channel, computed at once in float64."""
    values = np.concatenate([z.reshape(16, -1) for z, _, _ in stored(latents).values()], axis=1)
    values = values.astype(np.float64)
    return values.mean(1), values.std(1, ddof=1)


def normal(latent, mean, std):
    mean, std = (np.float32(values).reshape(-1, 1, 1) for values in (mean, std))
    return (latent.astype(np.float32) - mean) / std


def written_statistics(folder):
    found = torch.load(folder / "latents_stats.pt", weights_only=True)
    assert {name: each.shape for name, each in found.items()} == {
        "mean": (1, 16, 1, 1),
        "std": (1, 16, 1, 1),
    }
    assert {each.dtype for each in found.values()} == {torch.float32}
    return found["mean"].numpy().ravel(), found["std"].numpy().ravel()


def test_lightningdit(export, latents, tmp_path):
    """As its own dataset reads a folder: every safetensors file, by global index."""
    assert export("lightningdit", "--per-file", 4).json["latents"] == 6
    names = ["latents_rank00_shard000.safetensors", "latents_rank00_shard001.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == names
    read = []
    for name, count in zip(names, (4, 2), strict=True):
        with safe_open(tmp_path / "out" / name, framework="pt") as file:
            assert file.metadata() == {
                "total_size": str(count),
                "dtype": "torch.float16",
                "device": "cpu",
            }
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            assert shapes == {
                "latents": [count, 16, 4, 4],
                "latents_flip": [count, 16, 4, 4],
                "labels": [count],
            }
            for index in range(count):
                names_there = ("latents", "latents_flip", "labels")
                parts = [file.get_slice(key)[index : index + 1] for key in names_there]
                read.append((parts[0][0], parts[1][0], int(parts[2][0])))
    expected = stored(latents)
    assert len(read) == len(expected)
    for (latent, flip, label), (z, zf, info) in zip(read, expected.values(), strict=True):
        assert latent.dtype == torch.float16
        assert (latent.numpy().tobytes(), flip.numpy().tobytes()) == (z.tobytes(), zf.tobytes())
        assert label == info.label
    mean, std = written_statistics(tmp_path / "out")
    for found, exact in zip((mean, std), figures(latents), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


@LEAVES_FILES_OPEN
def test_webdataset(export, latents, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="needs pip install webdataset")
    export("webdataset", "--per-file", 4)
    index = json.loads((tmp_path / "out" / "wids-meta.json").read_text())
    tars = [tmp_path / "out" / each["url"] for each in index["shardlist"]]
    assert [path.name for path in tars] == ["latents-00000.tar", "latents-00001.tar"]
    assert [each["filesize"] for each in index["shardlist"]] == [p.stat().st_size for p in tars]
    assert [each["nsamples"] for each in index["shardlist"]] == [4, 2]
    dataset = webdataset.WebDataset([str(path) for path in tars], shardshuffle=False).decode()
    samples = {sample["__key__"]: sample for sample in dataset}
    expected = stored(latents)
    keys = {"ant/1.v2": "ant/1_v2"}
    assert set(samples) == {keys.get(key, key) for key in expected}
    for key, (z, zf, info) in expected.items():
        sample = samples[keys.get(key, key)]
        assert sample["npy"].dtype == np.float16
        assert sample["npy"].tobytes() == z.tobytes()
        assert sample["flip.npy"].tobytes() == zf.tobytes()
        assert (sample["txt"], sample["cls"]) == (info.caption, info.label)
        assert sample["json"] == {
            "key": key,
            "width": 32,
            "height": 32,
            "original_width": info.original_width,
            "original_height": info.original_height,
            "prompt": info.caption,
            "weights_sha256": info.weights_sha256,
            "label": info.label,
        }
    assert samples["bee/3"]["txt"] == CAPTION


@LEAVES_FILES_OPEN
def test_webdataset_by_datasets(export, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets", reason="needs pip install datasets")
    export("webdataset")
    files = str(tmp_path / "out" / "*.tar")
    rows = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    found = {row["json"]["key"]: row for row in rows}
    for key, (z, _, info) in stored(latents).items():
        assert np.asarray(found[key]["npy"], np.float16).tobytes() == z.tobytes()
        assert found[key]["cls"] == info.label
        assert found[key]["txt"] == info.caption


def test_parquet(export, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets", reason="needs pip install datasets")
    export("parquet", "--per-file", 4)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2
    files = str(tmp_path / "out" / "*.parquet")
    cache = str(tmp_path / "cache")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    expected = stored(latents)
    assert rows["key"][:] == list(expected)
    for row in rows:
        z, zf, info = expected[row["key"]]
        latent = np.frombuffer(row["latents"], "<f2").reshape(row["shape"])
        assert latent.tobytes() == z.tobytes()
        assert row["latents_flip"] == zf.tobytes()
        assert (row["caption"], row["label"]) == (info.caption, info.label)
        assert (row["width"], row["height"]) == (32, 32)
    from pyarrow import parquet

    schema = parquet.read_schema(tmp_path / "out" / "latents-00000.parquet")
    about = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert about["weights_sha256"] == info.weights_sha256
    assert (about["dtype"], about["normalize"]) == ("float16", "none")


def folder_samples(folder, load, suffix):
    """As torchvision's `DatasetFolder` lists them: classes by name, files by name."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    for number, name in enumerate(classes):
        for root, _, files in sorted(os.walk(folder / name, followlinks=True)):
            for file in sorted(files):
                assert file.endswith(suffix)
                path = os.path.join(root, file)  # noqa: PTH118
                yield os.path.relpath(path, folder), load(path), number


def test_npy_tree(export, latents, tmp_path):
    export("npy")
    found = list(folder_samples(tmp_path / "out", np.load, ".npy"))
    mean, std = written_statistics(tmp_path / "out")
    expected = stored(latents)
    assert len(found) == len(expected)
    for path, values, number in found:
        z, _, info = expected[path.removesuffix(".npy")]
        assert number == info.label
        assert values.dtype == np.float32
        assert values.tobytes() == normal(z, mean, std).astype("<f4").tobytes()
    every = np.concatenate([values.reshape(16, -1) for _, values, _ in found], axis=1)
    np.testing.assert_allclose(every.mean(1), 0, atol=2e-3)
    np.testing.assert_allclose(every.std(1), 1, atol=2e-2)


def test_fast_dit(export, latents, tmp_path):
    export("fast-dit", "--normalize", "none")
    features, labels = (
        sorted((tmp_path / "out" / f"imagenet256_{what}").iterdir())
        for what in ("features", "labels")
    )
    assert [path.name for path in features] == [f"{number:08}.npy" for number in range(6)]
    for feature, label, (z, _, info) in zip(
        features, labels, stored(latents).values(), strict=True
    ):
        assert np.load(feature).dtype == np.float32
        assert np.array_equal(np.load(feature), z[None].astype(np.float32))
        assert np.load(label).tolist() == [info.label]
        assert np.load(label).dtype == np.int64


def test_mar(export, latents, tmp_path):
    """Its sampler: mean + exp(0.5 * logvar) * noise, with logvar clamped to [-30, 20]."""
    export("mar", "--normalize", "none")
    expected = stored(latents)
    for path, values, number in folder_samples(tmp_path / "out", np.load, ".npz"):
        z, zf, info = expected[path.removesuffix(".npz")]
        assert number == info.label
        for name, exact in (("moments", z), ("moments_flip", zf)):
            mean, log_variance = torch.from_numpy(values[name]).chunk(2)
            drawn = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * torch.randn(mean.shape)
            assert values[name].dtype == np.float32
            assert np.array_equal(mean, exact.astype(np.float32))
            assert (drawn - mean).abs().max() < 2e-6


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_latents_are_the_same_files(stae, latents, tmp_path, to):
    for name in ("a", "b"):
        assert stae("export", latents, tmp_path / name, "--to", to).code == 0
    one, other = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*")
            if p.is_file()
        }
        for n in ("a", "b")
    )
    assert one == other


def test_normalised_files_become_the_same_pictures(stae, latents, tiny, tmp_path):
    """What went through an export and `--stats` is what `stae decode` makes of the latents."""
    for how in ("channel", "scalar"):
        out = tmp_path / how
        assert stae("export", latents, out, "--to", "npy", "--normalize", how).code == 0
        command = ["decode", out, tmp_path / f"{how}-pictures", "--weights", tiny]
        ran = stae(*command, "--stats", out / "latents_stats.pt")
        assert ran.code == 0, ran.err
    assert stae("decode", latents, tmp_path / "direct", "--weights", tiny).code == 0
    for path in (tmp_path / "direct").rglob("*.png"):
        name = path.relative_to(tmp_path / "direct")
        for how in ("channel", "scalar"):
            pictures = [
                np.asarray(Image.open(folder / name)).astype(int)
                for folder in (tmp_path / "direct", tmp_path / f"{how}-pictures")
            ]
            assert np.abs(pictures[0] - pictures[1]).max() <= 2


def test_given_statistics_count(stae, latents, tmp_path):
    ran = stae("stats", latents, "--json")
    (tmp_path / "stats.json").write_text(ran.out)
    out = tmp_path / "out"
    command = ["export", latents, out, "--to", "fast-dit", "--stats", tmp_path / "stats.json"]
    assert stae(*command).code == 0
    mean, std = written_statistics(out)
    assert mean.tolist() == np.float32(ran.json["mean"]).tolist()
    assert std.tolist() == np.float32(ran.json["std"]).tolist()
    other = json.loads(ran.out) | {"weights_sha256": "ab" * 32}
    (tmp_path / "stats.json").write_text(json.dumps(other))
    stae(*command, "--overwrite").assert_fails(2, "another checkpoint")
    (tmp_path / "stats.json").write_text("{}")
    stae(*command, "--overwrite").assert_fails(2, "no `mean` and `std`")
    stae(*command, "--normalize", "none", "--overwrite").assert_fails(2, "nothing is normalized")


def test_what_a_format_cannot_hold_is_refused(stae, photos, tiny, tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert stae("encode", photos, plain, "--weights", tiny).code == 0  # sizes, no label, no flip
    for to in ("lightningdit", "fast-dit", "mar"):
        stae("export", plain, out, "--to", to).assert_fails(1, "one size", "--square")
    same = tmp_path / "same"
    assert stae("encode", photos, same, "--weights", tiny, "--square", 32).code == 0
    for to in ("lightningdit", "fast-dit"):
        stae("export", same, out, "--to", to).assert_fails(1, "ant/0", "a label", "--class-folders")
    stae("export", same, out, "--to", "mar").assert_fails(1, "mirrored", "--flip")
    assert (
        stae("encode", photos, same, "--weights", tiny, "--square", 32, "--class-folders").code == 0
    )
    stae("export", same, out, "--to", "lightningdit").assert_fails(1, "mirrored", "--flip")
    assert not out.exists()
    for to in ("webdataset", "parquet", "npy"):
        assert stae("export", plain, tmp_path / to, "--to", to).code == 0


def test_folders_and_labels_that_contradict_each_other(stae, tmp_path, info):
    folder, out = tmp_path / "latents", tmp_path / "out"
    for key, label in (("b/0", 0), ("a/1", 1)):
        (folder / key).parent.mkdir(parents=True)
        write_latent(folder / f"{key}.safetensors", LATENT, replace(info(key), label=label))
    stae("export", folder, out, "--to", "npy").assert_fails(1, "`a` would be class 0", "label 1")
    write_latent(folder / "b/2.safetensors", LATENT, replace(info("b/2"), label=5))
    stae("export", folder, out, "--to", "npy").assert_fails(1, "latents in `b`", "labels 0 and 5")
    write_latent(folder / "3.safetensors", LATENT, info("3"))
    stae("export", folder, out, "--to", "npy").assert_fails(1, "`3` is in none")


def test_latents_without_a_source_are_warned_of(stae, photos, tiny, tmp_path):
    command = ["encode", photos, tmp_path / "latents", "--weights", tiny]
    stae(*command)
    (photos / "bee" / "5.png").unlink()
    stae(*command)
    ran = stae("export", tmp_path / "latents", tmp_path / "out", "--to", "webdataset")
    assert ran.code == 0
    assert "warning: " in ran.err
    assert "whose sources are gone: 1" in ran.err


def test_keys_that_a_tar_would_confuse(stae, tmp_path, info):
    write_latents(tmp_path / "s.safetensors", [(key, info(key), LATENT) for key in ("a.b", "a_b")])
    ran = stae("export", tmp_path / "s.safetensors", tmp_path / "out", "--to", "webdataset")
    ran.assert_fails(1, "`a.b` and `a_b`", "one key")


LATENT = np.random.default_rng(0).standard_normal((16, 2, 2)).astype(np.float16)


@pytest.fixture
def info(stae, tiny, tmp_path):
    """What is recorded of a latent of 16x16 pixels, by its key."""
    (tmp_path / "one").mkdir()
    Image.fromarray(noise(16, 16)).save(tmp_path / "one" / "x.png")
    assert stae("encode", tmp_path / "one", tmp_path / "template", "--weights", tiny).code == 0
    path = tmp_path / "template" / "x.safetensors"
    (found,) = stored_in(FileEntry(path.name, str(path)))
    bare = replace(found.info, data_crc32="", source_root="")
    return lambda key: replace(bare, source=f"{key}.png")


def test_long_and_foreign_names_in_tars(stae, tmp_path, info):
    keys = ["n" * 90, "d/" * 20 + "n" * 70, "é" * 60, "x"]
    write_latents(tmp_path / "s.safetensors", [(key, info(key), LATENT) for key in keys])
    ran = stae("export", tmp_path / "s.safetensors", tmp_path / "out", "--to", "webdataset")
    assert ran.code == 0, ran.err
    with tarfile.open(tmp_path / "out" / "latents-00000.tar") as tar:
        assert tar.getnames() == [f"{key}.{field}" for key in keys for field in ("npy", "json")]
        assert {member.mtime for member in tar} == {0}
        for key in keys:
            assert np.array_equal(np.load(io.BytesIO(tar.extractfile(f"{key}.npy").read())), LATENT)


def test_damaged_latents_end_the_export(stae, latents, tmp_path):
    path = sorted(latents.rglob("*.safetensors"))[0]
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 0x20
    path.write_bytes(whole)
    for to in FORMATS:
        ran = stae("export", latents, tmp_path / "out", "--to", to)
        if ran.code == 0:  # the damage is in a flip, which this one does not hold
            assert to in ("npy", "fast-dit")
            continue
        ran.assert_fails(1, "is damaged", "--check")
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".stae-*"))


def test_dest_is_ours_or_empty(stae, export, latents, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export("webdataset")
    stae("export", latents, out, "--to", "npy").assert_fails(2, "holds an export", "--overwrite")
    export("npy", "--overwrite")
    assert not list(out.glob("*.tar"))
    (out / MARK).unlink()
    stae("export", latents, out, "--to", "npy", "--overwrite").assert_fails(2, "other files")
    (tmp_path / "file").write_text("x")
    stae("export", latents, tmp_path / "file", "--to", "npy").assert_fails(2, "is a file")
    stae("export", latents, latents / "in", "--to", "npy").assert_fails(2, "inside SOURCE")
    stae("export", latents, "s3://bucket/x", "--to", "npy").assert_fails(2, "is a URL")
    stae("export", "s3://bucket/x", out, "--to", "npy").assert_fails(2, "is a URL")
    stae("export", tmp_path / "absent", tmp_path / "o", "--to", "npy").assert_fails(2, "absent")
    stae(
        "export", latents, tmp_path / "o", "--to", "lightningdit", "--normalize", "channel"
    ).assert_fails(1, "normalises by itself")
    stae("export", latents, tmp_path / "o").assert_fails(2, "--to")


def test_a_mount_is_filled_and_a_link_is_followed(stae, latents, tmp_path, monkeypatch):
    """As containers have it: what is mounted cannot be renamed."""
    mount = tmp_path / "mount"
    mount.mkdir()
    ismount = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(mount) or ismount(path))
    before = mount.stat().st_ino
    (mount / ".stae-here-999999999-0000000000.tmp").mkdir()  # left by a dead process of this name
    command = ["export", latents, mount, "--to"]
    ran = stae(*command, "webdataset")
    assert ran.code == 0, ran.err
    stae(*command, "npy").assert_fails(2, "holds an export")
    assert stae(*command, "npy", "--overwrite").code == 0
    assert mount.stat().st_ino == before
    names = {path.name for path in mount.iterdir() if not path.name.endswith(".tmp")}
    assert names == {"ant", "bee", "latents_stats.pt", MARK}
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert stae("export", latents, tmp_path / "link", "--to", "webdataset").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "latents-00000.tar").exists()


def test_a_failed_overwrite_leaves_the_old_export(stae, export, latents, tmp_path):
    export("webdataset")
    before = (tmp_path / "out" / "latents-00000.tar").read_bytes()
    path = sorted(latents.rglob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-1])
    ran = stae("export", latents, tmp_path / "out", "--to", "webdataset", "--overwrite")
    assert ran.code == 1
    assert (tmp_path / "out" / "latents-00000.tar").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_export_leaves_nothing_that_looks_finished(stae, launcher, tmp_path, info, number):
    shard = [(f"a/{n:05}", info(f"a/{n:05}"), LATENT) for n in range(9000)]
    write_latents(tmp_path / "s.safetensors", shard)
    out = tmp_path / "out"
    command = ["export", tmp_path / "s.safetensors", out, "--to", "npy"]
    with launcher.running(*command, log=tmp_path / "log") as process:
        wait_for(
            lambda: len(list(tmp_path.glob(".stae-*/a/*"))) > 100,
            ended=process.has_ended,
        )
        code = process.end_by(number)
    assert code in (130, 143, -number)
    assert not out.exists()
    assert bool(list(tmp_path.glob(".stae-*"))) == (number == signal.SIGKILL)
    assert stae(*command).code == 0
    assert not list(tmp_path.glob(".stae-*"))
    assert len(list(out.rglob("*.npy"))) == 9000


@LEAVES_FILES_OPEN
def test_labels_and_captions_survive_to_the_loader(stae, photos, tiny, tmp_path):
    """From class folders and caption files, over an export, to what training reads."""
    webdataset = pytest.importorskip("webdataset", reason="needs pip install webdataset")
    latents = tmp_path / "latents"
    stae("encode", photos, latents, "--weights", tiny, "--class-folders")
    assert stae("export", latents, tmp_path / "out", "--to", "webdataset").code == 0
    tar = str(tmp_path / "out" / "latents-00000.tar")
    found = {s["json"]["key"]: s for s in webdataset.WebDataset(tar, shardshuffle=False).decode()}
    for sample in LatentDataset(latents):
        other = found[sample["key"]]
        assert (other["txt"], other["cls"]) == (sample["caption"], sample["label"])
        assert np.array_equal(other["npy"].astype(np.float32), sample["latents"])
