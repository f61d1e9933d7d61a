"""`stae encode` of tars as users run it: the latents of the folder that a tar was made from."""

import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest
from PIL import Image

from stae_cli.latents.listing import list_latents
from tests.pictures import noise, write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def tars(photos, tmp_path):
    """The photos in two tars as WebDataset has them, with captions beside."""
    folder = tmp_path / "tars"
    (folder / "more").mkdir(parents=True)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    for tar, part in [("a.tar", names[:5]), ("more/b.tar", names[5:])]:
        with tarfile.open(folder / tar, "w") as file:
            for name in part:
                file.add(photos / name, name)
                caption = tarfile.TarInfo(name.replace(".png", ".txt"))
                caption.size = 3
                file.addfile(caption, io.BytesIO(b"cat"))
    return folder


@pytest.fixture
def encode(stae, tiny, tmp_path):
    def run(source, *options, dest="out"):
        return stae("encode", source, tmp_path / dest, "--weights", tiny, *options, "--json")

    return run


def stored(dest):
    """The bytes of every latent by key, in whichever layout."""
    listing = list_latents([dest])
    assert not listing.problems
    return {latent.key: latent.read().tobytes() for latent in listing.latents}


def times(dest):
    return {path: path.stat().st_mtime_ns for path in dest.rglob("*.safetensors")}


@pytest.mark.parametrize("options", [(), ("--shard-size", 2)])
def test_tars_give_the_latents_of_the_folder_they_were_made_from(
    encode, photos, tars, tmp_path, options
):
    assert encode(photos, *options, dest="folder").code == 0
    ran = encode(tars, *options)
    assert (ran.code, ran.json["done"]) == (0, 9)
    latents = {key.removeprefix("a/").removeprefix("more/b/"): data
               for key, data in stored(tmp_path / "out").items()}  # fmt: skip
    assert latents == stored(tmp_path / "folder")
    before = times(tmp_path / "out")
    assert encode(tars, *options).json["skipped"] == 9
    assert times(tmp_path / "out") == before


def test_tars_beside_files(stae, encode, tars, tiny, tmp_path):
    Image.fromarray(noise(20, 20)).save(tars / "z.png")
    assert encode(tars, "--shard-size", 3).json["done"] == 10
    names = sorted(p.relative_to(tmp_path / "out").as_posix() for p in times(tmp_path / "out"))
    assert names == [f"{folder}shard-0000{number}.safetensors"
                     for folder, count in [("a/", 2), ("more/b/", 2), ("", 1)]
                     for number in range(count)]  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert {row["key"]: row["shard"] for row in rows} == {
        latent.key: latent.file.key for latent in list_latents([tmp_path / "out"]).latents
    }
    pictures = tmp_path / "pictures"
    assert stae("decode", tmp_path / "out", pictures, "--weights", tiny).code == 0
    assert len(list(pictures.rglob("*.png"))) == 10
    assert (pictures / "more/b/sub/p8.png").exists()


def test_a_tar_as_the_source(encode, tars, tmp_path):
    assert encode(tars / "more" / "b.tar").json["done"] == 4
    assert stored(tmp_path / "out").keys() == {"b/p5", "b/p6", "b/sub/p7", "b/sub/p8"}


@pytest.mark.parametrize("options", [(), ("--shard-size", 4)])
def test_an_odd_tar_is_listed_and_harmless(encode, tmp_path, options):
    source = tmp_path / "tars"
    source.mkdir()
    picture = io.BytesIO()
    Image.fromarray(noise(20, 12)).save(picture, "PNG")
    data = picture.getvalue()
    long = "d/" * 30 + "x" * 150 + ".png"
    with tarfile.open(source / "odd.tar", "w") as file:
        for name in ("a.png", "../up.png", "/root.png", "a.jpg", ".hidden.png", long, "bad.png"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data if name != "bad.png" else bytes(len(data))))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    whole = (source / "odd.tar").read_bytes()
    (source / "cut.tar").write_bytes(whole[:700])
    (source / "text.tar").write_text("no tar")
    ran = encode(source, *options)
    assert (ran.code, ran.json["done"]) == (3, 2)
    assert {failure["source"] for failure in ran.json["failures"]} == {
        "odd/../up.png", "odd//root.png", "odd/a.jpg", "odd/bad.png", "odd/link.png",
        "cut.tar", "text.tar",
    }  # fmt: skip
    assert stored(tmp_path / "out").keys() == {"odd/a", f"odd/{long[:-4]}"}
    assert not list(tmp_path.rglob("up*")) + list(tmp_path.rglob("root*"))
    kept = encode(source, *options, "--keep-extension", dest="kept")
    assert kept.json["done"] == 3
    assert "odd/a.jpg" in stored(tmp_path / "kept")


@pytest.mark.parametrize("options", [(), ("--shard-size", 4)])
def test_an_unreadable_tar_loses_nothing(encode, tars, tmp_path, monkeypatch, options):
    assert encode(tars, *options).code == 0
    latents, before = stored(tmp_path / "out"), times(tmp_path / "out")
    next_member, read = tarfile.TarFile.next, []

    def failing(self):
        read.append(1)
        if len(read) == 4:
            raise OSError(5, "Input/output error")
        return next_member(self)

    monkeypatch.setattr(tarfile.TarFile, "next", failing)
    ran = encode(tars, *options)
    assert (ran.code, ran.json["failed"], ran.json["done"]) == (3, 1, 0)
    assert "Input/output error" in ran.json["failures"][0]["reason"]
    assert (stored(tmp_path / "out"), times(tmp_path / "out")) == (latents, before)


