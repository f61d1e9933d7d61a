"""The lock of a run's folder."""

import errno
import multiprocessing
import os
import signal

import pytest
from filelock import Timeout

from stae_cli.training.workspace import locked

posix = pytest.mark.skipif(os.name == "nt", reason="flock is for POSIX")


def test_it_is_held_by_one_and_its_file_exists_while_it_is(tmp_path):
    path = tmp_path / ".lock"
    for _ in range(2):
        with locked(path):
            with pytest.raises(Timeout), locked(path):
                pass
            assert path.exists()
        assert not path.exists()


def hold(path, connection):
    with locked(path):
        connection.send("held")
        connection.recv()


@posix
def test_a_killed_process_holds_it_no_longer(tmp_path):
    context, path = multiprocessing.get_context("spawn"), tmp_path / ".lock"
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(path, theirs))
    process.start()
    assert ours.recv() == "held"
    with pytest.raises(Timeout), locked(path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked(path):
        pass
    assert not path.exists()


@posix
def test_a_file_that_was_removed_while_it_was_opened_is_not_the_lock(tmp_path, monkeypatch):
    import fcntl

    path, take = tmp_path / ".lock", fcntl.flock
    removed = []

    def slow(file, operation):
        if not removed:
            path.unlink()
            removed.append(path)
        take(file, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with locked(path):
        assert removed
        with pytest.raises(Timeout), locked(path):
            pass


@posix
@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOTSUP])
def test_where_there_are_no_locks_runs_go_on(tmp_path, monkeypatch, answer):
    def none(_file, _operation):
        raise OSError(answer, "no locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with locked(tmp_path / ".lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / ".lock"):
        pass
