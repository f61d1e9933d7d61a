"""Tars: what is found in them, wherever it lies, and that odd ones are listed and do no harm."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stae_cli.errors import InputError
from stae_cli.storage import packed, tars
from stae_cli.storage.entry import FileEntry, Problem
from stae_cli.storage.tars import Tar, members, tar_of

SUFFIXES = [".jpg", ".png"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.tar"


def make(path, files, format=tarfile.PAX_FORMAT):  # noqa: A002
    """Writes a tar of names and bytes, or of TarInfos."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def found(path, prefix="t"):
    """The bytes of each member by key, and the reason of each problem."""
    entries, problems = {}, {}
    for item in members(Tar(prefix, FileEntry(f"{prefix}.tar", str(path))), suffixes=SUFFIXES):
        if isinstance(item, Problem):
            problems[item.key] = item.reason
        else:
            with item.open() as file:
                entries[item.key] = file.read()
            assert item.state().size == len(entries[item.key])
    return entries, problems


def test_members_in_their_order_under_the_tars_name(path):
    make(path, [("b.jpg", b"1"), ("./a/c.PNG", b"22"), ("a/c.json", b"{}"), ("a.b.jpg", b"")])
    assert found(path) == ({"t/b.jpg": b"1", "t/a/c.PNG": b"22", "t/a.b.jpg": b""}, {})
    assert list(found(path)[0]) == ["t/b.jpg", "t/a/c.PNG", "t/a.b.jpg"]
    assert tar_of(FileEntry("sub/x.TAR", str(path))).prefix == "sub/x"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names(path, format):  # noqa: A002
    names = ["d/" * 60 + "x" * 120 + ".jpg", "日本/été.jpg", "a b.jpg", "new\nline.jpg"]
    make(path, [(name, name.encode()) for name in names], format)
    assert found(path) == ({f"t/{name}": name.encode() for name in names}, {})


def test_hidden_members_folders_and_other_suffixes_are_left_out(path):
    files = [(n, b"x") for n in (".a.jpg", "._b.jpg", "x/.git/c.jpg", "d.txt", "e", "f.jpg")]
    make(path, [(special("folder.jpg", tarfile.DIRTYPE), b""), *files])
    assert found(path) == ({"t/f.jpg": b"x"}, {})


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", "c:/a.jpg", "a\\b.jpg", "a//b.jpg", "aux.jpg",
     "d/COM1.png", "x" * 250 + ".jpg"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_problems(path, name):
    make(path, [(name, b"evil"), ("a.jpg", b"good")])
    entries, problems = found(path)
    assert entries == {"t/a.jpg": b"good"}
    assert list(problems) == [f"t/{name}"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_are_problems_and_not_followed(path, kind):
    make(path, [("a.jpg", b"1"), (special("b.jpg", kind, "/etc/passwd"), b""), ("c.jpg", b"3")])
    entries, problems = found(path)
    assert entries == {"t/a.jpg": b"1", "t/c.jpg": b"3"}
    assert list(problems) == ["t/b.jpg"]
    assert "link or special" in problems["t/b.jpg"]


def test_every_truncation_is_told(path):
    make(path, [("a.jpg", b"1" * 700), ("b.jpg", b"2" * 600), ("c.jpg", b"3")])
    whole = path.read_bytes()
    complete = found(path)[0]
    end = 3 * 512 + 1024 + 1024 + 512
    for length in range(0, end, 256):
        path.write_bytes(whole[:length])
        sound, broken = found(path)
        assert list(broken) == ["t.tar"], length
        assert sound.items() <= complete.items()
    path.write_bytes(whole[: end + 512])
    assert found(path) == (complete, {})


def test_damage_between_members_does_not_pass_for_the_end(path):
    make(path, [("a.jpg", b"1"), ("b.jpg", b"2")])
    whole = bytearray(path.read_bytes())
    whole[1024 + 150] ^= 0xFF  # in the second header's checksum
    path.write_bytes(whole)
    entries, problems = found(path)
    assert entries == {"t/a.jpg": b"1"}
    assert list(problems) == ["t.tar"]


def test_zeros_in_the_middle_do_not_pass_for_the_end(path):
    make(path, [("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")])
    whole = path.read_bytes()
    for blocks in (1, 2):
        path.write_bytes(whole[:1024] + bytes(512 * blocks) + whole[1024 + 512 * blocks :])
        sound, problems = found(path)
        assert sound == {"t/a.jpg": b"1"}
        assert list(problems) == ["t.tar"]


def test_what_follows_the_end_of_a_tar_is_not_passed_over(path):
    make(path, [("a.jpg", b"1")])
    first = path.read_bytes()
    path.write_bytes(first + first)
    assert list(found(path)[1]) == ["t.tar"]
    path.write_bytes(first + bytes(512 << 10))  # padding
    assert found(path) == ({"t/a.jpg": b"1"}, {})


def test_zeros_far_beyond_its_end_are_told(path):
    """As of a download that was given its full size at once, and is not finished."""
    make(path, [("a.png", b"a")])
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(1 << 20))
    assert "zeros follow" in found(path)[1]["t.tar"]
    path.write_bytes(whole + bytes(64 << 10))
    assert found(path) == ({"t/a.png": b"a"}, {})


def test_a_tar_without_pictures_says_what_it_holds(path):
    make(path, [("a.heic", b"a"), ("b.txt", b"b"), ("c.txt", b"c")])
    reason = "a tar without pictures: it holds 3 other files: .txt 2, .heic 1"
    assert found(path) == ({}, {"t.tar": reason})


