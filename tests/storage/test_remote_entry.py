"""Objects of stores as files: read in parts, fetched whole, and what is left of dead processes."""

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from stae_cli.errors import InputError
from stae_cli.storage.fsspec_store import is_url, store_at
from stae_cli.storage.remote_destination import destination_at
from stae_cli.storage.remote_entry import HEAD, RemoteEntry, RemoteOutput
from stae_cli.storage.temp_files import host_name

pytest.importorskip("fsspec", reason="needs pip install 'stae[remote]'")


@pytest.fixture
def store():
    store = store_at("memory://box")
    store.fs.store.clear()
    yield store
    store.fs.store.clear()


def test_a_url_is_no_path():
    assert is_url("s3://bucket/a")
    assert is_url("hf://datasets/a/b")
    assert not any(map(is_url, ("a/b", "/a", "C:\\a", "c://a", "s3:/a", "-")))


def test_parts_are_those_of_the_object(store):
    data = np.random.default_rng(0).integers(0, 256, 2 * HEAD + 77, np.uint8).tobytes()
    store.fs.pipe_file("/box/x", data)
    with RemoteOutput("x", store, "x").open() as file:
        assert file.read(8) == data[:8]
        assert file.read(HEAD) == data[8 : HEAD + 8]
        for begin, size in ((0, 5), (HEAD - 3, 6), (HEAD + 9, 99), (len(data) - 4, 9), (1, HEAD)):
            file.seek(begin)
            assert file.read(size) == data[begin : begin + size]
        assert file.read(3) == data[HEAD + 1 : HEAD + 4]
        file.seek(len(data))
        assert file.read(1) == b""


def test_an_object_that_is_not_what_was_listed_is_refused(store):
    store.fs.pipe_file("/box/x", b"12345")
    entry = RemoteEntry("x", store, "x", store.state("x"))
    assert entry.open().read() == b"12345"
    assert entry.fetch().read(1, 3) == b"234"
    store.fs.pipe_file("/box/x", b"abcde")
    with pytest.raises(InputError, match="changed"):
        entry.fetch()
    store.fs.pipe_file("/box/x", b"123456")
    with pytest.raises(InputError, match="changed"):
        entry.open()


def test_what_was_fetched_is_closed_even_out_of_a_cycle(store):
    # The parts of a cycle are finalized in any order, so try several: a file that is finalized
    # before what holds it warns, and warnings are errors here.
    store.fs.pipe_file("/box/x", b"12345")
    entry = RemoteEntry("x", store, "x", store.state("x"))
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(9):
        holders = [entry.fetch(), {}]
        holders[1]["holders"] = holders
        holders[0].holders = holders
    del holders
    gc.collect()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_folders_of_dead_processes_are_cleared(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid()):
        (tmp_path / f"stae-{host_name()}-{number}-abc").mkdir()
    (tmp_path / f"stae-elsewhere-{dead.pid}-abc").mkdir()
    destination_at("memory://box").prepare()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"stae-{host_name()}-{os.getpid()}-abc", f"stae-elsewhere-{dead.pid}-abc"}
    assert store.objects() == []
