"""Latent files: what is written can be read by anyone, and nothing damaged passes for whole."""

import json
import struct
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from stae_cli.errors import InputError
from stae_cli.latents.format import file_metadata, is_finite, write_latent
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.listing import read_latent, stored_in
from stae_cli.latents.safetensors_header import ForeignFileError
from stae_cli.latents.shard_format import HEADER_LIMIT
from stae_cli.storage.entry import FileEntry

INFO = LatentInfo(
    stae_version="0.1.0",
    architecture="f8c16",
    weights="photo-1",
    weights_sha256="ab" * 32,
    downsample=8,
    latent_channels=16,
    source="a/été.jpg",
    source_size=12345,
    source_mtime_ns=1_700_000_000_000_000_000,
    width=21,
    height=9,
    original_width=42,
    original_height=18,
    prep='{"short_side":9}',
    compute_dtype="float32",
)


def read_header(path):
    (stored,) = stored_in(FileEntry(path.name, str(path)))
    return stored


@pytest.fixture
def latent():
    return np.random.default_rng(0).standard_normal((16, 2, 3)).astype(np.float16)


@pytest.fixture
def path(tmp_path, latent):
    write_latent(tmp_path / "a.safetensors", latent, INFO)
    return tmp_path / "a.safetensors"


def test_written_as_documented(path, latent):
    with safe_open(path, framework="np") as file:
        assert list(file.keys()) == ["latents"]
        assert np.array_equal(file.get_tensor("latents"), latent)
        metadata = file.metadata()
    assert metadata["format"] == "stae-latents"
    assert metadata["format_version"] == "1"
    assert metadata["source"] == "a/été.jpg"
    assert metadata["width"] == "21"
    empty = {"source_etag", "source_root", "source_xxh3", "flip_crc32", "caption", "label"}
    assert metadata.keys() == {"format", "format_version", "info_crc32"} | (
        {field.name for field in fields(INFO)} - empty
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(tmp_path, latent, dtype):
    size = write_latent(tmp_path / "a.safetensors", latent.astype(dtype), INFO)
    assert size == (tmp_path / "a.safetensors").stat().st_size
    read, info = read_latent(tmp_path / "a.safetensors")
    assert read.dtype == dtype
    assert np.array_equal(read, latent)
    assert info == read_header(tmp_path / "a.safetensors").info
    crc = f"{zlib.crc32(latent.astype(dtype).tobytes()):08x}"
    assert info == replace(INFO, data_crc32=crc)


def test_data_that_are_not_those_written_are_noticed(path):
    """And only a header that says nothing of them, as those of earlier versions, lets them pass."""
    whole = bytearray(path.read_bytes())
    whole[-9] ^= 4
    path.write_bytes(whole)
    assert read_header(path)
    with pytest.raises(InputError, match="not those that were written"):
        read_latent(path)
    path.write_bytes(whole.replace(b"data_crc32", b"data_crc33").replace(b"info_crc", b"info_crd"))
    read_latent(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"width":"21"', b'"width":"23"'),
        (b'"original_width":"42"', b'"original_width":"43"'),
        (b'"source":"a/', b'"source":"b/'),
        (b'"stae_version":"0', b'"stae_version":"1'),
        (b'"dtype":"F16","shape":[16,2,3]', b'"dtype":"F16","shape":[16,3,2]'),
    ],
)
def test_a_header_that_is_not_what_was_written_is_noticed(path, old, new):
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(InputError, match="damaged"):
        read_header(path)


def test_every_truncation_is_noticed(path):
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_header(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(InputError):
        read_header(path)


def test_other_safetensors_are_foreign(tmp_path, latent):
    save_file({"latents": latent}, tmp_path / "a.safetensors")
    with pytest.raises(ForeignFileError, match="not a stae latent"):
        read_header(tmp_path / "a.safetensors")
    metadata = {**file_metadata(INFO), "format_version": "2"}
    save_file({"latents": latent}, tmp_path / "b.safetensors", metadata=metadata)
    with pytest.raises(ForeignFileError, match="format 2"):
        read_header(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "change",
    [{"width": 25}, {"height": 8}, {"downsample": 0}, {"width": -21}, {"latent_channels": 4}],
)
def test_sizes_that_contradict_the_latent_are_damage(tmp_path, latent, change):
    write_latent(tmp_path / "a.safetensors", latent, replace(INFO, **change))
    with pytest.raises(InputError, match="damaged"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("key", ["width", "weights_sha256", "source_mtime_ns", "prep"])
@pytest.mark.parametrize("value", [None, "", "x" * 5, "1e3", "9" * 5000])
def test_unsound_metadata_is_damage(tmp_path, latent, key, value):
    metadata = file_metadata(INFO)
    metadata.pop(key)
    if value is not None:
        metadata[key] = value
    save_file({"latents": latent}, tmp_path / "a.safetensors", metadata=metadata)
    if key in ("weights_sha256", "prep") and value is not None:
        assert getattr(read_header(tmp_path / "a.safetensors").info, key) == value
        return
    with pytest.raises(InputError, match=key):
        read_header(tmp_path / "a.safetensors")


def test_a_huge_header_is_refused_at_the_bound(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", HEADER_LIMIT + 1))
        file.truncate(8 + HEADER_LIMIT + 100)
    with pytest.raises(InputError, match="header"):
        read_header(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(InputError, match="header"):
        read_header(path)


@pytest.mark.parametrize(
    "header", ["", "[]", "{", "null", "[" * 5000, '{"__metadata__":1}', '{"latents":{}}', "\ud800"]
)
def test_malformed_headers_are_refused(tmp_path, header):
    data = header.encode("utf-8", "surrogatepass")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)
    with pytest.raises(InputError):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "tensor",
    [
        None,
        {"dtype": "F16", "shape": [16, 2], "data_offsets": [0, 192]},
        {"dtype": "F16", "shape": [16, 2, True], "data_offsets": [0, 192]},
        {"dtype": "F16", "shape": [16, 2, -3], "data_offsets": [0, 192]},
        {"dtype": "I16", "shape": [16, 2, 3], "data_offsets": [0, 192]},
        {"dtype": "F16", "shape": [16, 2, 3], "data_offsets": [0, 191]},
        {"dtype": "F16", "shape": "abc", "data_offsets": "x"},
    ],
)
def test_tensors_of_another_kind_are_refused(tmp_path, tensor):
    header = {"__metadata__": file_metadata(INFO), "latents": tensor}
    data = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(192))
    with pytest.raises(InputError):
        read_header(path)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A file that one example of a test after the other replaces."""
    return tmp_path_factory.mktemp("fuzz") / "a.safetensors"


@settings(max_examples=150)
@given(data=st.data())
def test_mutated_files_are_read_or_refused(data, fuzzed):
    path = fuzzed
    latent = np.zeros((16, 2, 3), np.float16)
    write_latent(path, latent, INFO)
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(blob)
    try:
        read, info = read_latent(path)
    except InputError:
        return
    assert read.shape == (
        info.latent_channels,
        -(-info.height // info.downsample),
        -(-info.width // info.downsample),
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f2"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_what_is_not_finite_is_found(dtype, value):
    latent = np.array([[[0, -0.0, 65504, -65504, 6e-8]]], dtype)
    assert is_finite(latent)
    assert is_finite(latent[:, :, ::2])
    latent[0, 0, 3] = value
    assert not is_finite(latent)
    assert is_finite(latent[:, :, ::2])


def test_every_half_is_told_apart():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [is_finite(halves[i : i + 1]) for i in range(1 << 16)] == np.isfinite(halves).tolist()