def test_files_that_are_no_tars(path):
    for data in (b"", b"x" * 5000, b"\x1f\x8b" + bytes(2000)):
        path.write_bytes(data)
        entries, problems = found(path)
        assert (entries, list(problems)) == ({}, ["t.tar"])
    assert found(path.with_name("x.tar"))[1] == {
        "t.tar": "cannot read it: No such file or directory"
    }


def test_a_member_counts_as_it_is_there_last_in_the_place_of_the_first(path):
    self_link = special("b.jpg", tarfile.LNKTYPE, "b.jpg")  # GNU tar, of a file given twice
    other_link = special("d.jpg", tarfile.LNKTYPE, "./a.jpg")
    link = special("c.jpg", tarfile.SYMTYPE, "a.jpg")
    make(path, [("a.jpg", b"old"), ("b.jpg", b"b"), ("c.jpg", b"c"), ("./a.jpg", b"newer"),
                (self_link, b""), (other_link, b""), (link, b""), ("a.png", b"other")])  # fmt: skip
    entries, problems = found(path)
    assert list(entries.items()) == [
        ("t/a.jpg", b"newer"), ("t/b.jpg", b"b"), ("t/d.jpg", b"newer"), ("t/a.png", b"other"),
    ]  # fmt: skip
    assert list(problems) == ["t/c.jpg"]


COMPRESSORS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_compressed_tars_are_unpacked_once(path, kind, monkeypatch):
    content = np.random.default_rng(0).bytes(5000)
    make(path, [("a.jpg", content), ("b.jpg", b"2")])
    plain = path.read_bytes()
    whole = COMPRESSORS[kind](plain)
    path.write_bytes(whole)
    assert found(path) == ({"t/a.jpg": content, "t/b.jpg": b"2"}, {})
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    for data in (whole[:-1], whole[:100], damaged):
        path.write_bytes(data)
        entries, problems = found(path)
        assert (entries, list(problems)) == ({}, ["t.tar"])
        assert f"damaged or truncated tar: as {kind}, " in problems["t.tar"]
    path.write_bytes(COMPRESSORS[kind](b"no tar" * 1000))
    assert "damaged or truncated tar" in found(path)[1]["t.tar"]
    path.write_bytes(COMPRESSORS[kind](plain + bytes(3 << 20)))
    monkeypatch.setattr(packed, "ALWAYS_ALLOWED", 1 << 20)
    assert "unpacks to more than" in found(path)[1]["t.tar"]


def test_what_else_is_named_like_a_tar_is_named(path):
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    assert "compressed with zstd" in found(path)[1]["t.tar"]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("x.tar.gz", "x"), ("s/x.TGZ", "s/x"), ("x.tar.bz2", "x"), ("x.tar", "x"), ("x.gz", "x.gz"),
     (".tar.xz", ".tar.xz"), ("x.y.tar.zst", "x.y")],
)  # fmt: skip
def test_names_of_tars(name, prefix):
    assert tar_of(FileEntry(name, name)).prefix == prefix


@pytest.mark.parametrize("size", [-512, -1, 1 << 33, 1 << 62, 1 << 80])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"L", b"x", b"g", b"S"])
def test_impossible_sizes_end_and_take_no_memory(path, size, kind):
    info = tarfile.TarInfo("a.jpg")
    info.size, info.type = size, kind
    block = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(block + b"12 size=-99\n" + bytes(500) + bytes(1024))
    seen = list(members(Tar("t", FileEntry("t", str(path))), suffixes=SUFFIXES))
    assert seen
    assert all(isinstance(item, Problem) for item in seen)


@pytest.mark.parametrize("how", ["shrinks", "is replaced", "is overwritten"])
def test_a_tar_that_is_another_one_since_it_was_listed(path, how):
    """Offsets of the one would be those of other members in the other."""
    make(path, [("a.jpg", b"1" * 3000), ("b.jpg", b"2" * 3000)])
    listed = list(members(Tar("t", FileEntry("t", str(path))), suffixes=SUFFIXES))
    state = listed[0].state()
    if how == "shrinks":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        new = path.with_name("new.tar") if how == "is replaced" else path
        make(new, [("b.jpg", b"2" * 3000), ("a.jpg", b"1" * 3000)])
        os.utime(new, ns=(0, state.mtime_ns + 1))
        new.replace(path)
    for entry in listed:
        with pytest.raises(InputError, match="changed since it was listed"):
            entry.open()
        assert entry.state() == state


def test_a_tar_that_changes_while_a_member_is_read(path, monkeypatch):
    make(path, [("a.jpg", b"1" * 3000)])
    (entry,) = members(Tar("t", FileEntry("t", str(path))), suffixes=SUFFIXES)
    asked = iter([True, False])
    monkeypatch.setattr(tars, "_is_as_listed", lambda *_: next(asked))
    with pytest.raises(InputError, match="changed since it was listed"):
        entry.open()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A file that one example of a test after the other replaces."""
    return tmp_path_factory.mktemp("fuzz") / "t.tar"


@settings(max_examples=200)
@given(data=st.data())
def test_mutated_tars_are_read_or_listed(data, fuzzed):
    path = fuzzed
    form = data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    make(path, [("a.jpg", b"1" * 100), ("x" * 120 + ".jpg", b"2"), ("é.jpg", b"3")], form)
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with right checksums, so that more of it is believed
        for begin in range(0, len(blob), 512):
            block = bytes(blob[begin : begin + 512])
            if block[257:262] == b"ustar":
                blob[begin + 148 : begin + 155] = b"%06o\0" % tarfile.calc_chksums(block)[0]
    path.write_bytes(blob)
    for item in members(Tar("t", FileEntry("t", str(path))), suffixes=SUFFIXES):
        if not isinstance(item, Problem):
            assert ".." not in item.key.split("/")
            with contextlib.suppress(InputError):
                item.open().close()
