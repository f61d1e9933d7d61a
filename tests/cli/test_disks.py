"""Encodes whose disk fills up, whose DEST or sources go away, or that may not write."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.latents.listing import list_latents
from stae_cli.storage import destination, temp_files
from stae_cli.storage.entry import FileEntry
from stae_cli.storage.temp_files import temporary_name
from tests.pictures import noise

LAYOUTS = {"files": [], "shards": ["--shard-size", 8]}


@pytest.fixture
def photos(tmp_path):
    """24 small photos, every third one in a folder."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for number in range(24):
        folder = "sub/" if number % 3 == 0 else ""
        pixels = noise(64 + number, 64, number)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{folder}p{number:02}.png")
    return tmp_path / "photos"


@contextlib.contextmanager
def mounted(folder: Path, *options: str):
    """A mount on a new folder, gone afterwards; skips where that is not allowed."""
    folder.mkdir(exist_ok=True)
    ran = subprocess.run(["mount", *options, folder], check=False, capture_output=True)
    if ran.returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("mount") is None, reason="mounts"
)


def left_over(dest: Path) -> list[Path]:
    return [path for path in dest.rglob("*") if path.name.endswith(".tmp")]


def stored(dest: Path) -> dict[str, bytes]:
    return {s.key: s.read().tobytes() for s in list_latents([dest]).latents}


@linux
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_stops_the_run_and_a_rerun_completes_it(stae, photos, tiny, tmp_path, layout):
    options = ["--weights", tiny, *LAYOUTS[layout]]
    stae("encode", photos, tmp_path / "whole", *options)
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=100k", "none") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(56 << 10))
        ran = stae("encode", photos, disk / "out", *options)
        ran.assert_fails(1, "the disk is full", "free some disk space")
        assert left_over(disk) == []
        partial = stored(disk / "out")
        assert 0 < len(partial) < 24
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        assert stae("encode", photos, disk / "out", *options, "--json").json["skipped"] == len(
            partial
        )
        assert stored(disk / "out") == stored(tmp_path / "whole")
        assert left_over(disk) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dest_that_is_removed_is_told_and_not_made_again(
    stae, photos, tiny, tmp_path, monkeypatch, layout
):
    out, encode_pixels = tmp_path / "out", PixelCodec.encode_pixels

    def removed(self, pictures):
        shutil.rmtree(out, ignore_errors=True)
        return encode_pixels(self, pictures)

    monkeypatch.setattr(PixelCodec, "encode_pixels", removed)
    ran = stae("encode", photos, out, "--weights", tiny, *LAYOUTS[layout])
    ran.assert_fails(1, "cannot write", "check DEST")
    assert not out.exists()
    monkeypatch.undo()
    assert stae("encode", photos, out, "--weights", tiny, *LAYOUTS[layout]).code == 0
    assert len(stored(out)) == 24


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sources_that_vanish_or_change_are_listed_and_done_the_next_time(
    stae, photos, tiny, tmp_path, monkeypatch, layout
):
    gone, changing = photos / "p01.png", photos / "p02.png"
    kept = gone.read_bytes()
    state, calls = FileEntry.state, []

    def disturbed(self):
        if self.path == gone:
            gone.unlink(missing_ok=True)
        elif self.path == changing:
            calls.append(1)
            Image.fromarray(noise(70 + len(calls), 50)).save(changing)
        return state(self)

    monkeypatch.setattr(FileEntry, "state", disturbed)
    out = tmp_path / "out"
    arguments = ["encode", photos, out, "--weights", tiny, "--json", *LAYOUTS[layout]]
    ran = stae(*arguments)
    assert (ran.code, ran.json["done"]) == (3, 22)
    listed = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    reasons = {row["source"]: row["reason"] for row in listed}
    assert reasons.keys() == {"p01.png", "p02.png"}
    assert "No such file" in reasons["p01.png"]
    assert "changed while it was read" in reasons["p02.png"]
    monkeypatch.undo()
    gone.write_bytes(kept)
    again = stae(*arguments)
    assert (again.code, again.json["done"], again.json["skipped"]) == (0, 2, 22)
    assert len(stored(out)) == 24


@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_stay_when_their_sources_cannot_be_read(
    stae, photos, tiny, tmp_path, monkeypatch, layout
):
    """A share that comes and goes must not cost what was made while it was there."""
    out, state = tmp_path / "out", FileEntry.state
    arguments = ["encode", photos, out, "--weights", tiny, *LAYOUTS[layout]]
    assert stae(*arguments).code == 0
    whole = stored(out)

    def unreachable(self):
        if photos in self.path.parents and int(self.path.stem[1:]) % 2:
            raise OSError(5, "Input/output error")
        return state(self)

    monkeypatch.setattr(FileEntry, "state", unreachable)
    ran = stae(*arguments, "--json")
    assert (ran.code, ran.json["failed"]) == (3, 12)
    assert "Input/output error" in ran.err
    assert stored(out) == whole


