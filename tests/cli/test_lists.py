"""`--from-list`: images by the lines of a file or of stdin."""

import codecs
import io
import os
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from stae_cli import LatentDataset
from tests.pictures import noise, write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", 4)


def outputs(dest):
    return {path.relative_to(dest).as_posix() for path in dest.rglob("*.safetensors")}


def test_paths_count_from_the_lists_folder(stae, photos, tiny, tmp_path):
    absolute = photos / "p1.png"
    (photos / "list.txt").write_text(f"p0.png\r\n\n  \n./sub/p2.png\n{absolute}\n")
    out = tmp_path / "out"
    ran = stae("encode", out, "--from-list", photos / "list.txt", "--weights", tiny)
    assert ran.code == 0, ran.err
    below = absolute.relative_to(absolute.anchor).with_suffix(".safetensors").as_posix()
    assert outputs(out) == {"p0.safetensors", "sub/p2.safetensors", below}


def test_stdin_counts_from_the_working_folder(stae, photos, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"sub/p3.png")))
    ran = stae("encode", tmp_path / "out", "--from-list", "-", "--weights", tiny)
    assert ran.code == 0, ran.err
    assert outputs(tmp_path / "out") == {"sub/p3.safetensors"}


def test_what_is_listed_by_a_hidden_name_is_found_again(stae, tiny, tmp_path):
    (tmp_path / ".x").mkdir()
    for name in (".x/b.png", "c.png", ".a.png"):
        Image.fromarray(noise(16, 16)).save(tmp_path / name)
    (tmp_path / "list").write_text(".x/b.png\nc.png\n.a.png\n")
    out = tmp_path / "out"
    assert stae("encode", "--from-list", tmp_path / "list", out, "--weights", tiny).code == 0
    (out / "._c.safetensors").write_bytes(b"what a Mac leaves on foreign disks")
    ran = stae("decode", out, tmp_path / "pictures", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"]) == (0, 3)
    assert stae("verify", out, "--json").json["latents"] == 3
    assert len(LatentDataset(out)) == 3


def test_lines_that_give_nothing_are_listed(stae, photos, tiny, tmp_path):
    (photos / "list.txt").write_text("p0.png\n../photos/p1.png\nabsent.png\nsub\ns3://b/x.png\n")
    ran = stae("encode", tmp_path / "out", "--from-list", photos / "list.txt", "--weights", tiny)
    assert ran.code == 3
    assert "encoded 1, skipped 0 already done, failed 4" in ran.err
    for word in ("../photos/p1.png", "absent.png", "sub: ", "s3://b/x.png"):
        assert word in ran.err


@pytest.mark.parametrize(
    "data",
    [
        *("p0.png\r\nsub/p2.png\r\n".encode(name) for name in ("utf-8-sig", "utf-16", "utf-32")),
        codecs.BOM_UTF16_BE + "p0.png\nsub/p2.png".encode("utf-16-be"),
        b"p0.png\0sub/p2.png\0",  # find -print0
        b"./p0.png\0./sub/p2.png\0\n",
    ],
)
def test_lists_as_tools_write_them(stae, photos, tiny, tmp_path, data):
    (photos / "list").write_bytes(data)
    out = tmp_path / "out"
    ran = stae("encode", out, "--from-list", photos / "list", "--weights", tiny, "--json")
    assert (ran.code, ran.json["failed"]) == (0, 0), ran.err
    assert outputs(out) == {"p0.safetensors", "sub/p2.safetensors"}


@pytest.mark.skipif(os.name == "nt", reason="has no such names")
def test_names_may_hold_line_breaks_where_nuls_end_them(stae, photos, tiny, tmp_path):
    (photos / "p0.png").rename(photos / "two\r\nlines.png")
    (photos / "list").write_bytes(b"two\r\nlines.png\0p1.png\0")
    out = tmp_path / "out"
    assert stae("encode", out, "--from-list", photos / "list", "--weights", tiny).code == 0
    assert outputs(out) == {"two\r\nlines.safetensors", "p1.safetensors"}


def test_what_is_given_twice_is_encoded_once(stae, photos, tiny, tmp_path):
    (photos / "twice").write_text("p0.png\n./p0.png\np1.png\np0.png\n")
    out = tmp_path / "out"
    ran = stae("encode", out, "--from-list", photos / "twice", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["passed_over"]) == (0, 2, 2)
    assert "passed over 2 other files: given twice 2" in ran.err
    same = photos / ".." / photos.name
    ran = stae("encode", photos, same, out, "--from-list", photos / "twice", "--weights", tiny)
    assert ran.code == 0
    assert "encoded 2, skipped 2 already done, failed 0" in ran.err
    assert stae("verify", out, "--against", photos, "--against", same).code == 0
    ran = stae("decode", out, out, tmp_path / "pictures", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"]) == (0, 4)
    assert len(LatentDataset(out, out)) == 4


def test_a_run_of_a_list_can_be_verified(stae, photos, tiny, tmp_path, monkeypatch):
    lines = (photos / "list").write_text("p0.png\nsub/p2.png\n") and photos / "list"
    out = tmp_path / "out"
    assert stae("encode", out, "--from-list", lines, "--weights", tiny).code == 0
    ran = stae("verify", out, "--from-list", lines, "--reencode", 1, "--weights", tiny, "--json")
    assert (ran.code, ran.json["sources"], len(ran.json["reencoded"])) == (0, 2, 1)
    monkeypatch.chdir(photos)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"p0.png\np1.png")))
    ran = stae("verify", out, "--from-list", "-", "--json")
    assert (ran.code, ran.json["counts"]) == (3, {"missing": 1, "orphaned": 1})
    (photos / "rest").write_text("p1.png\n")
    assert stae("encode", photos / "sub", out, "--from-list", "rest", "--weights", tiny).code == 0
    both = ("--against", photos / "sub", "--from-list", lines, "--json")
    assert stae("verify", out, *both).json["counts"] == {"orphaned": 1}


def test_what_is_wrong_with_the_whole_list_is_said(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    stae("encode", out, "--weights", tiny).assert_fails(2, "nothing to encode", "--from-list")
    absent = stae("encode", out, "--from-list", tmp_path / "absent", "--weights", tiny)
    absent.assert_fails(2, "absent")
    copy = tmp_path / "copy" / "p0.png"
    copy.parent.mkdir()
    copy.write_bytes((photos / "p0.png").read_bytes())
    stae("encode", photos, copy, out, "--weights", tiny).assert_fails(2, "would both write")
    for data in ("p0.png\np1.png\n".encode("utf-16-le"), codecs.BOM_UTF16_LE + b"p0.png\n"):
        (photos / "wide").write_bytes(data)
        wide = stae("encode", out, "--from-list", photos / "wide", "--weights", tiny)
        wide.assert_fails(2, "wide", "UTF-16", "UTF-8")
    (photos / "empty").write_text("\n")
    empty = stae("encode", out, "--from-list", photos / "empty", "--weights", tiny)
    empty.assert_fails(1, "no inputs found")
    assert not out.exists()
