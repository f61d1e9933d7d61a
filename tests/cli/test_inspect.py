"""`stae inspect` as users run it: what is there, and what is wrong with it."""

import shutil
import struct
import subprocess
import sys

import pytest

from tests.pictures import write_photos


@pytest.fixture
def latents(stae, tiny, tmp_path):
    photos = write_photos(tmp_path / "photos")
    assert stae("encode", photos, tmp_path / "latents", "--weights", tiny).code == 0
    return tmp_path / "latents"


def test_summary(stae, latents):
    ran = stae("inspect", latents)
    assert ran.code == 0
    assert ran.err == ""
    assert "9 latents" in ran.out
    assert "tiny.safetensors" in ran.out
    summary = stae("inspect", latents, "--json").json
    assert summary["latents"] == 9
    assert summary["bytes"] == sum(p.stat().st_size for p in latents.rglob("*.safetensors"))
    assert summary["invalid"] == []
    assert [row["latents"] for row in summary["weights"]] == [9]
    assert sum(row["latents"] for row in summary["pictures"]) == 9


def test_files(stae, latents):
    ran = stae("inspect", latents, "--files")
    assert "sub/p8.safetensors" in ran.out
    rows = stae("inspect", latents, "--files", "--json").json["files"]
    assert len(rows) == 9
    assert rows[0]["source"] == "p0.png"
    assert rows[0]["shape"][0] == 16
    one = stae("inspect", latents / "p0.safetensors", "--files", "--json").json
    assert one["files"] == rows[:1]


def test_files_of_the_same_key_below_two_sources_are_two(stae, latents, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(latents, other)
    both = stae("inspect", latents, other, "--json").json
    assert (both["latents"], both["stored_in"]) == (18, 18)
    assert both["bytes"] == 2 * stae("inspect", latents, "--json").json["bytes"]


def test_damaged_and_huge_headers_are_invalid_not_fatal(stae, latents):
    (latents / "cut.safetensors").write_bytes((latents / "p0.safetensors").read_bytes()[:-1])
    with (latents / "huge.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 1 << 40))
        file.truncate(1 << 41)  # sparse: were it read, this test would not end
    ran = stae("inspect", latents, "--json")
    assert ran.code == 3
    assert ran.json["latents"] == 9
    assert {row["file"] for row in ran.json["invalid"]} == {"cut.safetensors", "huge.safetensors"}
    assert "cut.safetensors: truncated" in stae("inspect", latents).err


def test_wrong_inputs(stae, tmp_path):
    stae("inspect", tmp_path / "absent").assert_fails(2, "absent")
    (tmp_path / "empty").mkdir()
    stae("inspect", tmp_path / "empty").assert_fails(1, "no inputs found")


@pytest.mark.parametrize("preview", [False, True])
def test_it_needs_no_torch(latents, tmp_path, preview):
    out = tmp_path / "out"
    words = ["inspect", str(latents), *(["--preview", str(out)] if preview else [])]
    program = (
        "import sys\n"
        "from stae_cli.cli.main import main\n"
        f"code = main({words!r})\n"
        "sys.exit(code or 'torch' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (out / "contact-sheet.png").exists() == preview
