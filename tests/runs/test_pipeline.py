"""The pipeline: packs within their budget, one pack ahead, and the same outputs as without that."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.runs.pipeline import computed, packed
from stae_cli.runs.tally import Tally
from tests.pictures import noise

LIMIT = 40


@given(st.lists(st.integers(1, 50)))
def test_packs_keep_order_and_budget(items):
    packs = list(packed(items, patches=lambda size: size, limit=LIMIT))
    assert [size for members in packs for size in members] == items
    assert all(sum(members) <= LIMIT or len(members) == 1 for members in packs)
    # No two neighbours would have fitted together.
    assert all(sum(a) + b[0] > LIMIT for a, b in pairwise(packs))


def test_nothing_gives_nothing():
    assert list(packed([], patches=lambda _: 1, limit=1)) == []


def events_of(ahead, tally, count=3):
    events = []

    def packs():
        for number in range(count):
            events.append(f"read {number}")
            yield number

    def begin(pack):
        events.append(f"begin {pack}")
        return lambda: events.append(f"end {pack}") or -pack

    for pack, result in computed(packs(), begin, tally, ahead=ahead):
        assert result == -pack
        events.append(f"save {pack}")
    return events


def test_a_pack_is_begun_before_the_one_before_it_is_waited_for():
    assert events_of(True, Tally(lambda _: None)) == [
        "read 0", "begin 0", "read 1", "begin 1", "end 0", "save 0",
        "read 2", "begin 2", "end 1", "save 1", "end 2", "save 2",
    ]  # fmt: skip


def test_without_it_one_follows_the_other():
    assert events_of(False, Tally(lambda _: None), count=2) == [
        "read 0", "begin 0", "end 0", "save 0", "read 1", "begin 1", "end 1", "save 1",
    ]  # fmt: skip


def test_what_was_begun_is_finished_when_the_run_is_told_to_end():
    stop = iter([False, True, True])
    tally = Tally(lambda _: None, stopped=lambda: next(stop))
    assert events_of(True, tally) == ["read 0", "begin 0", "end 0", "save 0"]


@pytest.mark.parametrize("shards", [(), ("--shard-size", 3)])
def test_outputs_are_the_same(stae, tiny, tmp_path, monkeypatch, shards):
    """With a device that seems to run beside the host: nothing is mixed, lost or done twice."""
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(11):
        picture = noise(40 + 8 * (index % 4), 30 + 9 * (index % 3), seed=index)
        Image.fromarray(picture).save(photos / f"{index:02}.png")
    (photos / "05.png").write_bytes(b"no picture")

    def run(folder):
        options = ("--weights", tiny, "--batch-patches", 64)
        assert stae("encode", photos, folder / "latents", *options, *shards).code == 3
        ran = stae("decode", folder / "latents", folder / "out", *options)
        assert ran.code == 0, ran.err
        assert stae("roundtrip", photos, folder / "both", *options).code == 3
        kinds = (".safetensors", ".png", ".json")
        files = sorted(path for path in folder.rglob("*") if path.suffix in kinds)
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    plain = run(tmp_path / "plain")
    monkeypatch.setattr(PixelCodec, "runs_beside", True)
    overlapped = run(tmp_path / "overlapped")
    assert len(plain) == 10 + (4 if shards else 10) + 2 + (3 * 10 + 1)
    names = [name for name in plain if name.endswith((".safetensors", ".json"))]
    assert {n: overlapped[n] for n in names} == {n: plain[n] for n in names}
    assert overlapped.keys() == plain.keys()