@linux
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dest_that_becomes_read_only_is_told(stae, photos, tiny, tmp_path, monkeypatch, layout):
    options = ["--weights", tiny, "--batch-patches", 600, *LAYOUTS[layout]]
    encode_pixels, calls = PixelCodec.encode_pixels, []
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "none") as disk:

        def locking(self, pictures):
            calls.append(1)
            if len(calls) == 2:
                for process in range(200):  # a remount waits for files that are being written
                    command = ["mount", "-o", "remount,ro", disk]
                    if not subprocess.run(command, check=False, capture_output=True).returncode:
                        break
                    assert process < 199
            return encode_pixels(self, pictures)

        monkeypatch.setattr(PixelCodec, "encode_pixels", locking)
        ran = stae("encode", photos, disk / "out", *options)
        ran.assert_fails(1, "Read-only file system", "check DEST")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        monkeypatch.undo()
        # The next run is another process, which removes what this one was not able to.
        monkeypatch.setattr(temp_files, "STARTED", time.time())
        assert stae("encode", photos, disk / "out", *options).code == 0
        assert len(stored(disk / "out")) == 24
        assert left_over(disk) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strict_stops_at_the_first_failure(stae, photos, tiny, tmp_path, layout):
    damaged = photos / "p10.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:60])
    out = tmp_path / "out"
    arguments = ["encode", photos, out, "--weights", tiny, "--batch-patches", 300]
    arguments += LAYOUTS[layout]
    stae(*arguments, "--strict", "--workers", 1).assert_fails(1, "p10.png", "--strict")
    assert left_over(out) == []
    listed = (out / "failures.jsonl").read_text()
    assert len(stored(out) if any(out.rglob("*.safetensors")) else {}) < 23
    assert [json.loads(line)["source"] for line in listed.splitlines()] == ["p10.png"]
    damaged.write_bytes(whole)
    assert stae(*arguments, "--strict").code == 0
    assert len(stored(out)) == 24


def test_names_that_a_file_system_cannot_hold_are_listed(stae, tiny, tmp_path):
    """250 characters and `.jpg` are a name; with `.safetensors` they are too many."""
    source = tmp_path / "photos"
    source.mkdir()
    for name in ("x" * 250, "fine"):
        Image.fromarray(noise(16, 16)).save(source / f"{name}.png")
    for extra in ([], ["--overwrite"]):
        ran = stae("encode", source, tmp_path / "out", "--weights", tiny, "--json", *extra)
        assert (ran.code, ran.json["failed"]) == (3, 1)
        assert "too long" in ran.err
        assert (tmp_path / "out" / "fine.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced")
@pytest.mark.parametrize("layout", [*LAYOUTS, "pictures"])
def test_what_is_counted_survives_a_power_failure(
    stae, photos, tiny, tmp_path, monkeypatch, layout
):
    """Files are on disk before they get their names, and then their names are."""
    synced, fsync, out = [], os.fsync, tmp_path / "out"

    def watched(number):
        found = os.fstat(number)
        synced.append((found.st_ino, found.st_size, found.st_mtime_ns))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watched)
    if layout == "pictures":
        stae("encode", photos, tmp_path / "latents", "--weights", tiny)
        synced.clear()
        assert stae("decode", tmp_path / "latents", out, "--weights", tiny).code == 0
    else:
        assert stae("encode", photos, out, "--weights", tiny, *LAYOUTS[layout]).code == 0
    for path in [out, *out.rglob("*")]:
        found = path.stat()
        assert (found.st_ino, found.st_size, found.st_mtime_ns) in synced, path


def test_a_disk_that_fails_to_complete_a_file_stops_the_run(
    stae, photos, tiny, tmp_path, monkeypatch
):
    calls, fsync, out = [], os.fsync, tmp_path / "out"

    def failing(number):
        calls.append(number)
        if len(calls) > 5:
            raise OSError(errno.EIO, "Input/output error")
        fsync(number)

    monkeypatch.setattr(os, "fsync", failing)
    stae("encode", photos, out, "--weights", tiny).assert_fails(1, "cannot write", "error")
    assert left_over(out) == []
    assert 0 < len(stored(out)) < 24
    monkeypatch.undo()
    assert stae("encode", photos, out, "--weights", tiny).code == 0
    assert len(stored(out)) == 24


def test_temporaries_of_a_process_of_the_same_number_are_cleared(tmp_path):
    """In a container that starts anew every process has the number of its forerunner."""
    left, mine = tmp_path / temporary_name(), tmp_path / temporary_name()
    left.touch()
    os.utime(left, (1, 1))
    mine.touch()
    destination.FolderDestination(tmp_path).prepare()
    assert not left.exists()
    assert mine.exists()
