"""`stae roundtrip` as users run it: pictures to look at, and the figures of just those."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from stae_cli.checkpoints.checkpoint import write_checkpoint
from stae_cli.metrics import compare
from stae_cli.network.architecture import PRESETS
from stae_cli.runs.roundtrip_report import command_line
from tests.launcher import wait_for
from tests.pictures import noise, write_photos
from tests.seeded import TINY, seeded_tensors, tiny_like


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def test_pictures_and_figures(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    ran = stae("roundtrip", photos, out, "--weights", tiny)
    assert ran.code == 0, ran.err
    assert "worst first" in ran.out
    assert "overall: PSNR" in ran.out
    assert "compared 9" in ran.err
    figures = json.loads((out / "metrics.json").read_text())
    (tiny_one,) = figures["autoencoders"]
    assert tiny_one["weights"] == "tiny.safetensors"
    assert tiny_one["compute_dtype"] == "float32"
    keys = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert [row["source"] for row in figures["images"]] == keys
    for row in figures["images"]:
        original = pixels_of(photos / row["source"])
        reconstruction = pixels_of(out / f"{row['source']}.reconstruction.png")
        assert original.shape == reconstruction.shape == (row["height"], row["width"], 3)
        assert row["scores"] == [pytest.approx(compare(original, reconstruction).as_json())]
        assert np.array_equal(pixels_of(out / f"{row['source']}.original.png"), original)
        with Image.open(out / f"{row['source']}.thumbnail.jpg") as small:
            assert small.size == (row["width"], row["height"])
        assert (out / f"{row['source']}.comparison.png").exists()
    psnr = np.mean([row["scores"][0]["psnr"] for row in figures["images"]])
    assert tiny_one["overall"]["psnr"] == pytest.approx(psnr)
    sizes = np.array([row["width"] * row["height"] for row in figures["images"]])
    pooled = np.average([row["scores"][0]["mse"] for row in figures["images"]], weights=sizes)
    assert tiny_one["overall"]["mse"] == pytest.approx(pooled)


def test_the_worst_comes_first(stae, photos, tiny, tmp_path):
    ran = stae("roundtrip", photos, tmp_path / "out", "--weights", tiny)
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["images"]
    worst, best = (
        f(figures, key=lambda row: row["scores"][0]["mse"])["source"] for f in (max, min)
    )
    assert ran.out.index(f" {worst} ") < ran.out.index(f" {best} ")


def test_reconstructions_are_those_of_encode_and_decode(stae, photos, tiny, tmp_path):
    stae("roundtrip", photos, tmp_path / "out", "--weights", tiny)
    stae("encode", photos, tmp_path / "latents", "--weights", tiny)
    stae("decode", tmp_path / "latents", tmp_path / "pictures", "--weights", tiny)
    for path in (tmp_path / "pictures").rglob("*.png"):
        key = path.relative_to(tmp_path / "pictures").as_posix()
        other = pixels_of(tmp_path / "out" / f"{key}.reconstruction.png")
        assert np.abs(pixels_of(path).astype(int) - other).max() <= 1


def test_it_always_recomputes(stae, photos, tiny, tmp_path):
    args = ["roundtrip", photos, tmp_path / "out", "--weights", tiny, "--json"]
    assert stae(*args).json["done"] == 9
    again = stae(*args).json
    assert (again["done"], again["skipped"]) == (9, 0)
    assert again["autoencoders"][0]["overall"]["pictures"] == 9
    assert again["report"] == str(tmp_path / "out" / "index.html")


def test_size_options_and_one_pixel(stae, tiny, tmp_path):
    Image.fromarray(noise(100, 50)).save(tmp_path / "a.png")
    Image.fromarray(noise(1, 1)).save(tmp_path / "b.png")
    args = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "out", "--weights", tiny]
    ran = stae("roundtrip", *args, "--short-side", 20)
    assert ran.code == 0, ran.err
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["images"]
    assert [(row["width"], row["height"]) for row in rows] == [(40, 20), (1, 1)]
    assert rows[1]["scores"][0]["ssim"] is None


def test_bad_files_are_listed_and_same_stems_do_not_collide(stae, photos, tiny, tmp_path):
    Image.fromarray(noise(20, 20)).save(photos / "p0.jpg")
    (photos / "bad.jpg").write_bytes(b"bad")
    ran = stae("roundtrip", photos, tmp_path / "out", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 10, 1)
    assert "bad.jpg" in (tmp_path / "out" / "failures.jsonl").read_text()


def test_wrong_inputs(stae, photos, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    stae("roundtrip", tmp_path / "empty", tmp_path / "o").assert_fails(1, "no inputs found")
    stae("encode", photos, tmp_path / "latents", "--weights", tiny)
    stae("roundtrip", tmp_path / "latents", tmp_path / "o").assert_fails(1, "no inputs found")
    stae("roundtrip", photos, photos / "o").assert_fails(2, "inside SOURCE")
    stae("roundtrip", tmp_path / "absent", tmp_path / "o").assert_fails(2, "absent")
    latent = tmp_path / "latents" / "p0.safetensors"
    ran = stae("roundtrip", latent, tmp_path / "o", "--weights", tiny)
    assert ran.code == 3
    assert "not an image" in ran.err


def data_of(page):
    text = page.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return text, json.loads(text[start : text.index("</script>", start)])


def test_the_page_shows_what_was_made(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    ran = stae("roundtrip", photos, out, "--weights", tiny, "--square", 24)
    assert f"open {out / 'index.html'} in a browser" in ran.err
    text, data = data_of(out / "index.html")
    rows = json.loads((out / "metrics.json").read_text())["images"]
    assert [photo[:3] for photo in data["photos"]] == [[r["source"], 24, 24] for r in rows]
    for (_, _, _, [[mse, ssim]]), row in zip(data["photos"], rows, strict=True):
        assert mse == pytest.approx(row["scores"][0]["mse"], rel=1e-5)
        assert ssim == pytest.approx(row["scores"][0]["ssim"], abs=1e-6)
    assert data["columns"] == [{"name": "tiny", "suffix": "reconstruction.png"}]
    assert f"stae roundtrip {photos} {out} --weights {tiny} --square 24" in text
    assert "square 24" in text
    assert "<dt>device</dt><dd><bdi>cpu</bdi></dd>" in text
    assert "<dt>fingerprint</dt>" in text


def test_several_checkpoints_and_a_peer(stae, photos, tiny, other_tiny, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    peer = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **blocks)
    peer.save_pretrained(tmp_path / "my vae")
    out = tmp_path / "out"
    options = ["--weights", tiny, "--weights", other_tiny, "--peer", tmp_path / "my vae"]
    ran = stae("roundtrip", photos, out, *options)
    assert ran.code == 0, ran.err
    assert all(f"{name} dB" in ran.out for name in ("tiny", "other", "my-vae"))
    assert "my-vae: PSNR" in ran.out
    figures = json.loads((out / "metrics.json").read_text())
    assert [each["name"] for each in figures["autoencoders"]] == ["tiny", "other", "my-vae"]
    assert figures["autoencoders"][2]["diffusers"] == "AutoencoderKL"
    for row in figures["images"]:
        original = pixels_of(out / f"{row['source']}.original.png")
        assert np.array_equal(original, pixels_of(photos / row["source"]))
        for each, score in zip(figures["autoencoders"], row["scores"], strict=True):
            made = pixels_of(out / f"{row['source']}.{each['name']}.reconstruction.png")
            assert score == pytest.approx(compare(original, made).as_json())
            assert (out / f"{row['source']}.{each['name']}.comparison.png").exists()
    _, data = data_of(out / "index.html")
    assert [len(photo[3]) for photo in data["photos"]] == [3] * 9
    alone = tmp_path / "alone"
    stae("roundtrip", photos, alone, "--weights", other_tiny)
    scores = json.loads((alone / "metrics.json").read_text())["images"]
    assert [row["scores"][0] for row in scores] == [
        pytest.approx(row["scores"][1]) for row in figures["images"]
    ]


def test_networks_of_different_patches_see_the_same_pixels(stae, tiny, tmp_path):
    large, network = tmp_path / "large.safetensors", tiny_like(PRESETS["f32c256-naive"])
    write_checkpoint(large, seeded_tensors(network), network, {})
    Image.fromarray(noise(70, 50)).save(tmp_path / "a.png")
    for edges, size in [("pad", (70, 50)), ("crop", (64, 32))]:
        out = tmp_path / edges
        options = ["--weights", tiny, "--weights", large, "--edges", edges]
        ran = stae("roundtrip", tmp_path / "a.png", out, *options)
        assert ran.code == 0, ran.err
        (row,) = json.loads((out / "metrics.json").read_text())["images"]
        assert (row["width"], row["height"]) == size
        for name in ("tiny", "large"):
            assert pixels_of(out / f"a.png.{name}.reconstruction.png").shape[1::-1] == size


def test_what_one_of_several_cannot_do_is_left_out_of_all(stae, tiny, tmp_path):
    broken = tmp_path / "broken.safetensors"
    tensors = {name: 1e15 * tensor for name, tensor in seeded_tensors(TINY).items()}
    write_checkpoint(broken, tensors, TINY, {})
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    options = ["--weights", tiny, "--weights", broken]
    ran = stae("roundtrip", tmp_path / "a.png", tmp_path / "out", *options)
    assert ran.code == 3
    assert "a.png: broken: the network gave NaN" in ran.err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["images"] == []
    assert "1 of 1 inputs failed" in (tmp_path / "out" / "index.html").read_text()
    assert not list((tmp_path / "out").glob("a.png*"))


def test_wrong_autoencoders(stae, photos, tiny, tmp_path, monkeypatch):
    again = tmp_path / "copy.safetensors"
    again.write_bytes(tiny.read_bytes())
    options = ["--weights", tiny, "--weights", again]
    stae("roundtrip", photos, tmp_path / "o", *options).assert_fails(2, "same checkpoint")
    for peer, code, words in [
        (photos, 1, "no config.json"),
        (photos / "p0.png", 2, "is a file"),
        ("owner/name", 2, "no folder `owner/name`"),
    ]:
        ran = stae("roundtrip", photos, tmp_path / "o", "--weights", tiny, "--peer", peer)
        ran.assert_fails(code, words)
    ran = stae("roundtrip", photos, tmp_path / "new", "--weights", tiny, "--peer", photos)
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("STAE_WEIGHTS", str(tmp_path / "with a space.safetensors"))
    stae("roundtrip", photos, tmp_path / "o").assert_fails(1, "with a space")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.html", "<title>my site</title>"),
        ("metrics.json", '{"mine": 1}'),
        ("metrics.json", "[]"),
        ("index.html", None),
        ("metrics.json", None),
    ],
)
def test_what_somebody_else_wrote_stays(stae, photos, tiny, tmp_path, name, text):
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    if text is not None:
        (out / name).rmdir()
        (out / name).write_text(text)
    ran = stae("roundtrip", photos, out, "--weights", tiny)
    ran.assert_fails(1, name, "not of an earlier roundtrip")
    assert [path.name for path in out.iterdir()] == [name]
    assert text is None or (out / name).read_text() == text


def test_a_rerun_leaves_nothing_of_the_run_before(stae, photos, tiny, other_tiny, tmp_path):
    out = tmp_path / "out"
    both = ("--weights", tiny, "--weights", other_tiny)
    assert stae("roundtrip", photos, out, *both).code == 0
    (out / "p0.png.note.txt").write_text("mine")
    (photos / "p0.png").write_bytes(b"broken")
    (photos / "p1.png").unlink()
    assert stae("roundtrip", photos, out, "--weights", tiny).code == 3
    kinds = ("original.png", "thumbnail.jpg", "reconstruction.png", "comparison.png")
    left = {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")} - {"p0.png"}
    beside = {"index.html", "metrics.json", "failures.jsonl", "p0.png.note.txt"}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == beside | {f"{key}.{kind}" for key in left for kind in kinds}


def test_metrics_that_lead_out_of_dest_remove_nothing_there(stae, photos, tiny, tmp_path):
    out = tmp_path / "out"
    assert stae("roundtrip", photos, out, "--weights", tiny).code == 0
    figures = json.loads((out / "metrics.json").read_text())
    mine = [tmp_path / "mine.original.png", tmp_path / "x.original.png"]
    for path in mine:
        path.write_bytes(b"mine")
    figures["images"] = [{"source": "../mine"}, {"source": str(tmp_path / "x")}]
    figures["autoencoders"] = [{"name": "a"}, {"name": "/../../mine.original.png"}]
    (out / "metrics.json").write_text(json.dumps(figures))
    assert stae("roundtrip", photos, out, "--weights", tiny).code == 0
    assert all(path.read_bytes() == b"mine" for path in mine)


def test_figures_do_not_depend_on_what_they_are_compared_with(stae, tiny, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    blocks = 4
    peer = diffusers.AutoencoderKL(
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=4,
        layers_per_block=1,
    )
    peer.save_pretrained(tmp_path / "peer")
    large, network = tmp_path / "large.safetensors", tiny_like(PRESETS["f32c256-naive"])
    write_checkpoint(large, seeded_tensors(network), network, {})
    Image.fromarray(noise(50, 41)).save(tmp_path / "a.png")
    found = {}
    for name, options in {
        "tiny": ["--weights", tiny],
        "large": ["--weights", large],
        "all": ["--weights", tiny, "--weights", large, "--peer", tmp_path / "peer"],
        "turned": ["--weights", large, "--weights", tiny, "--peer", tmp_path / "peer"],
    }.items():
        ran = stae("roundtrip", tmp_path / "a.png", tmp_path / name, *options)
        assert ran.code == 0, ran.err
        (row,) = json.loads((tmp_path / name / "metrics.json").read_text())["images"]
        found[name] = row["scores"]
    assert found["all"][:2] == [found["tiny"][0], found["large"][0]]
    assert found["turned"] == [found["large"][0], found["tiny"][0], found["all"][2]]


def test_names_that_no_file_system_takes_are_listed(stae, photos, tiny, tmp_path):
    (photos / "p0.png").rename(photos / f"{'x' * 240}.png")
    ran = stae("roundtrip", photos, tmp_path / "out", "--weights", tiny, "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (3, 8, 1)
    assert "its name is too long" in ran.err


@pytest.mark.parametrize("folder", ["index.html", "metrics.json", "p0.png.original.png"])
def test_folders_in_the_place_of_outputs_are_refused_first(stae, photos, tiny, tmp_path, folder):
    (photos / folder).mkdir()
    Image.fromarray(noise(8, 8)).save(photos / folder / "a.png")
    ran = stae("roundtrip", photos, tmp_path / "out", "--weights", tiny)
    ran.assert_fails(2, f"would write `{folder}`, which is a folder for")
    assert not (tmp_path / "out").exists()


def test_a_killed_run_leaves_no_page_of_the_run_before(stae, tiny, tmp_path, launcher):
    for number in range(60):
        place = tmp_path / "photos" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(200, 150, seed=number)).save(place)
    out = tmp_path / "out"
    args = ["roundtrip", tmp_path / "photos", out, "--weights", tiny]
    assert stae(*args).code == 0
    assert (out / "index.html").exists()
    with launcher.running(*args, log=tmp_path / "log") as again:
        wait_for(lambda: not (out / "index.html").exists(), ended=again.has_ended)
        assert again.end_by(signal.SIGKILL) == -signal.SIGKILL
    assert not (out / "index.html").exists()
    assert not (out / "metrics.json").exists()
    assert stae(*args).code == 0
    assert (out / "index.html").exists()


def test_passwords_in_urls_are_not_in_the_report():
    line = command_line(["roundtrip", "https://me:secret@host/a.tar?X-Amz-Signature=abc", "my out"])
    assert line == "stae roundtrip https://host/a.tar 'my out'"
