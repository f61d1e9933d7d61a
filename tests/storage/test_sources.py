"""Sources: what is found, under which keys, and which outputs collide."""

import os
import sys
from pathlib import Path

import pytest

from stae_cli.errors import StaeError, UsageError
from stae_cli.storage.entry import FileEntry
from stae_cli.storage.folders import LINKS, SPECIAL
from stae_cli.storage.names import NameRules, plan_outputs
from stae_cli.storage.remote_entry import NO_SUFFIX
from stae_cli.storage.sources import OTHERS, list_sources, summary_of

SUFFIXES = [".jpg", ".png"]


@pytest.fixture
def photos(tmp_path):
    return tmp_path / "photos"


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def keys(*sources, dest="nowhere"):
    return [entry.key for entry in list_sources(sources, Path(dest), suffixes=SUFFIXES).entries]


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "__MACOSX", ".thumbnails"])
def test_folders_of_systems_are_passed_over(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "SYNOPHOTO_THUMB_M.jpg").touch()
    (tmp_path / "a.jpg").touch()
    found = list_sources([tmp_path], None, suffixes=[".jpg"])
    assert [entry.key for entry in found.entries] == ["a.jpg"]


def test_keys_are_paths_below_the_source_in_name_order(photos):
    make(photos, "b.jpg", "a/z.PNG", "a/b/c.jpg", "c/1.jpg", "a.jpg")
    assert keys(photos) == ["a.jpg", "b.jpg", "a/z.PNG", "a/b/c.jpg", "c/1.jpg"]


def test_the_sources_name_is_no_part_of_a_key(photos, monkeypatch):
    make(photos, "sub/a.jpg")
    monkeypatch.chdir(photos)
    assert keys(Path("sub")) == keys(Path("sub/")) == keys(photos / "sub") == ["a.jpg"]
    assert keys(Path("sub/a.jpg")) == ["a.jpg"]


def test_other_and_hidden_files_are_passed_over(photos):
    make(photos, "a.jpg", "notes.txt", ".hidden.jpg", ".git/x.jpg", "stae.json", "README")
    listing = list_sources([photos], Path("nowhere"), suffixes=SUFFIXES)
    assert [entry.key for entry in listing.entries] == ["a.jpg"]
    assert listing.passed_over == {".txt": 1, NO_SUFFIX: 1}


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
def test_what_is_skipped_is_logged_with_the_reason(photos, caplog):
    make(photos, "a.jpg", "notes.txt", ".hidden.jpg", "sub/b.jpg")
    (photos / "sub" / "loop").symlink_to(photos)
    os.mkfifo(photos / "pipe.jpg")
    with caplog.at_level("DEBUG", logger="stae_cli.storage"):
        assert keys(photos) == ["a.jpg", "sub/b.jpg"]
    reasons = {
        "notes.txt": "suffix",
        ".hidden.jpg": "hidden",
        "loop": "read",
        "pipe.jpg": "regular",
    }
    for name, reason in reasons.items():
        assert any(f"{name}`" in line and reason in line for line in caplog.messages), name
    assert len(caplog.messages) == 4


def test_a_file_source_is_always_tried(photos):
    make(photos, "strange.xyz")
    assert keys(photos / "strange.xyz") == ["strange.xyz"]


def test_odd_names_are_kept(photos):
    names = ["-dash.jpg", "a b.jpg", "new\nline.jpg", 'q"uote.jpg', "été.jpg", "日本.jpg"]
    make(photos, *names)
    assert sorted(keys(photos)) == sorted(names)


@pytest.mark.skipif(os.name == "nt", reason="links need privileges there")
def test_links_are_followed_and_loops_end(photos, tmp_path):
    make(photos, "a.jpg", "sub/b.jpg")
    make(tmp_path / "elsewhere", "c.jpg")
    (photos / "link.jpg").symlink_to("a.jpg")
    (photos / "far").symlink_to(tmp_path / "elsewhere")
    (photos / "sub" / "up").symlink_to(photos)
    (photos / "broken.jpg").symlink_to("nothing")
    (photos / "self.jpg").symlink_to("self.jpg")
    found = keys(photos)
    assert found == ["a.jpg", "broken.jpg", "link.jpg", "self.jpg", "far/c.jpg", "sub/b.jpg"]


