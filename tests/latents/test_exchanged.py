"""Latents with each other's names are found, wherever in a tree they are read from."""

import pytest

from stae_cli.latents.exchanged import Exchanged


def found(latents):
    exchanged = Exchanged()
    for key, source in latents.items():
        exchanged.add(key, key, source)
    return {key for key, _ in exchanged.found()}


@pytest.mark.parametrize(
    "latents",
    [
        {"a": "b.png", "b": "a.png"},
        {"a": "b.png", "b": "c.png", "c": "a.jpg"},
        {"a.png": "b.png", "b.png": "a.png"},  # --keep-extension
        {"train/a": "val/a.png", "val/a": "train/a.png"},
        {"a": "sub/a.png", "sub/a": "a.png"},
        {"a": "sub/b.png", "b": "sub/a.png"},  # of `decode latents/sub`
        {"latents/a": "b.png", "latents/b": "a.png"},  # of the folder above
    ],
)
def test_exchanged_names_are_found(latents):
    assert found(latents | {"right": "right.png", "renamed": "once.png"}) == latents.keys()


@pytest.mark.parametrize(
    "latents",
    [
        {"a": "a.png", "b": "b.png", "c.png": "c.png"},
        {"best": "a.png", "b": "b.png"},  # renamed
        {"a": "a.png", "b": "a.png"},  # copied
        {"new/a": "old/a.png", "new/b": "old/b.png"},  # a folder renamed
        {"a": "sub/a.png", "sub/a": "sub/sub/a.png"},  # a part of DEST
        {"x/a": "a.png", "x/x/a": "x/a.png"},  # DEST in a folder
        {"a": "train/a.png", "b": "val/b.png"},
        {"a": "x/" * 100_000 + "b.png", "b": ""},  # crafted
    ],
)
def test_other_names_are_allowed(latents):
    assert found(latents) == set()


def test_the_reason_names_both_sources():
    exchanged = Exchanged()
    exchanged.add(1, "a", "b.png")
    exchanged.add(2, "b", "a.png")
    reason = "its name is that of `a.png`, but it was made from `b.png`; rename it"
    assert next(exchanged.found()) == (1, reason)
