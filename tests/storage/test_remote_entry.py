"""Objects of stores as files: read in parts, fetched whole, and what is left of dead processes."""

import gc
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from stae_cli.errors import InputError
from stae_cli.storage.fsspec_store import is_url, store_at
from stae_cli.storage.remote_destination import destination_at
from stae_cli.storage.remote_entry import HEAD, RemoteEntry, RemoteOutput
from stae_cli.storage.tars import members, tar_of
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
    with RemoteOutput("x", store).open() as file:
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
    entry = RemoteEntry("x", store, store.state("x"))
    assert entry.open().read() == b"12345"
    assert entry.fetch().read(1, 3) == b"234"
    store.fs.pipe_file("/box/x", b"abcde")
    with pytest.raises(InputError, match="changed"):
        entry.fetch()
    store.fs.pipe_file("/box/x", b"123456")
    with pytest.raises(InputError, match="changed"):
        entry.open()


def test_readers_of_a_fetched_object_have_positions_of_their_own(store):
    store.fs.pipe_file("/box/x", data := bytes(range(200)) * 200)
    fetched = RemoteEntry("x", store, store.state("x")).fetch()
    with fetched.open() as first, fetched.open() as second:
        assert first.read(9000) == data[:9000]
        assert fetched.read(77, 5) == data[77:82]
        assert second.read(5) == data[:5]
        assert first.read() == data[9000:]
        assert (first.seek(-3, os.SEEK_END), first.read()) == (len(data) - 3, data[-3:])


def test_members_are_read_while_a_fetched_tar_is_listed(store):
    """As threads do that encode its first pictures; each must get its own bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for number in range(1000):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 2000
            file.addfile(info, io.BytesIO(number.to_bytes(2) * 1000))
    store.fs.pipe_file("/box/a.tar", content.getvalue())
    tar = tar_of(RemoteEntry("a.tar", store, store.state("a.tar")))
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(lambda e: e.open().read(), m) for m in members(tar, suffixes=[".jpg"])]
    assert [read.result() for read in reads] == [n.to_bytes(2) * 1000 for n in range(1000)]


def test_what_was_fetched_is_closed_even_out_of_a_cycle(store):
    # The parts of a cycle are finalized in any order, so try several: a file that is finalized
    # before what holds it warns, and warnings are errors here.
    store.fs.pipe_file("/box/x", b"12345")
    entry = RemoteEntry("x", store, store.state("x"))
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
