"""DEST: whole files or none, and what dead runs left is cleared."""

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage import temp_files
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.temp_files import STALE_SECONDS, STALE_SECONDS_HERE, owner


@pytest.fixture
def dest(tmp_path):
    destination = FolderDestination(tmp_path / "dest")
    destination.prepare()
    return destination


def names(dest):
    return sorted(path.name for path in dest.folder.rglob("*") if path.is_file())


def test_a_file_appears_when_it_is_whole(dest):
    with dest.writing("a/b.txt") as path:
        path.write_text("half")
        assert not dest.path("a/b.txt").exists()
        assert path.parent == dest.path("a/b.txt").parent
    assert dest.path("a/b.txt").read_text() == "half"
    assert names(dest) == ["b.txt"]


def test_nothing_is_left_of_a_failed_write(dest):
    def fail():
        with dest.writing("a.txt") as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(dest) == []


def test_an_older_output_survives_a_failed_write(dest):
    dest.path("a.txt").write_text("old")

    def fail():
        with dest.writing("a.txt") as path:
            path.write_text("new")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StaeError, match="disk is full"):
        fail()
    assert dest.path("a.txt").read_text() == "old"


def test_files_obey_the_umask(dest):
    previous = os.umask(0o027)
    try:
        with dest.writing("a.txt") as path:
            path.write_text("x")
    finally:
        os.umask(previous)
    if os.name == "posix":
        assert dest.path("a.txt").stat().st_mode & 0o777 == 0o640


def test_a_file_as_dest_is_refused(tmp_path):
    (tmp_path / "dest").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        FolderDestination(tmp_path / "dest").prepare()
    with pytest.raises(UsageError, match=r"cannot be made: .* is a file"):
        FolderDestination(tmp_path / "dest" / "below").prepare()


def test_a_dest_that_vanishes_is_told(dest):
    def write():
        with dest.writing("a.txt") as path:
            path.write_text("x")

    write()
    dest.path("a.txt").unlink()
    dest.folder.rmdir()
    with pytest.raises(StaeError, match="cannot write"):
        write()


def test_only_abandoned_temporaries_are_cleared(dest, caplog):
    caplog.set_level("INFO", logger="stae_cli.storage")
    host = temp_files.host_name()
    space = owner().removeprefix(f"{host}-{os.getpid()}")  # of this machine and container
    dead, living = 2**22 + 1, os.getppid()  # past the largest process number
    day, hour = (time.time() - age - 60 for age in (STALE_SECONDS, STALE_SECONDS_HERE))
    for name, changed, stays in [
        (f".stae-{host}-{dead}-00000000.tmp", None, False),  # of early versions
        (f".stae-{host}-{living}-00000001.tmp", None, True),
        (f".stae-{host}-{dead}{space}-00000000.tmp", None, False),
        (f".stae-{host}-{living}{space}-00000001.tmp", None, True),
        (f".stae-{host}-{dead}-0123abcd-00000000.tmp", None, True),  # in another container
        (f".stae-{host}-{living}-0123abcd-00000001.tmp", None, True),
        (f".stae-{host}-{dead}-0123abcd-00000002.tmp", hour, False),
        (f".stae-another-host-{dead}-00000002.tmp", hour, True),
        (f".stae-another-host-{dead}-00000003.tmp", day, False),
        (f".stae-another-host-{dead}-0123abcd-00000003.tmp", day, False),
        (".mine.tmp", day, True),
    ]:
        folder = dest.folder / "deep"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        if changed:
            os.utime(folder / name, (changed, changed))
        FolderDestination(dest.folder).prepare()
        assert (folder / name).exists() is stays, name
        assert any(name in message for message in caplog.messages) is not stays


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs Linux")
def test_names_say_which_container_writes(monkeypatch):
    mine = owner()
    monkeypatch.setattr(Path, "stat", lambda _: SimpleNamespace(st_ino=5))
    temp_files._process_space.cache_clear()
    assert owner().rpartition("-")[0] == mine.rpartition("-")[0]
    assert owner() != mine
    monkeypatch.undo()
    temp_files._process_space.cache_clear()
    assert owner() == mine
