"""Names that differ in letter case or Unicode form alone, on places that tell them apart or not."""

import tarfile

import pytest
from PIL import Image

from stae_cli import LatentDataset
from stae_cli.storage.destination import FolderDestination
from stae_cli.storage.names import EXACT, NameRules
from tests.pictures import noise

TWINS = ("a.png", "A.png", "\u00e9.png", "e\u0301.png")
SHARDS = ("--shard-size", 4)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(TWINS):
        Image.fromarray(noise(16, 16, seed=number)).save(folder / name)
    if len(list(folder.iterdir())) < len(TWINS):
        pytest.skip("this file system folds names")
    return folder


@pytest.fixture
def tar(photos, tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        for name in TWINS:
            file.add(photos / name, name)
    return tmp_path / "t.tar"


@pytest.fixture
def folding(monkeypatch):
    def fold(**rules):
        monkeypatch.setattr(FolderDestination, "rules", NameRules(**rules))

    return fold


@pytest.mark.parametrize("source", ["photos", "tar"])
@pytest.mark.parametrize("options", [(), SHARDS, ("--keep-extension",)])
def test_where_they_differ_all_are_encoded(stae, tiny, tmp_path, request, source, options):
    source, out = request.getfixturevalue(source), tmp_path / "out"
    command = ("encode", source, out, "--weights", tiny, *options, "--json")
    assert stae(*command).json["done"] == 4
    assert stae(*command).json["skipped"] == 4
    assert stae("verify", out, "--against", source).code == 0
    assert len({sample["key"] for sample in LatentDataset(out)}) == 4
    assert stae("decode", out, tmp_path / "back", "--weights", tiny, "--json").json["done"] == 4


@pytest.mark.parametrize("rules", [{"case": True}, {"form": True}, {"case": True, "form": True}])
def test_where_files_do_not_differ_the_hint_helps(
    stae, photos, tar, tiny, tmp_path, folding, rules
):
    folding(**rules)
    for options in ((), ("--keep-extension",)):
        ran = stae("encode", photos, tmp_path / "out", "--weights", tiny, *options)
        ran.assert_fails(2, "would both write", "--shard-size 256")
    stae("roundtrip", photos, tmp_path / "trips", "--weights", tiny).assert_fails(2, "rename one")
    ran = stae("encode", tar, tmp_path / "tarred", "--weights", tiny, "--json")
    assert (ran.code, ran.json["failed"]) == (3, sum(rules.values()))
    assert "--shard-size 256" in ran.err
    assert stae("encode", photos, tmp_path / "s", *SHARDS, "--weights", tiny).code == 0
    ran = stae("decode", tmp_path / "s", tmp_path / "back", "--weights", tiny)
    ran.assert_fails(2, "would both write", "tells their names apart")


def test_folders_and_tars_are_files_in_any_layout(stae, tar, tiny, tmp_path, folding):
    (tmp_path / "both").mkdir()
    for name in ("x.tar", "X.tar"):
        (tmp_path / "both" / name).write_bytes(tar.read_bytes())
    command = ("encode", tmp_path / "both", tmp_path / "out", "--weights", tiny, *SHARDS)
    assert stae(*command, "--json").json["done"] == 8
    folding(case=True)
    stae(*command).assert_fails(2, "x.tar", "X.tar")


def test_other_suffixes_are_told_from_other_names(stae, photos, tiny, tmp_path, folding):
    folding(case=True)
    for name in TWINS[1:]:
        (photos / name).unlink()
    Image.fromarray(noise(16, 16)).save(photos / "A.jpg")
    command = ("encode", photos, tmp_path / "out", "--weights", tiny)
    stae(*command).assert_fails(2, "--keep-extension")
    assert stae(*command, "--keep-extension").code == 0


def test_a_picture_beside_a_folder_of_its_name(stae, photos, tiny, tmp_path):
    (photos / "a").mkdir()
    Image.fromarray(noise(16, 16)).save(photos / "a" / "b.png")
    for options in ((), SHARDS):
        out = tmp_path / f"out{len(options)}"
        assert stae("encode", photos, out, "--weights", tiny, *options, "--json").json["done"] == 5
        assert stae("verify", out, "--against", photos).code == 0


def test_a_folder_is_tried(tmp_path, monkeypatch):
    destination = FolderDestination(tmp_path / "out")
    destination.prepare()
    assert destination.rules in (EXACT, NameRules(case=True), NameRules(case=True, form=True))
    monkeypatch.setattr("pathlib.Path.exists", lambda _: True)
    assert destination.rules == NameRules(case=True, form=True)
    assert not list((tmp_path / "out").iterdir())
