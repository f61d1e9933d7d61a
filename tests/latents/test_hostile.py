"""Latent files, shards and tars made by someone who means harm: read, or refused with a reason."""

import io
import json
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stae_cli.errors import InputError
from stae_cli.latents.format import file_metadata, latent_bytes, write_latent
from stae_cli.latents.info import LatentInfo
from stae_cli.latents.listing import stored_in
from stae_cli.storage.entry import FileEntry, Problem
from stae_cli.storage.names import check_key
from stae_cli.storage.tars import members, tar_of
from tests.latents.test_format import INFO
from tests.shards import write_latents

SHAPE = (16, 2, 3)
LATENT = np.arange(96, dtype=np.float16).reshape(SHAPE)
ESCAPES = [
    "../x", "a/../../x", "/etc/x", "//x", "C:/x", "C:x", "..\\x", "\\\\host\\x", "a\0b", "", ".",
    "..", "a//b", "a/", "./a", "con", "NUL.png", "com1", "lpt¹.x", "aux .x", "a/con/b", "\ud800",
    "__metadata__", "x" * 300, "/".join(["y" * 100] * 20),
]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def described(begin: int = 0, shape=SHAPE, dtype="F16") -> dict[str, object]:
    size = 2 * int(np.prod(shape))
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def common(info: LatentInfo) -> dict[str, str]:
    names = ("stae_version", "architecture", "weights", "weights_sha256", "downsample",
             "latent_channels", "prep", "compute_dtype")  # fmt: skip
    return {name: str(getattr(info, name)) for name in names}


def shard_header(pictures: dict[str, object], tensors: dict[str, object]) -> bytes:
    metadata = {"format": "stae-latents-shard", "format_version": "1", **common(INFO)}
    metadata["pictures"] = json.dumps(pictures)
    return json.dumps({"__metadata__": metadata, **tensors}).encode()


def write_file(path: Path, header: bytes, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def write_hostile_shard(path: Path, key: str) -> Path:
    """A shard that is sound but for the one key."""
    header = shard_header({key: INFO.to_strings()}, {key: described()})
    return write_file(path, header, latent_bytes(LATENT))


def read_all(path: Path) -> list[str]:
    """The keys of what is read; nothing where the file is refused. Any other error gets out."""
    try:
        found = stored_in(FileEntry(path.name, str(path)))
        for stored in found:
            assert stored.read().shape == stored.shape
    except InputError:
        return []
    return [stored.key for stored in found]


@pytest.mark.parametrize("key", ESCAPES)
def test_keys_that_lead_elsewhere_are_refused(tmp_path, key):
    assert read_all(write_hostile_shard(tmp_path / "s.safetensors", key)) == []


def test_a_harmless_key_is_read(tmp_path):
    assert read_all(write_hostile_shard(tmp_path / "s.safetensors", "a/é")) == ["a/é"]


def test_what_is_there_twice_is_refused(tmp_path):
    """Which of two equal names counts is up to each reader: none may choose."""
    one = json.dumps(described(begin=7)).encode()
    header = shard_header({"a": INFO.to_strings()}, {"a": described()})
    twice = header.replace(b'"a": {"dtype', b'"a": ' + one + b', "a": {"dtype')
    assert header != twice
    assert read_all(write_file(tmp_path / "s.safetensors", header, latent_bytes(LATENT))) == ["a"]
    assert read_all(write_file(tmp_path / "t.safetensors", twice, latent_bytes(LATENT))) == []


@settings(max_examples=150)
@given(
    field=st.sampled_from(["dtype", "shape", "data_offsets", "pictures", "tensor", "metadata"]),
    value=json_values,
    in_shard=st.booleans(),
)
def test_any_value_in_a_header_is_read_or_refused(field, value, in_shard, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    name, tensor = ("k" if in_shard else "latents"), described()
    metadata: dict[str, object] = dict(file_metadata(INFO))
    if in_shard:
        metadata["format"] = "stae-latents-shard"
        metadata["pictures"] = json.dumps({"k": value if field == "pictures" else {}})
    if field in tensor:
        tensor[field] = value
    elif field == "metadata":
        metadata = dict.fromkeys(metadata, value) if not isinstance(value, dict) else value
    header = {"__metadata__": metadata, name: value if field == "tensor" else tensor}
    read_all(write_file(path, json.dumps(header).encode(), latent_bytes(LATENT)))


@settings(max_examples=150)
@given(header=st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_header_is_read_or_refused(header, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    assert read_all(write_file(path, header, bytes(192))) == []


@settings(max_examples=200)
@given(data=st.data(), shard=st.booleans())
def test_mutated_files_are_read_or_refused(data, shard, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    if shard:
        write_latents(path, [(f"k{n}", replace(INFO, source=f"k{n}.jpg"), LATENT) for n in (1, 2)])
    else:
        write_latent(path, LATENT, INFO)
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(blob)
    for key in read_all(path):
        assert key == "mutated" or check_key(key) is None


key_parts = st.text(max_size=6) | st.sampled_from(["..", ".", "", "con", "C:", "a.jpg", "~", "\\"])


def leads_inside(folder: Path, key: str) -> bool:
    place = folder.joinpath(*key.split("/"))
    return Path(str(place)).resolve().is_relative_to(folder) and place.resolve() != folder


@settings(max_examples=300)
@given(parts=st.lists(key_parts, min_size=1, max_size=4), tail=st.sampled_from(["", ".jpg"]))
def test_every_key_that_passes_leads_into_dest(parts, tail):
    key = "/".join(parts) + tail
    try:
        check_key(key)
    except InputError:
        return
    assert leads_inside(Path("/nowhere/dest"), key + ".png")
    assert "\\" not in key
    assert ":" not in key


@settings(max_examples=150)
@given(
    parts=st.lists(key_parts, min_size=1, max_size=4),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]),
    tar_name=st.sampled_from(["t.tar", "...tar", "..tar", ".tar"]),
)
def test_any_member_of_a_tar_leads_into_dest_or_is_refused(parts, kind, tar_name, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "t.tar"
    info = tarfile.TarInfo("/".join(parts) + ".jpg")
    info.type, info.linkname = kind, "../../etc/passwd"
    with tarfile.open(path, "w", errors="surrogateescape") as tar:
        try:
            tar.addfile(info, io.BytesIO())
        except (ValueError, UnicodeError):
            return  # Python does not write such a name
    for found in members(tar_of(FileEntry(tar_name, str(path))), suffixes={".jpg"}):
        if isinstance(found, Problem):
            continue
        assert kind == tarfile.REGTYPE
        assert leads_inside(Path("/nowhere/dest"), found.key)


@settings(max_examples=100)
@given(data=st.data())
def test_mutated_tars_are_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "mutated.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "é" * 60 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.sampled_from([0, 1536, 2048, 2560, 3072]))
        at = start + data.draw(st.integers(0, 400))
        blob[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
    if data.draw(st.booleans()):
        repair_checksums(blob)
    path.write_bytes(blob)
    for found in members(tar_of(FileEntry("t.tar", str(path))), suffixes={".jpg"}):
        if not isinstance(found, Problem):
            assert leads_inside(Path("/nowhere/dest"), found.key)
            try:
                found.open().close()
            except InputError:
                continue


def repair_checksums(blob: bytearray) -> None:
    """Of every block that may be a header, so that the change counts."""
    for start in (0, 1536, 2560):
        block = blob[start : start + 512]
        block[148:156] = b" " * 8
        blob[start + 148 : start + 156] = b"%06o\0 " % sum(block)
