"""Latents are never mixed: other sources, settings, precisions and runs in one DEST."""

import json
import os
import shutil
import threading

import pytest
from PIL import Image

from stae_cli.latents import run_record
from stae_cli.latents.listing import read_latent
from stae_cli.runs.encoding import EncodeTask
from tests.pictures import noise

pytestmark = pytest.mark.usefixtures("same_codec")


def pictures(folder, *names, seed=0):
    """Uncompressed pictures of one size, which differ in content alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(noise(24, 16, seed=seed + number)).save(folder / name)
    return folder


def contents(dest):
    return {p.name: p.read_bytes() for p in sorted(dest.rglob("*.safetensors"))}


@pytest.fixture
def encode(stae, tiny, tmp_path):
    def run(source, *options):
        return stae("encode", source, tmp_path / "out", "--weights", tiny, "--json", *options)

    return run


@pytest.mark.parametrize("layout", [[], ["--shard-size", "2"]], ids=["files", "shards"])
class TestAnotherSource:
    """Each with a file of the same name, size and time, as unpacked archives have."""

    @pytest.fixture
    def train(self, tmp_path, encode, layout):
        folder = pictures(tmp_path / "train", "0.bmp", "1.bmp", "2.bmp")
        assert encode(folder, *layout).code == 0
        return folder

    def test_a_second_folder_is_refused(self, tmp_path, encode, train, layout):
        val = pictures(tmp_path / "val", "0.bmp", "1.bmp", "2.bmp", seed=5)
        for path in val.iterdir():
            shutil.copystat(train / path.name, path)
        before = contents(tmp_path / "out")
        encode(val, *layout).assert_fails(1, "another source", "--overwrite")
        assert contents(tmp_path / "out") == before
        assert encode(val, *layout, "--overwrite").json["done"] == 3
        assert contents(tmp_path / "out") != before

    def test_a_moved_tree_goes_on(self, tmp_path, encode, train, layout):
        moved = train.rename(tmp_path / "moved")
        Image.fromarray(noise(24, 16, seed=9)).save(moved / "1.bmp")  # edited there
        ran = encode(moved, *layout).json
        assert (ran["done"], ran["skipped"], ran["failed"]) == (1, 2, 0)

    def test_a_few_of_other_folders_are_listed(self, tmp_path, encode, train, layout):
        """What was there stays."""
        copy = tmp_path / "copy"
        shutil.copytree(train, copy)
        pictures(copy, "0.bmp", "1.bmp", seed=7)
        before = contents(tmp_path / "out")
        ran = encode(copy, *layout)
        assert ran.code == 3
        assert (ran.json["failed"], ran.json["skipped"]) == (2, 1)
        assert "another source" in ran.json["failures"][0]["reason"]
        assert contents(tmp_path / "out") == before


def test_one_file_of_a_folder_is_of_the_same_source(tmp_path, encode):
    folder = pictures(tmp_path / "train", "0.bmp", "1.bmp")
    assert encode(folder).code == 0
    pictures(folder, "1.bmp", seed=3)
    assert encode(folder / "1.bmp").json["done"] == 1


def test_content_is_compared_where_time_does_not_tell(tmp_path, encode, stae):
    folder = pictures(tmp_path / "train", "0.bmp", "1.bmp")
    assert encode(folder).code == 0
    shutil.copytree(folder, tmp_path / "before")
    for path in folder.iterdir():
        os.utime(path)  # as a copy without times does
    assert encode(folder, "--compare", "content").json["skipped"] == 2
    pictures(folder, "0.bmp", seed=3)
    for path in folder.iterdir():
        shutil.copystat(tmp_path / "before" / path.name, path)
    swapped = ["verify", tmp_path / "out", "--against", folder, "--json", "--compare"]
    assert stae(*swapped, "time").json["counts"] == {}
    assert stae(*swapped, "content").json["counts"] == {"stale": 1}
    ran = encode(folder, "--compare", "content").json
    assert (ran["done"], ran["skipped"]) == (1, 1)
    assert stae(*swapped, "content").code == 0


@pytest.mark.parametrize("layout", [[], ["--shard-size", "2"]], ids=["files", "shards"])
def test_check_reads_what_is_finished(tmp_path, encode, layout):
    folder = pictures(tmp_path / "train", "0.bmp", "1.bmp")
    assert encode(folder, *layout).code == 0
    whole = contents(tmp_path / "out")
    path = tmp_path / "out" / list(whole)[-1]
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    assert encode(folder, *layout).json["skipped"] == 2
    ran = encode(folder, *layout, "--check").json
    assert (ran["done"], ran["skipped"]) == (1, 1)
    assert contents(tmp_path / "out") == whole


def test_the_dtype_of_computing_is_a_setting(tmp_path, encode, stae):
    folder = pictures(tmp_path / "train", "0.bmp")
    assert encode(folder, "--dtype", "bfloat16").code == 0
    pictures(folder, "1.bmp", seed=4)
    encode(folder, "--dtype", "float32").assert_fails(1, "compute_dtype: float32, not bfloat16")
    ran = encode(folder).json  # as DEST records
    assert (ran["done"], ran["dtype"]) == (1, "bfloat16")
    assert read_latent(tmp_path / "out" / "1.safetensors")[1].compute_dtype == "bfloat16"


def test_a_record_of_an_earlier_version_learns_the_dtype(tmp_path, encode, stae):
    folder, record = pictures(tmp_path / "train", "0.bmp"), tmp_path / "out" / "stae.json"
    assert encode(folder, "--dtype", "bfloat16").code == 0
    values = json.loads(record.read_text())
    del values["compute_dtype"]
    record.write_text(json.dumps(values))
    encode(folder, "--dtype", "float32").assert_fails(1, "compute_dtype")
    assert encode(folder).code == 0
    assert json.loads(record.read_text())["compute_dtype"] == "bfloat16"


def test_verify_tells_precisions_that_were_mixed(tmp_path, encode, stae, tiny):
    folder = pictures(tmp_path / "train", "0.bmp", "1.bmp")
    assert encode(folder, "--dtype", "bfloat16").code == 0
    assert stae("encode", folder, tmp_path / "b", "--weights", tiny).code == 0
    shutil.copy(tmp_path / "b" / "1.safetensors", tmp_path / "out")
    ran = stae("verify", tmp_path / "out", "--json")
    assert (ran.code, ran.json["counts"]) == (3, {"mixed": 1})
    assert "compute_dtype float32, the run record says bfloat16" in ran.err


def test_of_two_runs_that_begin_together_one_is_refused(tmp_path, encode, monkeypatch):
    """Both find an empty folder before either has written its record."""
    folder = pictures(tmp_path / "train", "0.bmp")
    refuse_strays, both = run_record._refuse_strays, threading.Barrier(2, timeout=30)

    def meeting(*arguments, **options):
        refuse_strays(*arguments, **options)
        both.wait()

    monkeypatch.setattr(run_record, "_refuse_strays", meeting)
    codes = {}

    def run(side):
        codes[side] = encode(folder, "--square", side).code

    threads = [threading.Thread(target=run, args=[side]) for side in (8, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes.values()) == [0, 1]
    winner = next(side for side, code in codes.items() if code == 0)
    assert read_latent(tmp_path / "out" / "0.safetensors")[1].width == winner


def test_a_record_that_changes_meanwhile_is_told(tmp_path, encode, monkeypatch):
    folder = pictures(tmp_path / "train", "0.bmp")
    assert encode(folder).code == 0
    record, do = tmp_path / "out" / "stae.json", EncodeTask.do

    def meanwhile(*arguments):
        do(*arguments)
        record.write_text(record.read_text().replace('"{}"', '"{\\"square\\":8}"'))

    monkeypatch.setattr(EncodeTask, "do", meanwhile)
    encode(folder).assert_fails(1, "another run wrote to", "--overwrite")


class TestDecode:
    @pytest.fixture
    def decode(self, stae, tiny, tmp_path):
        def run(source, *options):
            arguments = ["decode", source, tmp_path / "pictures", "--weights", tiny, "--json"]
            return stae(*arguments, *options)

        return run

    def test_latents_of_another_folder_do_not_replace_pictures(self, stae, decode, tiny, tmp_path):
        for name, seed in ("a", 0), ("b", 5):
            source = pictures(tmp_path / name, "0.bmp", "1.bmp", seed=seed)
            assert stae("encode", source, tmp_path / f"{name}-l", "--weights", tiny).code == 0
        assert decode(tmp_path / "a-l").code == 0
        before = (tmp_path / "pictures" / "0.png").read_bytes()
        ran = decode(tmp_path / "b-l")
        assert (ran.code, ran.json["failed"]) == (3, 2)
        assert "another folder" in ran.json["failures"][0]["reason"]
        assert (tmp_path / "pictures" / "0.png").read_bytes() == before
        assert decode(tmp_path / "b-l", "--overwrite").json["done"] == 2

    def test_copied_latents_are_known_and_swapped_ones_are_noticed(
        self, stae, decode, tiny, tmp_path
    ):
        source = pictures(tmp_path / "a", "0.bmp", "1.bmp")
        latents = tmp_path / "l"
        assert stae("encode", source, latents, "--weights", tiny).code == 0
        assert decode(latents).code == 0
        shutil.copytree(latents, tmp_path / "copy", copy_function=shutil.copyfile)
        assert decode(tmp_path / "copy").json["skipped"] == 2
        old = (latents / "0.safetensors").stat()
        pictures(source, "0.bmp", seed=3)
        assert stae("encode", source, latents, "--weights", tiny).code == 0
        os.utime(latents / "0.safetensors", ns=(old.st_atime_ns, old.st_mtime_ns))
        ran = decode(latents).json
        assert (ran["done"], ran["skipped"]) == (1, 1)