LINKED = {  # links by their targets, and the keys that result; folders are a, b and .hidden
    "to a real folder": ({"0": "b"}, ["a/x.jpg", "b/y.jpg"]),
    "to a link": ({"0": "1", "1": "b"}, ["a/x.jpg", "b/y.jpg"]),
    "to a folder in one": ({"0": "b/c", "1": "b"}, ["a/x.jpg", "b/y.jpg"]),
    "in a folder": ({"a/0": "../b"}, ["a/x.jpg", "b/y.jpg"]),
    "to the source": ({"0": "."}, ["a/x.jpg", "b/y.jpg"]),
    "to what is above": ({"0": ".."}, ["0/far/z.jpg", "a/x.jpg", "b/y.jpg"]),
    "outside": ({"0": "../far", "a/1": "../../far"}, ["0/z.jpg", "a/x.jpg", "b/y.jpg"]),
    "to a hidden folder": ({"z": ".hidden"}, ["a/x.jpg", "b/y.jpg", "z/h.jpg"]),
    "back from outside": ({"0": "../far", "../far/1": "../photos/b"},
                          ["0/z.jpg", "a/x.jpg", "b/y.jpg"]),
    "to a file": ({"c.jpg": "a/x.jpg"}, ["c.jpg", "a/x.jpg", "b/y.jpg"]),
}  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="links need privileges there")
@pytest.mark.parametrize("case", LINKED)
def test_a_link_takes_no_real_folders_place(photos, tmp_path, case):
    links, expected = LINKED[case]
    make(photos, "a/x.jpg", "b/y.jpg", ".hidden/h.jpg")
    (photos / "b" / "c").mkdir()
    make(tmp_path, "far/z.jpg")
    for name, target in links.items():
        (photos / name).symlink_to(target)
    assert keys(photos) == expected
    (tmp_path / "to").symlink_to("photos")
    if case != "to what is above":
        assert keys(tmp_path / "to") == expected
        listing = list_sources([photos], None, suffixes=SUFFIXES)
        followed = ("outside", "to a hidden folder", "back from outside").count(case)
        told = sum(not name.endswith(".jpg") for name in links) - followed
        assert listing.passed_over.total() == listing.passed_over[LINKS] == told


def test_kinds_of_other_files_are_bounded(photos):
    make(photos, "a.jpg", *(f"x.{number}" for number in range(1100)), *"bcd")
    passed = list_sources([photos], None, suffixes=SUFFIXES).passed_over
    assert (passed.total(), len(passed), passed[OTHERS]) == (1103, 1001, 101)
    assert summary_of(passed).startswith("1103 other files: others 10")
    assert summary_of(passed).endswith(", 993 more kinds")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_passed_over_not_opened(photos):
    make(photos, "a.jpg")
    os.mkfifo(photos / "pipe.jpg")
    listing = list_sources([photos], Path("nowhere"), suffixes=SUFFIXES)
    assert [entry.key for entry in listing.entries] == ["a.jpg"]
    assert listing.passed_over == {SPECIAL: 1}


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are no UTF-8")
def test_names_that_are_no_utf8_are_listed(photos):
    photos.mkdir()
    Path(os.fsdecode(os.fsencode(photos) + b"/\xff.jpg")).write_bytes(b"x")
    assert len(keys(photos)) == 1


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_a_problem_not_silence(photos):
    make(photos, "a.jpg", "locked/b.jpg")
    (photos / "locked").chmod(0)
    try:
        listing = list_sources([photos], Path("nowhere"), suffixes=SUFFIXES)
    finally:
        (photos / "locked").chmod(0o755)
    assert [problem.key for problem in listing.problems] == ["locked/"]


def test_missing_source_and_empty_folder(photos, tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        keys(tmp_path / "absent")
    make(photos, "notes.txt")
    with pytest.raises(StaeError, match=r"no inputs found.*1 other file: \.txt 1"):
        keys(photos)


@pytest.mark.parametrize("inside", ["", "latents", "a/b"])
def test_dest_inside_a_source_is_refused(photos, inside):
    make(photos, "a.jpg")
    with pytest.raises(UsageError, match="inside SOURCE"):
        keys(photos, dest=photos / inside)


def test_dest_beside_a_file_source_is_fine(photos):
    make(photos, "a.jpg")
    assert keys(photos / "a.jpg", dest=photos / "latents") == ["a.jpg"]


def outputs(*keys_, **options):
    planned = plan_outputs([FileEntry(key, key) for key in keys_], ".out", **options)
    return [plan.output for plan in planned]


def test_only_the_last_suffix_is_dropped():
    assert outputs("a.b.jpg", "c/d.tar.png", "e") == ["a.b.out", "c/d.tar.out", "e.out"]
    assert outputs("a.v1.safetensors", strip=".safetensors") == ["a.v1.out"]
    assert outputs("cat.jpg.safetensors", strip=".safetensors") == ["cat.jpg.out"]
    assert outputs("a.jpg", "a.png", keep_extension=True) == ["a.jpg.out", "a.png.out"]


@pytest.mark.parametrize(
    ("one", "two", "rules"),
    [
        ("a.jpg", "a.png", {}),
        ("x/a.jpg", "x/a.jpg", {}),
        ("a.jpg", "A.jpg", {"case": True}),
        ("\u00e9.jpg", "e\u0301.jpg", {"form": True}),
        ("\u00c9.jpg", "e\u0301.jpg", {"case": True, "form": True}),
    ],
)
def test_outputs_that_would_be_one_file_are_refused(one, two, rules):
    with pytest.raises(UsageError, match="would both write") as caught:
        outputs(one, two, rules=NameRules(**rules))
    assert caught.value.hint
    if rules:
        assert len(outputs(one, two)) == 2
