"""The lock of a run's folder."""

import errno

import pytest

from stae_cli.training import lock
from stae_cli.training.lock import locked


def test_it_is_held_by_one_and_there_while_it_is(tmp_path):
    path = tmp_path / ".lock"
    for _ in range(2):
        with locked(path):
            with pytest.raises(BlockingIOError), locked(path):
                pass
            assert path.exists()
        assert not path.exists()


def test_one_that_was_removed_while_it_was_opened_is_no_lock(tmp_path, monkeypatch):
    path, take = tmp_path / ".lock", lock._lock
    removed = []

    def slow(file):
        if not removed:
            path.unlink()
            removed.append(path)
        take(file)

    monkeypatch.setattr(lock, "_lock", slow)
    with locked(path):
        monkeypatch.setattr(lock, "_lock", take)
        with pytest.raises(BlockingIOError), locked(path):
            pass


def test_where_there_are_no_locks_runs_go_on(tmp_path, monkeypatch):
    def none(_file):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock, "_lock", none)
    with locked(tmp_path / ".lock"):
        pass
    assert list(tmp_path.iterdir()) == []
