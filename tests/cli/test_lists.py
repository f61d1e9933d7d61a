"""`stae encode --from-list`: images by the lines of a file or of stdin."""

import io
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


def test_what_is_wrong_with_the_whole_list_is_said(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    stae("encode", out, "--weights", tiny).assert_fails(2, "nothing to encode", "--from-list")
    absent = stae("encode", out, "--from-list", tmp_path / "absent", "--weights", tiny)
    absent.assert_fails(2, "absent")
    (photos / "twice").write_text("p0.png\n./p0.png\n")
    twice = stae("encode", out, "--from-list", photos / "twice", "--weights", tiny)
    twice.assert_fails(2, "would both write")
    beside = stae("encode", photos, out, "--from-list", photos / "twice", "--weights", tiny)
    beside.assert_fails(2, "would both write")
    (photos / "empty").write_text("\n")
    empty = stae("encode", out, "--from-list", photos / "empty", "--weights", tiny)
    empty.assert_fails(1, "no inputs found")
    assert not out.exists()
