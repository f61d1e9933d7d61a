"""`stae encode` as users run it: what comes out, what is refused, and going on after a kill."""

import json
import os
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from stae_cli.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from stae_cli.codec.pixel_codec import PixelCodec
from stae_cli.latents.listing import read_latent
from stae_cli.runs.pipeline import Pipeline
from tests.launcher import wait_for
from tests.pictures import EXAMPLES, noise, write_photos
from tests.seeded import TINY, seeded_tensors


@pytest.fixture
def photos(tmp_path):
    """Nine small photos of different sizes, two of them in a folder."""
    return write_photos(tmp_path / "photos")


def latents(dest: Path) -> dict[str, bytes]:
    return {
        path.relative_to(dest).as_posix(): path.read_bytes() for path in dest.rglob("*.safetensors")
    }


def left_over(dest: Path) -> list[Path]:
    return [path for path in dest.rglob("*") if path.name.endswith(".tmp")]


def test_every_photo_becomes_a_latent(stae, photos, tiny, tmp_path):
    ran = stae("encode", photos, tmp_path / "out", "--weights", tiny)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert "encoded 9, skipped 0 already done, failed 0" in ran.err
    assert "images/s" in ran.err
    assert "reading" in ran.err
    expected = {
        p.relative_to(photos).with_suffix(".safetensors").as_posix() for p in photos.rglob("*.png")
    }
    assert set(latents(tmp_path / "out")) == expected
    assert left_over(tmp_path / "out") == []


def test_the_file_is_as_documented(stae, tiny, tmp_path):
    source = tmp_path / "a.b.png"
    pixels = noise(21, 9)
    Image.fromarray(pixels).save(source)
    assert stae("encode", source, tmp_path / "out", "--weights", tiny).code == 0
    checkpoint = read_checkpoint(tiny, name="tiny.safetensors")
    with safe_open(tmp_path / "out" / "a.b.safetensors", framework="np") as file:
        latent, metadata = file.get_tensor("latents"), file.metadata()
    assert latent.shape == (16, 2, 3)
    assert latent.dtype == np.float16
    stat = source.stat()
    expected = {
        "format": "stae-latents", "format_version": "1", "weights": "tiny.safetensors",
        "weights_sha256": checkpoint.fingerprint, "downsample": "8", "latent_channels": "16",
        "source": "a.b.png", "source_size": str(stat.st_size),
        "source_mtime_ns": str(stat.st_mtime_ns), "width": "21", "height": "9",
        "original_width": "21", "original_height": "9", "prep": "{}", "compute_dtype": "float32",
    }  # fmt: skip
    expected["data_crc32"] = f"{zlib.crc32(latent.tobytes()):08x}"
    assert expected.items() <= metadata.items()
    padded = np.pad(pixels, ((0, 7), (0, 3), (0, 0)), mode="edge")
    reference = checkpoint.model().encode(
        torch.from_numpy(padded).permute(2, 0, 1)[None] / 127.5 - 1
    )
    assert np.abs(latent - reference[0].detach().numpy()).max() < 2e-3


def test_a_latent_does_not_depend_on_its_company(stae, photos, tiny, tmp_path):
    stae("encode", photos, tmp_path / "all", "--weights", tiny)
    stae("encode", photos, tmp_path / "small", "--weights", tiny, "--batch-patches", 7)
    assert latents(tmp_path / "all") == latents(tmp_path / "small")
    for path in photos.glob("*.png"):
        stae("encode", path, tmp_path / "alone", "--weights", tiny)
    together = latents(tmp_path / "all")
    assert all(together[name] == data for name, data in latents(tmp_path / "alone").items())


