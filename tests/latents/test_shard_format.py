"""Shards: what is written can be read by anyone, and nothing damaged passes for whole."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from stae_cli.errors import InputError
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.listing import list_latents, stored_in
from stae_cli.latents.safetensors_header import ForeignFileError
from stae_cli.storage.entry import FileEntry
from tests.shards import write_latents

INFO = LatentInfo(
    "0.1.0", "f8c16", "photo-1", "ab" * 32, 8, 4, "a.jpg", 12, 10**18, 21, 9, 42, 18, "{}",
    "float32",
)  # fmt: skip
KEYS = ["a", "sub/été", 'q"uote\n', "latents"]


def write(path, keys=KEYS, dtype="float16", **changes):
    """Writes a shard of seeded latents (4, 2, 3) and returns them by key."""
    generator = np.random.default_rng(0)
    latents = {key: generator.standard_normal((4, 2, 3)).astype(dtype) for key in keys}
    size = write_latents(
        path,
        [
            (key, replace(INFO, source=f"{key}.jpg", **changes), values)
            for key, values in latents.items()
        ],
    )
    assert size == path.stat().st_size
    return latents


def read(path):
    return stored_in(FileEntry(path.name, str(path)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shard-00000.safetensors"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(path, dtype):
    latents = write(path, dtype=dtype)
    found = read(path)
    assert [stored.key for stored in found] == KEYS
    for stored in found:
        assert stored.info == replace(INFO, source=f"{stored.key}.jpg")
        assert stored.label == f"{path.name}:{stored.key}"
        values = stored.read()
        assert values.dtype == dtype
        assert np.array_equal(values, latents[stored.key])
    theirs = load_file(path)  # by safetensors itself
    assert all(np.array_equal(theirs[key], latents[key]) for key in KEYS)


def test_the_same_latents_are_the_same_file(path, tmp_path):
    write(path)
    write(tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_a_picture_that_differs_from_the_others_keeps_its_own_word(path):
    infos = [replace(INFO, compute_dtype=d) for d in ("float16", "float32", "float32")]
    infos[2] = replace(infos[2], source_mtime_ns=0, source_etag="abc", width=24)
    empty = np.zeros((4, 2, 3), np.float16)
    write_latents(path, [(str(n), info, empty) for n, info in enumerate(infos)])
    assert [stored.info for stored in read(path)] == infos


def test_every_truncation_is_noticed(path):
    write(path)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(InputError, match="wrong size"):
        read(path)


def test_a_shard_that_changes_is_not_read_with_the_old_header(path):
    write(path)
    (first, *_) = read(path)
    write(path, keys=KEYS[::-1])
    with pytest.raises(InputError, match="changed"):
        first.read()


def rewrite(path, change):
    """Applies `change` to the header and puts the file together again."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def change_pictures(change):
    def changed(header):
        pictures = json.loads(header["__metadata__"]["pictures"])
        pictures = change(pictures) or pictures
        header["__metadata__"]["pictures"] = json.dumps(pictures)

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("a") and None,
        lambda h: h["a"].update(dtype="I8"),
        lambda h: h["a"].update(shape=[4, 3, 2]),
        lambda h: h["a"].update(data_offsets=[8, 56]),
        lambda h: h["latents"].update(data_offsets=h["a"]["data_offsets"]),
        lambda h: h["__metadata__"].pop("pictures") and None,
        lambda h: h["__metadata__"].update(pictures="[" * 5000),
        lambda h: h["__metadata__"].update(pictures=[]),
        lambda h: h["__metadata__"].update(downsample="0"),
        lambda h: h["__metadata__"].pop("weights") and None,
        change_pictures(lambda p: p.pop("a") and None),
        change_pictures(lambda p: p.update(b=p["a"])),
        change_pictures(lambda p: p.update(a=[])),
        change_pictures(lambda p: p["a"].update(width=21)),
        change_pictures(lambda p: p["a"].update(width="2000")),
        change_pictures(lambda p: p["a"].pop("source") and None),
        change_pictures(lambda p: list(p)),
    ],
)
def test_headers_that_contradict_themselves_are_refused(path, change):
    write(path)
    rewrite(path, change)
    with pytest.raises(InputError):
        read(path)


@pytest.mark.parametrize("key", ["../a", "/a", "a/../../b", "c:a", "a\\b", "nul", "x" * 300, ""])
def test_keys_that_lead_elsewhere_are_refused(path, key):
    write(path, keys=["a", key])
    with pytest.raises(InputError, match="its name"):
        read(path)


def test_empty_shards_and_of_others(path):
    metadata = {"format": "stae-latents-shard", "format_version": "1", "pictures": "{}"}
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match="an empty shard"):
        read(path)
    save_file({"a": np.zeros((4, 2, 3), np.float16)}, path, {**metadata, "format_version": "2"})
    with pytest.raises(ForeignFileError, match="format 2"):
        read(path)
    save_file({"a": np.zeros((4, 2, 3), np.float16)}, path)
    with pytest.raises(ForeignFileError, match="not a stae latent"):
        read(path)


def test_shards_and_files_are_listed_together(path, tmp_path):
    write(path)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-1])
    (tmp_path / "manifest.jsonl").write_text("{}\n")
    listing = list_latents([tmp_path])
    assert [stored.key for stored in listing.latents] == KEYS
    assert [problem.key for problem in listing.problems] == ["cut.safetensors"]
    assert listing.passed_over.total() == 0


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A file that one example of a test after the other replaces."""
    return tmp_path_factory.mktemp("fuzz") / "shard-00000.safetensors"


@settings(max_examples=150)
@given(data=st.data())
def test_mutated_shards_are_read_or_refused(data, fuzzed):
    path = fuzzed
    write(path)
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(blob)
    try:
        for stored in read(path):
            assert stored.read().shape == stored.shape
            assert ".." not in stored.key.split("/")
    except InputError:
        pass
