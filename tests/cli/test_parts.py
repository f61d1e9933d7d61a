"""Parts of a run that list their sources at different moments: they cut the same units, or stop."""

import json
import tarfile

import pytest
from PIL import Image

from stae_cli.errors import StaeError
from stae_cli.latents.listing import list_latents
from stae_cli.latents.parts import Part
from stae_cli.runs import units
from stae_cli.storage.remote_destination import destination_at
from stae_cli.storage.shares import Share
from tests.pictures import noise

SHARDS = ("--shard-size", 2)
NAMES = ("part-0-of-2.jsonl", "part-1-of-2.jsonl")


@pytest.fixture(autouse=True)
def _small_units(monkeypatch, same_codec):
    monkeypatch.setattr(units, "UNIT", 2)


@pytest.fixture
def source(tmp_path):
    """Six small photos, p0.png to p5.png."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(6):
        add(folder / f"p{number}.png")
    return folder


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def encode(stae, source, tiny, dest):
    def run(rank, *options, count=2, to=dest):
        part = ("--unit-rank", rank, "--unit-count", count)
        return stae("encode", source, to, "--weights", tiny, *part, *options)

    return run


@pytest.fixture
def findings(stae, dest):
    """What `verify` says of parts, by file; latents of two listings may be twice in shards."""

    def run():
        found = stae("verify", dest, "--json").json["findings"]
        return {row["key"]: row["reason"] for row in found if row["kind"] == "part"}

    return run


def add(path):
    Image.fromarray(noise(8, 8)).save(path)


def add_tar(path):
    with tarfile.open(path, "w") as tar:
        tar.add(path.with_name("p0.png"), "x.png")


def rename_first(path):
    path.with_name("p0.png").rename(path)


def state(dest, name):
    return json.loads((dest / name).read_text())["state"]


@pytest.mark.parametrize(
    ("options", "change", "name"),
    [((), add, "a.png"), (SHARDS, add, "a.png"), (SHARDS, add_tar, "a.tar"),
     ((), rename_first, "q.png")],
)  # fmt: skip
def test_sources_that_change_between_two_starts_stop_the_second(
    encode, findings, source, dest, options, change, name
):
    assert encode(0, *options).code == 0
    before = {path: path.read_bytes() for path in dest.iterdir()}
    change(source / name)
    there = "others" if change is rename_first else "7"
    encode(1, *options).assert_fails(1, "began with 6 inputs", f"part 1 of 2 with {there}")
    assert {path: path.read_bytes() for path in dest.iterdir()} == before
    assert findings() == {NAMES[1]: "part 1 of 2 has not finished"}
    (dest / NAMES[0]).unlink()  # as the hint says
    assert [encode(rank, *options).code for rank in (0, 1)] == [0, 0]
    assert findings() == {}
    assert len(list_latents([dest]).latents) == 7


def test_after_all_parts_have_finished_the_sources_may_change(encode, findings, source, dest):
    assert "have not finished: 1" in encode(0, *SHARDS).err
    assert "have not finished" not in encode(1, *SHARDS).err
    add(source / "a.png")
    assert encode(0, *SHARDS).code == 0
    assert findings() == {NAMES[1]: "part 1 of 2 has not been run since the sources changed"}
    add(source / "b.png")
    encode(1, *SHARDS).assert_fails(1, "part 0 of 2 began with 7", "part 1 of 2 with 8")
    (source / "b.png").unlink()
    assert "have not finished" not in encode(1, *SHARDS).err
    assert findings() == {}
    assert len(list_latents([dest]).latents) == 7


def test_a_part_that_was_stopped_begins_again_whatever_it_finds(encode, findings, source, dest):
    assert [encode(rank).code for rank in (0, 1)] == [0, 0]
    (source / "a.png").write_bytes(b"no picture")
    encode(0, "--strict").assert_fails(1, "a.png")
    assert state(dest, NAMES[0]) == "stopped"
    assert findings()[NAMES[0]] == "part 0 of 2 has not finished"
    add(source / "a.png")
    add(source / "b.png")
    assert [encode(rank).code for rank in (1, 0)] == [0, 0]
    assert findings() == {}
    assert len(list_latents([dest]).latents) == 8


def test_a_part_that_was_killed_begins_again(encode, findings, source, dest):
    encode(0)
    encode(1)
    killed = (dest / NAMES[1]).read_text().replace('"finished"', '"begun"')
    (dest / NAMES[1]).write_text(killed)
    assert findings() == {NAMES[1]: "part 1 of 2 has not finished"}
    assert encode(1).code == 0
    assert findings() == {}
    (dest / NAMES[1]).write_text(killed)
    add(source / "a.png")
    encode(0).assert_fails(1, "part 1 of 2 began", "no part is running", "part-*-of-2.jsonl")


@pytest.mark.parametrize("options", [(), SHARDS], ids=["files", "shards"])
def test_another_number_of_parts_starts_again(encode, findings, source, dest, options):
    encode(0, *options)
    add(source / "a.png")
    assert encode(0, *options, count=3).code == 0
    assert [path.name for path in dest.glob("part-*")] == ["part-0-of-3.jsonl"]
    assert list(findings()) == ["part-1-of-3.jsonl", "part-2-of-3.jsonl"]
    assert encode(0, *options, count=1).code == 0
    assert not list(dest.glob("part-*"))
    assert findings() == {}


def test_parts_of_earlier_versions_are_known_by_their_manifests(encode, stae, dest):
    encode(1, *SHARDS, count=3)
    (dest / "part-1-of-3.jsonl").unlink()
    ran = stae("verify", dest)
    assert ran.code == 3
    assert "part: manifest-0-of-3.jsonl: part 0 of 3 has not finished" in ran.err
    assert "part: manifest-2-of-3.jsonl: part 2 of 3 has not finished" in ran.err
    assert "part: run these parts again" in ran.out


def test_parts_agree_on_stores_too(encode, source):
    pytest.importorskip("fsspec").filesystem("memory").store.clear()
    assert encode(0, to="memory://parts").code == 0
    add(source / "a.png")
    encode(1, to="memory://parts").assert_fails(1, "began with 6", "memory://parts/part-*-of-2")
    (source / "a.png").unlink()
    assert "have not finished" not in encode(1, to="memory://parts").err


@pytest.mark.parametrize("text", ["", "{}", "[1]", "\0"])
def test_a_damaged_file_of_a_part_is_named(encode, stae, dest, text):
    encode(0)
    (dest / NAMES[0]).write_text(text)
    encode(1).assert_fails(1, NAMES[0], "remove it")
    assert not (dest / NAMES[1]).exists()
    assert stae("verify", dest).code == (3 if text else 0)


@pytest.mark.parametrize("look", [1, 2])
def test_of_two_that_begin_together_one_stops_at_least(tmp_path, monkeypatch, look):
    """The second begins just before or after the first one says that it has begun."""
    destination = destination_at(tmp_path)
    for rank in (0, 1):
        part = Part(destination, Share(rank, 2), "old", 6)
        part.begin()
        part.finish()
    first, second = (Part(destination, Share(rank, 2), f"new {rank}", 7) for rank in (0, 1))
    others, looks = first._notes, []

    def notes():
        looks.append(1)
        found = others()
        if len(looks) == look:
            begin(second)
        return others() if look == 2 else found

    def begin(part):
        try:
            part.begin()
        except StaeError as error:
            stopped.append(error.message)

    stopped = []
    monkeypatch.setattr(first, "_notes", notes)
    begin(first)
    assert stopped
    assert all("changed between their starts" in message for message in stopped)


@pytest.mark.parametrize("share", [Share(1, 2), Share(1, 3), Share()])
def test_a_part_during_which_another_run_began_does_not_end_well(tmp_path, share):
    destination = destination_at(tmp_path)
    first, second = Part(destination, Share(1, 2), "a", 6), Part(destination, share, "b", 7)
    first.begin()
    second.begin()
    second.finish()
    with pytest.raises(StaeError, match="another run began"):
        first.finish()
    first.close()
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ([share.file_name("part")] if share.count > 1 else [])