def test_pictures_of_one_size_are_not_mixed_in_memory_as_cuda_has_it(
    stae, tiny, tmp_path, monkeypatch
):
    """Page-locked memory comes as arrays; JPEGs, padded and turned pictures are read into it."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(9):
        picture = Image.fromarray(noise(45, 45, seed=index))
        exif = Image.Exif()
        exif[0x0112] = (1, 1, 6)[index % 3]
        picture.save(photos / f"{index}.{('png', 'jpg', 'jpg')[index % 3]}", exif=exif)
    arguments = ("encode", photos, "--weights", tiny, "--device", "cpu")
    assert stae(*arguments[:2], tmp_path / "plain", *arguments[2:]).code == 0

    def allocate(size):
        return torch.empty(size, dtype=torch.uint8).numpy()

    monkeypatch.setattr(PixelCodec, "host_memory", property(lambda _: allocate))
    assert stae(*arguments[:2], tmp_path / "locked", *arguments[2:]).code == 0
    assert len(set(latents(tmp_path / "plain").values())) == 9
    assert latents(tmp_path / "locked") == latents(tmp_path / "plain")


def test_a_finished_run_is_skipped_and_a_changed_source_is_not(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    stae("encode", photos, out, "--weights", tiny)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = stae("encode", photos, out, "--weights", tiny, "--json")
    assert (again.json["done"], again.json["skipped"]) == (0, 9)
    changed = photos / "p0.png"
    Image.fromarray(noise(30, 30, seed=9)).save(changed)
    third = stae("encode", photos, out, "--weights", tiny, "--json")
    assert (third.json["done"], third.json["skipped"]) == (1, 8)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert [path.name for path in before if before[path] != after[path]] == ["p0.safetensors"]
    assert read_latent(out / "p0.safetensors")[1].width == 30


def test_a_damaged_output_is_made_again(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    stae("encode", photos, out, "--weights", tiny)
    whole = latents(out)
    (out / "p0.safetensors").write_bytes(whole["p0.safetensors"][:-5])
    (out / "p1.safetensors").write_bytes(b"")
    assert stae("encode", photos, out, "--weights", tiny, "--json").json["done"] == 2
    assert latents(out) == whole


def test_a_foreign_file_in_an_outputs_place_is_kept(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    save_file({"precious": torch.ones(3)}, out / "p0.safetensors")
    precious = (out / "p0.safetensors").read_bytes()
    ran = stae("encode", photos, out, "--weights", tiny)
    assert ran.code == 3
    assert "p0.png" in ran.err
    assert "not a stae latent" in ran.err
    assert (out / "p0.safetensors").read_bytes() == precious
    assert stae("encode", photos, out, "--weights", tiny, "--overwrite").code == 0


def test_bad_files_among_good_ones_are_listed(stae, photos, tiny, tmp_path):
    whole = (photos / "p0.png").read_bytes()
    (photos / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("not an image")
    out = tmp_path / "out"
    ran = stae("encode", photos, out, "--weights", tiny, "--json")
    assert ran.code == 3
    assert (ran.json["done"], ran.json["failed"]) == (9, 3)
    listed = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert {row["source"] for row in listed} == {"truncated.png", "empty.jpg", "text.jpg"}
    assert all(row["reason"] and row["source"] in ran.err for row in listed)
    for name in ("truncated.png", "empty.jpg", "text.jpg"):
        (photos / name).unlink()
    assert stae("encode", photos, out, "--weights", tiny).code == 0
    assert not (out / "failures.jsonl").exists()


def test_another_runs_dest_is_refused(stae, photos, tiny, other_tiny, tmp_path):
    out = tmp_path / "out"
    stae("encode", photos, out, "--weights", tiny)
    whole = latents(out)
    stae("encode", photos, out, "--weights", other_tiny).assert_fails(1, "weights", "--overwrite")
    shrunk = stae("encode", photos, out, "--weights", tiny, "--short-side", 8)
    shrunk.assert_fails(1, "prep")
    stae("encode", photos, out, "--weights", tiny, "--save-dtype", "float32").assert_fails(1)
    assert latents(out) == whole
    # Without its record the folder is still not mixed.
    (out / "stae.json").unlink()
    stae("encode", photos, out, "--weights", other_tiny).assert_fails(1, "other weights")
    assert latents(out) == whole
    assert stae("encode", photos, out, "--weights", tiny, "--json").json["skipped"] == 9


def test_the_same_weights_by_another_name_are_no_other_run(stae, photos, tiny, tmp_path):
    out, renamed = tmp_path / "out", tmp_path / "renamed.safetensors"
    renamed.write_bytes(tiny.read_bytes())
    assert stae("encode", photos, out, "--weights", tiny).code == 0
    before = (out / "stae.json").read_text()
    ran = stae("encode", photos, out, "--weights", renamed, "--json")
    assert (ran.code, ran.json["skipped"]) == (0, 9)
    assert (out / "stae.json").read_text() == before


def test_overwrite_replaces_all_or_nothing(stae, photos, tiny, other_tiny, tmp_path):
    out = tmp_path / "out"
    stae("encode", photos, out, "--weights", tiny)
    whole = latents(out)
    some = stae("encode", photos / "p0.png", out, "--weights", other_tiny, "--overwrite")
    some.assert_fails(1, "would stay")
    assert latents(out) == whole
    every = stae("encode", photos, out, "--weights", other_tiny, "--overwrite", "--json")
    assert every.json["done"] == 9
    assert all(read_latent(p)[1].weights == "other.safetensors" for p in out.rglob("*.safetensors"))
    same = stae("encode", photos / "p0.png", out, "--weights", other_tiny, "--overwrite", "--json")
    assert same.json["done"] == 1


def test_a_failed_picture_leaves_no_latent_of_other_settings(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    assert stae("encode", photos, out, "--weights", tiny).code == 0
    foreign = out / "p1.safetensors"
    save_file({"x": torch.zeros(3)}, foreign)
    for number in (1, 2):
        (photos / f"p{number}.png").write_bytes(b"\x89PNG and nothing else")
    same = stae("encode", photos, out, "--weights", tiny, "--overwrite")
    assert (same.code, (out / "p2.safetensors").exists()) == (3, True)
    ran = stae("encode", photos, out, "--weights", tiny, "--overwrite", "--short-side", 16)
    assert (ran.code, (out / "p2.safetensors").exists(), foreign.exists()) == (3, False, True)


def test_names_with_and_without_extensions_are_not_mixed(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    arguments = ("encode", photos, out, "--weights", tiny)
    assert stae(*arguments).code == 0
    before = latents(out)
    stae(*arguments, "--keep-extension").assert_fails(1, "with extensions")
    stae(*arguments, "--keep-extension", "--overwrite").assert_fails(1, "would stay")
    assert latents(out) == before
    other = tmp_path / "other"
    assert stae("encode", photos, other, "--weights", tiny, "--keep-extension").code == 0
    stae("encode", photos, other, "--weights", tiny).assert_fails(1, "without extensions")


def test_a_file_that_is_anothers_folder_is_refused(stae, tiny, tmp_path):
    photos = tmp_path / "photos"
    (photos / "a.safetensors").mkdir(parents=True)
    for path in (photos / "a.png", photos / "a.safetensors" / "b.png"):
        Image.fromarray(noise(16, 16)).save(path)
    ran = stae("encode", photos, tmp_path / "out", "--weights", tiny)
    ran.assert_fails(2, "a.safetensors", "which is a folder for")


@pytest.mark.parametrize("text", ['{"weights_sha256": null}', "[" * 5000, '"x"'])
def test_a_record_that_is_none_is_told(stae, photos, tiny, tmp_path, text):
    out = tmp_path / "out"
    assert stae("encode", photos, out, "--weights", tiny).code == 0
    record = out / "stae.json"
    text = json.dumps(json.loads(record.read_text()) | json.loads(text)) if ":" in text else text
    record.write_text(text)
    stae("encode", photos, out, "--weights", tiny).assert_fails(1, "stae.json", "not a run record")


def test_colliding_outputs_are_refused_before_any_work(stae, photos, tiny, tmp_path):
    Image.fromarray(noise(8, 8)).save(photos / "p0.jpg")
    out = tmp_path / "out"
    ran = stae("encode", photos, out, "--weights", tiny)
    ran.assert_fails(2, "p0.jpg", "p0.png", "--keep-extension")
    assert not out.exists()
    assert stae("encode", photos, out, "--weights", tiny, "--keep-extension").code == 0
    assert {"p0.jpg.safetensors", "p0.png.safetensors"} <= set(latents(out))


def test_usage_errors_exit_2(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    stae("encode", tmp_path / "absent", out, "--weights", tiny).assert_fails(2, "absent")
    stae("encode", photos, photos / "out", "--weights", tiny).assert_fails(2, "inside SOURCE")
    stae("encode", photos, photos / "p0.png", "--weights", tiny).assert_fails(2)
    stae("encode", photos, out, "--device", "tpu").assert_fails(2, "tpu")
    stae("encode", photos).assert_fails(2)
    stae("encode", photos, out, "--no-such-option").assert_fails(2)
    stae("encode", photos, out, "--workers", 0).assert_fails(2)
    stae("encode", photos, out, "--square", 64, "--short-side", 8).assert_fails(2, "--square")
    background = stae("encode", photos, out, "--background", "nocolour", "--weights", tiny)
    background.assert_fails(2, "nocolour")
    file = tmp_path / "file"
    file.write_text("x")
    stae("encode", photos, file, "--weights", tiny).assert_fails(2, "is a file")


def test_fatal_errors_exit_1(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    stae("encode", tmp_path / "empty", out, "--weights", tiny).assert_fails(1, "no inputs found")
    stae("encode", photos, out, "--weights", tmp_path / "no.pt").assert_fails(1, "no.pt")
    if not torch.cuda.is_available():
        stae("encode", photos, out, "--device", "cuda").assert_fails(1, "cuda", "--device cpu")
    if not torch.backends.mps.is_available():
        stae("encode", photos, out, "--device", "mps").assert_fails(1, "mps")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a folder root cannot write")
def test_a_read_only_dest_is_told(stae, photos, tiny):
    stae("encode", photos, "/proc/stae", "--weights", tiny).assert_fails(1, "cannot write")


def test_edges(stae, tiny, tmp_path):
    source = tmp_path / "a.png"
    Image.fromarray(noise(21, 30)).save(source)
    for edges, size in [("pad", (21, 30)), ("crop", (16, 24))]:
        out = tmp_path / edges
        assert stae("encode", source, out, "--weights", tiny, "--edges", edges).code == 0
        info = read_latent(out / "a.safetensors")[1]
        assert (info.width, info.height) == size
        assert (info.original_width, info.original_height) == (21, 30)
    ran = stae("encode", source, tmp_path / "error", "--weights", tiny, "--edges", "error")
    assert ran.code == 3
    assert "21x30" in ran.err


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--short-side", 50], (75, 50)),
        (["--short-side", 500], (150, 100)),
        (["--max-pixels", 6000], (95, 63)),
        (["--square", 64], (64, 64)),
    ],
)
def test_sizes(stae, tiny, tmp_path, options, size):
    Image.fromarray(noise(150, 100)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert stae("encode", tmp_path / "a.png", out, "--weights", tiny, *options).code == 0
    info = read_latent(out / "a.safetensors")[1]
    assert (info.width, info.height) == size


def test_latents_that_are_not_finite_are_never_written(stae, tmp_path):
    tensors = seeded_tensors(TINY)
    tensors["encoder.0.out.model.2.weight"].fill_(3e38)
    bad = tmp_path / "bad.safetensors"
    write_checkpoint(bad, tensors, TINY, {})
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    ran = stae("encode", tmp_path / "a.png", tmp_path / "out", "--weights", bad)
    assert ran.code == 3
    assert "NaN or infinity" in ran.err
    assert latents(tmp_path / "out") == {}


def test_what_overflows_half_precision_is_redone_in_float32(stae, tmp_path):
    tensors = seeded_tensors(TINY)
    tensors["encoder.0.out.model.2.bias"].fill_(1e5)
    big = tmp_path / "big.safetensors"
    write_checkpoint(big, tensors, TINY, {})
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    args = ["encode", tmp_path / "a.png", tmp_path / "out", "--weights", big]
    refused = stae(*args, "--dtype", "float16")
    assert refused.code == 3
    assert "--save-dtype float32" in refused.err
    (tmp_path / "out" / "stae.json").unlink()
    ran = stae(*args, "--dtype", "float16", "--save-dtype", "float32")
    assert ran.code == 0, ran.err
    latent, _ = read_latent(tmp_path / "out" / "a.safetensors")
    assert np.isfinite(latent).all()
    assert 9e4 < latent.mean() < 1.1e5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_dtype_works_and_is_recorded(stae, photos, tiny, tmp_path, dtype):
    out = tmp_path / "out"
    assert stae("encode", photos, out, "--weights", tiny, "--dtype", dtype).code == 0
    assert read_latent(out / "p0.safetensors")[1].compute_dtype == dtype


def test_json_is_the_only_thing_on_stdout(stae, photos, tiny, tmp_path):
    ran = stae("encode", photos, tmp_path / "out", "--weights", tiny, "--json", "--quiet")
    assert ran.json["done"] == 9
    assert ran.json["seconds_spent_on"].keys() == {"reading", "network", "writing"}
    assert ran.err == ""


@pytest.mark.skipif(os.name == "nt", reason="posix")
@pytest.mark.parametrize(("number", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_killed_run_goes_on_where_it_stopped(stae, tiny, tmp_path, launcher, number, code):
    photos = write_photos(tmp_path / "photos", count=400)
    stae("encode", photos, tmp_path / "whole", "--weights", tiny)
    out = tmp_path / "out"
    arguments = ["encode", photos, out, "--weights", tiny, "--batch-patches", 40, "--workers", 1]
    with launcher.running(*arguments, log=tmp_path / "log") as process:
        wait_for(lambda: len(latents(out)) >= 5, ended=process.has_ended)
        assert process.end_by(getattr(signal, number)) == code, process.err
    assert "Traceback" not in process.err
    survived = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert 5 <= len(survived) < 400
    ran = stae(*arguments, "--json")
    assert ran.code == 0
    assert ran.json["skipped"] == len(survived)
    assert all(path.stat().st_mtime_ns == before for path, before in survived.items())
    assert latents(out) == latents(tmp_path / "whole")
    assert left_over(out) == []


def test_memory_stays_bounded_when_every_size_differs(stae, tiny, tmp_path, monkeypatch):
    """What is read and not yet encoded never exceeds the bounds, however many files there are."""
    monkeypatch.setattr(Pipeline, "read_bytes", 100_000)
    seen = []
    encode_pixels = PixelCodec.encode_pixels

    def watched(self, pictures):
        seen.append(sum(picture.size for picture in pictures))
        return encode_pixels(self, pictures)

    monkeypatch.setattr(PixelCodec, "encode_pixels", watched)
    photos = write_photos(tmp_path / "photos", count=60)
    ran = stae(
        "encode", photos, tmp_path / "out", "--weights", tiny, "--batch-patches", 100, "--json"
    )
    assert ran.json["done"] == 60
    assert max(seen) <= 100 * 192


def test_the_examples_encode_with_the_builtin_checkpoint(stae, tmp_path):
    ran = stae("encode", EXAMPLES, tmp_path / "out", "--weights", "builtin", "--json")
    assert (ran.code, ran.json["failed"]) == (0, 0)
    assert ran.json["done"] >= 6


ENDS_OF_MEMORY = [
    torch.OutOfMemoryError("simulated: only a device has its own memory"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
]


@pytest.mark.parametrize("error", ENDS_OF_MEMORY, ids=["torch", "cuDNN"])
def test_a_device_without_memory_is_told_once_and_the_run_goes_on(
    stae, tiny, tmp_path, monkeypatch, error
):
    from stae_cli.codec.inference import InferenceForm

    photos = write_photos(tmp_path / "photos")
    stae("encode", photos, tmp_path / "whole", "--weights", tiny)
    encode, calls = InferenceForm.encode, []

    def with_little_memory(self, patches, total):
        calls.append(1)
        if len(calls) < 3:
            raise error
        return encode(self, patches, total)

    monkeypatch.setattr(InferenceForm, "encode", with_little_memory)
    ran = stae("encode", photos, tmp_path / "out", "--weights", tiny, "--batch-patches", 2048)
    assert ran.code == 0
    assert ran.err.count("ran out of memory") == 1
    assert "--batch-patches 512" in ran.err
    assert latents(tmp_path / "out") == latents(tmp_path / "whole")


@pytest.mark.parametrize("error", ENDS_OF_MEMORY, ids=["torch", "cuDNN"])
def test_a_device_without_any_memory_ends_the_run(stae, tiny, tmp_path, monkeypatch, error):
    def never(_form, _patches, _total):
        raise error

    photos = write_photos(tmp_path / "photos")
    monkeypatch.setattr("stae_cli.codec.inference.InferenceForm.encode", never)
    ran = stae("encode", photos, tmp_path / "out", "--weights", tiny)
    ran.assert_fails(1, "too little free memory", "--device cpu")


@pytest.mark.skipif(os.name == "nt", reason="links need privileges there")
def test_places_that_are_links_to_nowhere_or_files_are_named(stae, photos, tiny, tmp_path):
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    (tmp_path / "to-file").symlink_to("file")
    for dest, *words in [
        ("nowhere", "DEST", "is a link that leads nowhere"),
        ("loop/x/y", "loop` is a link that leads nowhere"),
        ("to-file", "is a file"),
        ("file/x", "file` is a file"),
    ]:
        stae("encode", photos, tmp_path / dest, "--weights", tiny).assert_fails(2, dest, *words)
    for source in ("nowhere", "loop"):
        ran = stae("encode", tmp_path / source, tmp_path / "out", "--weights", tiny)
        ran.assert_fails(2, f"{source}` is a link that leads nowhere")


def test_what_is_passed_over_is_named(stae, photos, tiny, tmp_path):
    for name in ("a.TXT", "b.txt", "c.psd", "README"):
        (photos / name).write_text("x")
    (photos / "p0-again").symlink_to(".", target_is_directory=True)
    ran = stae("encode", photos, tmp_path / "out", "--weights", tiny, "--json")
    assert ran.code == 0
    assert "passed over 5 other files: .txt 2, " in ran.err
    link = "links to folders that are read by their own path"
    kinds = {".txt": 2, ".psd": 1, "no suffix": 1, link: 1}
    assert (ran.json["passed_over"], ran.json["passed_over_by_suffix"]) == (5, kinds)