def test_a_tar_that_shrank_leaves_no_shard_unseen(encode, tars, tmp_path):
    assert encode(tars, "--shard-size", 2).code == 0
    with tarfile.open(tars / "a.tar", "w") as file:
        picture = io.BytesIO()
        Image.fromarray(noise(20, 12)).save(picture, "PNG")
        info = tarfile.TarInfo("new.png")
        info.size = len(picture.getvalue())
        file.addfile(info, io.BytesIO(picture.getvalue()))
    ran = encode(tars, "--shard-size", 2)
    assert (ran.code, ran.json["done"]) == (3, 1)
    (failure,) = ran.json["failures"]
    assert failure["source"] == "a/shard-00001.safetensors"
    assert "remove it" in failure["reason"]
    for name in ("a/shard-00001.safetensors", "a/shard-00002.safetensors"):
        (tmp_path / "out" / name).unlink()
    assert encode(tars, "--shard-size", 2).code == 0
    assert {key for key in stored(tmp_path / "out") if key.startswith("a/")} == {"a/new"}


def test_tars_that_would_share_a_folder_are_refused(encode, tars, tmp_path):
    (tars / "a").mkdir()
    Image.fromarray(noise(20, 20)).save(tars / "a" / "x.png")
    encode(tars).assert_fails(2, "x.png", "a.tar")
    (tars / "a" / "x.png").unlink()
    (tars / "more" / "b.tar").rename(tars / "a" / "b.tar")
    encode(tars).assert_fails(2, "b.tar", "a.tar")
    assert not (tmp_path / "out").exists()


def test_pixels_of_a_tar_are_read_as_those_of_files(encode, tmp_path):
    """Orientation and all: the same code reads both."""
    pixels = Image.fromarray(noise(24, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    pixels.save(tmp_path / "photos" / "a.jpg", exif=exif)
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        file.add(tmp_path / "photos" / "a.jpg", "a.jpg")
    encode(tmp_path / "photos", dest="folder")
    encode(tmp_path / "t.tar", dest="tar")
    assert stored(tmp_path / "tar")["t/a"] == stored(tmp_path / "folder")["a"]
    (latent,) = list_latents([tmp_path / "tar"]).latents
    assert np.prod(latent.shape[1:]) == 6
    assert (latent.info.width, latent.info.height) == (16, 24)


def test_a_tar_that_is_cut_short_takes_nothing_away(encode, tars, tmp_path):
    """It may be a copy that is under way."""
    tar, out = tars / "a.tar", tmp_path / "out"
    assert encode(tars, "--shard-size", 4).code == 0
    latents, whole = stored(out), tar.read_bytes()
    with tarfile.open(tar) as file:
        second = [member.offset for member in file][2]
    tar.write_bytes(whole[: second + 700])
    ran = encode(tars, "--shard-size", 4)
    assert (ran.code, ran.json["failed"]) == (3, 1)
    assert stored(out) == latents
    listed = [json.loads(line)["key"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert set(listed) >= {key for key in latents if key.startswith("more/")}
    tar.write_bytes(whole)
    assert encode(tars, "--shard-size", 4).code == 0
    assert stored(out) == latents


@pytest.mark.parametrize("options", [(), ("--shard-size", 2)])
def test_a_member_that_is_appended_again_counts(stae, encode, tars, photos, tmp_path, options):
    """The tar says which version counts; its other members keep their places in shards."""
    assert encode(tars, *options).code == 0
    first = stored(tmp_path / "out")
    with tarfile.open(tars / "a.tar", "a") as file:
        file.add(photos / "p1.png", "./p0.png")
    for done, skipped in ((5, 4), (0, 9)):
        ran = encode(tars, *options)
        assert (ran.code, ran.json["done"], ran.json["skipped"]) == (0, done, skipped)
    now = stored(tmp_path / "out")
    assert now["a/p0"] == now["a/p1"] == first["a/p1"] != first["a/p0"]
    assert {**now, "a/p0": first["a/p0"]} == first
    assert list(now) == list(first)
    assert stae("verify", tmp_path / "out", "--against", tars).code == 0
    assert "is in its tar again; the last one counts" in encode(tars, "--verbose", *options).err


@pytest.mark.parametrize("options", [(), ("--shard-size", 2)])
def test_compressed_tars_under_any_name(stae, encode, tars, tmp_path, options):
    assert encode(tars, *options, dest="plain").code == 0
    (tars / "a.tar").write_bytes(gzip.compress((tars / "a.tar").read_bytes()))
    (tars / "more" / "b.tar.xz").write_bytes(lzma.compress((tars / "more" / "b.tar").read_bytes()))
    (tars / "more" / "b.tar").unlink()
    for done, skipped in ((9, 0), (0, 9)):
        ran = encode(tars, *options)
        assert (ran.code, ran.json["done"], ran.json["skipped"]) == (0, done, skipped)
    assert stored(tmp_path / "out") == stored(tmp_path / "plain")
    assert stae("verify", tmp_path / "out", "--against", tars).code == 0
    packed = (tars / "more" / "b.tar.xz").read_bytes()
    (tars / "more" / "b.tar.xz").write_bytes(packed[:-30])
    ran = encode(tars, *options)
    assert (ran.code, ran.json["failures"][0]["source"]) == (3, "more/b.tar.xz")
    assert stored(tmp_path / "out") == stored(tmp_path / "plain")
    (tars / "more" / "b.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    encode(tars, *options).assert_fails(2, "b.tar.xz", "b.tar.zst", "would both write")
