"""Captions and labels beside pictures: found, stored, kept up to date without the network."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from stae_cli import LatentDataset
from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.latents.listing import stored_in
from stae_cli.storage.entry import FileEntry
from tests.pictures import noise, write_photos

LAYOUTS = [[], ["--shard-size", 4]]
CAT = 'a "cat",\nasleep — 猫'


@pytest.fixture
def photos(tmp_path):
    """p0 to p6, and sub/p7 and sub/p8."""
    return write_photos(tmp_path / "photos")


@pytest.fixture(params=LAYOUTS, ids=["files", "shards"])
def encode(request, stae, tiny, tmp_path):
    def run(source, *options, code=0, dest="out"):
        command = ["encode", source, tmp_path / dest, "--weights", tiny, "--json"]
        ran = stae(*command, *request.param, *options)
        assert ran.code == code, ran.err
        return ran

    return run


def stored(folder):
    files = sorted(folder.rglob("*.safetensors"))
    found = [each for file in files for each in stored_in(FileEntry(file.name, str(file)))]
    return {each.info.source: each for each in found}


def notes(folder):
    """Caption and label by source, of those that have one."""
    every = {key: (each.info.caption, each.info.label) for key, each in stored(folder).items()}
    return {key: noted for key, noted in every.items() if noted != ("", -1)}


def data(folder):
    return {key: each.read().tobytes() for key, each in stored(folder).items()}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network ran")

    return lambda: monkeypatch.setattr(PixelCodec, "begin_encoding", refuse)


def test_files_beside_pictures(encode, photos, tmp_path):
    (photos / "p0.txt").write_text(f"  {CAT}\n", encoding="utf-8-sig")
    (photos / "p1.caption").write_text("second")
    (photos / "p2.json").write_text(json.dumps({"prompt": "third", "label": 5, "url": "x"}))
    (photos / "p3.txt").write_text("text counts")
    (photos / "p3.json").write_text(json.dumps({"caption": "json does not", "label": 7}))
    (photos / "p4.json").write_text(json.dumps(["of", "another", "program"]))
    (photos / "sub" / "p7.cls").write_text("12\n")
    (photos / "other.txt").write_text("of no picture")
    ran = encode(photos)
    assert ran.json["passed_over_by_suffix"] == {".txt": 1}
    assert notes(tmp_path / "out") == {
        "p0.png": (CAT, -1),
        "p1.png": ("second", -1),
        "p2.png": ("third", 5),
        "p3.png": ("text counts", 7),
        "sub/p7.png": ("", 12),
    }
    samples = {s["key"]: (s["caption"], s["label"]) for s in LatentDataset(tmp_path / "out")}
    assert samples["p0"] == (CAT, -1)
    assert samples["sub/p7"] == ("", 12)


def test_what_is_new_is_noticed_without_the_network(encode, photos, tmp_path, no_network):
    for number in (0, 1, 2):
        (photos / f"p{number}.txt").write_text(f"caption {number}")
    encode(photos)
    before = data(tmp_path / "out")
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    no_network()
    assert encode(photos).json["noted"] == 0
    assert files == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    (photos / "p0.txt").write_text("changed")
    (photos / "p1.txt").unlink()
    (photos / "sub" / "p8.txt").write_text("added")
    ran = encode(photos)
    assert (ran.json["done"], ran.json["skipped"], ran.json["noted"]) == (0, 9, 3)
    assert notes(tmp_path / "out") == {
        "p0.png": ("changed", -1),
        "p2.png": ("caption 2", -1),
        "sub/p8.png": ("added", -1),
    }
    assert data(tmp_path / "out") == before
    assert encode(photos).json["noted"] == 0


def test_flips_stay_when_captions_change(encode, photos, tmp_path):
    encode(photos, "--flip")
    before = {
        key: [z.tobytes() for z in each.read_both()]
        for key, each in stored(tmp_path / "out").items()
    }
    (photos / "p0.txt").write_text("new")
    assert encode(photos, "--flip").json["noted"] == 1
    after = {
        key: [z.tobytes() for z in each.read_both()]
        for key, each in stored(tmp_path / "out").items()
    }
    assert after == before


def test_the_report_says_so(stae, photos, tiny, tmp_path):
    command = ["encode", photos, tmp_path / "out", "--weights", tiny]
    stae(*command)
    (photos / "p0.txt").write_text("new")
    ran = stae(*command)
    assert "skipped 9 already done, 1 with new captions or labels" in ran.err


def test_damaged_notes_are_failures_and_can_be_left_out(encode, photos, tmp_path):
    (photos / "p0.txt").write_bytes(b"caf\xe9")
    (photos / "p1.txt").write_text("x" * 70_000)
    (photos / "p2.json").write_text("{")
    (photos / "p3.cls").write_text("cat")
    (photos / "p4.json").write_text(json.dumps({"label": -3}))
    (photos / "p5.json").write_text(json.dumps({"caption": 7}))
    (photos / "p6.json").write_text("[" * 2_000_000)
    ran = encode(photos, code=3)
    reasons = {row["source"]: row["reason"] for row in ran.json["failures"]}
    assert {key: reason.split(" in its ")[-1] for key, reason in reasons.items()} == {
        "p0.png": ".txt is not UTF-8",
        "p1.png": ".txt has more than 64 KiB",
        "p2.png": "its .json is not JSON",
        "p3.png": ".cls is not the number of a class: 'cat'",
        "p4.png": ".json is not the number of a class: -3",
        "p5.png": ".json is not text",
        "p6.png": "its .json has more than 1 MiB",
    }
    assert set(stored(tmp_path / "out")) == {"sub/p7.png", "sub/p8.png"}
    assert encode(photos, "--no-captions").json["done"] == 7
    assert notes(tmp_path / "out") == {}
    again = encode(photos, code=3)
    assert again.json["failed"] == 7
    assert "the latent that was there stays" in again.json["failures"][0]["reason"]
    assert len(stored(tmp_path / "out")) == 9


def test_captions_are_kept_where_they_are_not_read(encode, photos, tmp_path):
    (photos / "p0.txt").write_text("first")
    encode(photos)
    (photos / "p0.txt").write_text("second")
    assert encode(photos, "--no-captions").json["noted"] == 0
    assert notes(tmp_path / "out") == {"p0.png": ("first", -1)}


def test_metadata_of_hugging_face(encode, photos, tmp_path):
    rows = [
        {"file_name": "p0.png", "text": CAT, "label": 3},
        {"file_name": "./p1.png", "caption": "one", "label": "a class's name"},
        {"file_name": "absent.png", "text": "nobody"},
        {"no": "file"},
    ]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    below = {"file_name": "p7.png", "prompt": "below"}
    (photos / "sub" / "metadata.jsonl").write_text(json.dumps(below))
    (photos / "p1.txt").write_text("beside it counts")
    ran = encode(photos)
    assert ran.json["passed_over"] == 0
    assert notes(tmp_path / "out") == {
        "p0.png": (CAT, 3),
        "p1.png": ("beside it counts", -1),
        "sub/p7.png": ("below", -1),
    }
    rows[0]["text"] = "another"
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert encode(photos).json["noted"] == 1
    assert notes(tmp_path / "out")["p0.png"] == ("another", 3)
    (photos / "metadata.jsonl").write_text('{"file_name": "p0.png"}\n{"file')
    encode(photos, code=2).assert_fails(2, "metadata.jsonl", "after 1 pictures", "--no-captions")


def test_the_dataset_file_of_edm(encode, photos, tmp_path):
    (photos / "dataset.json").write_text(json.dumps({"labels": [["p0.png", 6], ["sub/p8.png", 0]]}))
    encode(photos)
    assert notes(tmp_path / "out") == {"p0.png": ("", 6), "sub/p8.png": ("", 0)}
    (photos / "dataset.json").write_text(json.dumps({"labels": None, "of": "something else"}))
    assert encode(photos).json["noted"] == 0  # a label that nothing contradicts stays


@pytest.fixture
def classes(tmp_path):
    for number, name in enumerate(["cat", "ant", "Zebra"]):
        (tmp_path / "classes" / name / "deep").mkdir(parents=True)
        for place in (name, f"{name}/deep"):
            Image.fromarray(noise(20 + number, 20)).save(tmp_path / "classes" / place / "a.png")
    (tmp_path / "classes" / ".hidden").mkdir()
    return tmp_path / "classes"


def test_folders_are_classes_in_the_order_of_their_names(encode, classes, tmp_path, no_network):
    encode(classes, "--class-folders")
    found = {key: label for key, (_, label) in notes(tmp_path / "out").items()}
    expected = {"Zebra": 0, "ant": 1, "cat": 2}  # as Python sorts
    assert found == {
        f"{n}/{rest}": k for n, k in expected.items() for rest in ("a.png", "deep/a.png")
    }
    before = data(tmp_path / "out")
    (classes / "bee").mkdir()  # a class without a picture counts
    no_network()
    assert encode(classes, "--class-folders").json["noted"] == 2
    assert notes(tmp_path / "out")["cat/a.png"] == ("", 3)
    assert data(tmp_path / "out") == before


def test_a_dest_with_classes_stays_one(encode, classes, tmp_path):
    encode(classes)
    assert notes(tmp_path / "out") == {}
    assert encode(classes, "--class-folders").json["noted"] == 6
    refused = encode(classes, code=1)
    refused.assert_fails(1, "labels: none, not class folders (--class-folders)")
    assert len(notes(tmp_path / "out")) == 6
    assert encode(classes, "--class-folders").json["noted"] == 0


def test_class_folders_need_classes(stae, encode, photos, classes, tmp_path):
    encode(photos, "--class-folders", code=2).assert_fails(2, "`p0.png` is in no folder")
    with tarfile.open(classes / "cat" / "more.tar", "w"):
        pass
    encode(classes, "--class-folders", code=2).assert_fails(2, "without tars")
    encode(photos / "p0.png", "--class-folders", code=2).assert_fails(2, "one SOURCE")
    stae("encode", classes, photos, tmp_path / "o", "--class-folders").assert_fails(2, "one SOURCE")
    encode(photos, "--class-folders", "--no-captions", code=2).assert_fails(2, "reads no labels")
    assert not (tmp_path / "out").exists()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(seed):
    file = io.BytesIO()
    Image.fromarray(noise(21, 17, seed=seed)).save(file, "PNG")
    return file.getvalue()


def test_samples_of_a_tar(encode, tmp_path):
    (tmp_path / "tars").mkdir()
    members = {
        "000.cls": b"3",  # before its picture
        "000.png": png(0),
        "000.txt": CAT.encode(),
        "a/001.png": png(1),
        "a/001.json": json.dumps({"caption": "from JSON", "key": "001"}).encode(),
        "002.png": png(2),
        "003.txt": b"of no picture",
        "004.png": png(4),
        "004.txt": b"caf\xe9",
    }
    write_tar(tmp_path / "tars" / "00.tar", members)
    ran = encode(tmp_path / "tars", code=3)
    assert [row["source"] for row in ran.json["failures"]] == ["00/004.png"]
    expected = {"00/000.png": (CAT, 3), "00/a/001.png": ("from JSON", -1)}
    assert notes(tmp_path / "out") == expected
    members |= {"000.txt": b"new", "004.txt": b"fixed"}
    members["002.txt"] = b"added"
    write_tar(tmp_path / "tars" / "00.tar", members)
    assert encode(tmp_path / "tars").json["failed"] == 0
    assert notes(tmp_path / "out") == {
        "00/000.png": ("new", 3),
        "00/a/001.png": ("from JSON", -1),
        "00/002.png": ("added", -1),
        "00/004.png": ("fixed", -1),
    }


def test_files_that_are_named_one_by_one(stae, photos, tiny, tmp_path):
    (photos / "p0.txt").write_text("zero")
    (photos / "p1.txt").write_text("one")
    (photos / "list").write_text("p1.png\np2.png\n")
    command = ["--weights", tiny, "--from-list", photos / "list"]
    ran = stae("encode", photos / "p0.png", tmp_path / "out", *command)
    assert ran.code == 0, ran.err
    assert notes(tmp_path / "out") == {"p0.png": ("zero", -1), "p1.png": ("one", -1)}


def test_all_processes_of_a_run_carry_them(stae, classes, tiny, tmp_path):
    (classes / "cat" / "a.txt").write_text("a cat")
    command = ["encode", classes, tmp_path / "out", "--weights", tiny, "--json"]
    command += ["--shard-size", 2, "--class-folders"]
    assert stae(*command).code == 0
    assert notes(tmp_path / "out")["cat/a.png"] == ("a cat", 2)
    (classes / "cat" / "a.txt").write_text("another cat")
    Image.fromarray(noise(30, 20, seed=9)).save(classes / "bee.png")
    (classes / "bee").mkdir()
    (classes / "bee.png").rename(classes / "bee" / "a.png")
    (classes / "bee" / "a.txt").write_text("a bee")
    ran = stae(*command, "--device", "cpu,cpu")
    assert ran.code == 0, ran.err
    found = notes(tmp_path / "out")
    assert found["cat/a.png"] == ("another cat", 3)
    assert found["bee/a.png"] == ("a bee", 2)


def test_a_changed_picture_gets_its_caption_too(encode, photos, tmp_path):
    (photos / "p0.txt").write_text("first")
    encode(photos)
    (photos / "p0.txt").write_text("second")
    Image.fromarray(noise(44, 31, seed=5)).save(photos / "p0.png")
    ran = encode(photos)
    assert (ran.json["done"], ran.json["noted"]) == (1, 0)
    assert notes(tmp_path / "out") == {"p0.png": ("second", -1)}


def test_damaged_data_are_not_written_again(encode, photos, tmp_path):
    """The latent of a picture whose caption changed is compared with its checksum."""
    encode(photos)
    first = stored(tmp_path / "out")["p0.png"]
    path = next((tmp_path / "out").rglob(first.file.key))
    whole = bytearray(path.read_bytes())
    whole[first.begin] ^= 1
    path.write_bytes(whole)
    (photos / "p0.txt").write_text("new")
    encode(photos, code=1).assert_fails(1, "p0", "not those that were written", "--check")
    assert path.read_bytes() == bytes(whole)
    assert encode(photos, "--check").json["done"] == 1
    assert notes(tmp_path / "out") == {"p0.png": ("new", -1)}
    assert np.isfinite(stored(tmp_path / "out")["p0.png"].read()).all()
