"""Shards while others replace them: what is kept is what pictures were passed over for."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stae_cli.errors import InputError
from stae_cli.latents import shard_writer as sharding
from stae_cli.latents import writer as storing
from stae_cli.latents.shard_writer import ShardStorage
from stae_cli.latents.writer import Expected, Job, Shard, stored_at
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.entry import FileEntry, SourceState
from stae_cli.storage.names import Planned


@pytest.fixture
def destination(tmp_path):
    return FolderDestination(tmp_path)


def test_a_shard_is_looked_at_once_for_all_who_ask(destination, monkeypatch):
    """Else one thread passes a picture over, and another takes its latent for absent."""
    calls, everyone = [], threading.Barrier(8)

    def looked_at(*arguments):
        calls.append(arguments)
        time.sleep(0.05)
        return []

    monkeypatch.setattr(sharding, "stored_at", looked_at)
    storage = ShardStorage(
        destination, Expected("sha", "{}", "float16", "float32"), writer=None, known=lambda _: True,
        manifest=None, overwrite=False,
    )  # fmt: skip
    shard = Shard("shard-00000.safetensors", [Planned(FileEntry("a.png", "a.png"), "a")])

    def ask():
        everyone.wait()
        return storage.holds(Job(shard.planned[0], shard), SourceState(1))

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask) for _ in range(8)]
    assert not any(answer.result() for answer in answers)
    assert len(calls) == 1


def test_a_file_that_is_replaced_meanwhile_is_no_damaged_one(destination, monkeypatch, caplog):
    caplog.set_level("INFO", logger="stae_cli.latents")
    """Its state may be that of the old one, and its header that of the new one."""
    answers = [InputError("truncated"), ["a latent"]]

    def looked_into(_entry):
        answer = answers.pop(0)
        if isinstance(answer, InputError):
            raise answer
        return answer

    monkeypatch.setattr(storing, "stored_in", looked_into)
    assert stored_at(destination, "shard-00000.safetensors") == ["a latent"]
    answers += [InputError("truncated")] * 2
    assert stored_at(destination, "shard-00000.safetensors") == []
    assert "shard-00000.safetensors` is truncated" in caplog.text
