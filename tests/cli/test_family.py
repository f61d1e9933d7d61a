"""Networks beside the published one, as users train, use, compare and confuse them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from stae_cli.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from stae_cli.latents.format import write_latent
from stae_cli.latents.listing import read_latent
from stae_cli.network.architecture import PRESETS, Architecture, SecondStage
from tests.pictures import noise
from tests.seeded import seeded_tensors, tiny_like

SMALL = Architecture("small", width=32, head_width=8)
FAMILY = [
    SMALL,
    replace(SMALL, name="small-1x1", decoder_kernel=1),
    replace(SMALL, name="small-shuffle", head="pixel_shuffle"),
    replace(SMALL, name="small-32", second=SecondStage(8)),
    replace(SMALL, name="small-naive", patch=16, head="pixel_shuffle"),
]


@pytest.fixture
def family(monkeypatch):
    """Presets small enough to be trained here."""
    for each in FAMILY:
        monkeypatch.setitem(PRESETS, each.name, each)


def saved(path, architecture, seed=1):
    write_checkpoint(path, seeded_tensors(architecture, seed), architecture, {})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(noise(70 + number, 90 - number, seed=number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    sizes = tiny_like(PRESETS["f32c64"])
    return saved(tmp_path_factory.mktemp("weights") / "two.safetensors", sizes)


SIZES = {"dot": (1, 1), "small": (5, 3), "cell": (32, 32), "large": (100, 70)}


@pytest.fixture
def latents(stae, two_stages, tmp_path):
    (tmp_path / "images").mkdir()
    for name, size in SIZES.items():
        Image.fromarray(noise(*size)).save(tmp_path / "images" / f"{name}.png")
    ran = stae("encode", tmp_path / "images", tmp_path / "latents", "--weights", two_stages)
    assert ran.code == 0, ran.err
    return tmp_path / "latents"


def test_pictures_smaller_than_a_patch_are_padded_recorded_and_restored(
    stae, latents, two_stages, tmp_path
):
    for name, (width, height) in SIZES.items():
        latent, info = read_latent(latents / f"{name}.safetensors")
        assert latent.shape == (64, -(-height // 32), -(-width // 32))
        assert (info.width, info.height) == (width, height)
        assert (info.downsample, info.latent_channels) == (32, 64)
        assert json.loads(info.architecture)["second"] == {"patch": 4, "latent_channels": 64}
    ran = stae("decode", latents, tmp_path / "out", "--weights", two_stages)
    assert ran.code == 0, ran.err
    for name, size in SIZES.items():
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.size == size


def test_padding_repeats_the_edge(latents, two_stages):
    padded = np.pad(noise(5, 3), ((0, 29), (0, 27), (0, 0)), mode="edge")
    image = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = read_checkpoint(two_stages, name="").model().encode(image)[0]
    latent = load_file(latents / "small.safetensors")["latents"]
    assert np.abs(latent - expected.numpy()).max() < 2e-3 * np.abs(latent).max()


def test_the_budget_of_patches_counts_pixels(stae, latents, two_stages, tmp_path):
    args = ("--weights", two_stages, "--batch-patches", 40)
    assert stae("encode", tmp_path / "images", tmp_path / "again", *args).code == 0
    for name in SIZES:
        one, two = (load_file(f / f"{name}.safetensors") for f in (latents, tmp_path / "again"))
        assert np.array_equal(one["latents"], two["latents"])
    assert stae("decode", latents, tmp_path / "tiled", *args).code == 0


def test_roundtrip_takes_any_network(stae, latents, two_stages, tmp_path):
    ran = stae("roundtrip", tmp_path / "images", tmp_path / "r", "--weights", two_stages)
    assert ran.code == 0, ran.err
    with Image.open(tmp_path / "r" / "large.png.reconstruction.png") as picture:
        assert picture.size == SIZES["large"]


def test_latents_of_another_network_are_refused(stae, latents, tiny, tmp_path):
    ran = stae("decode", latents, tmp_path / "out", "--weights", tiny)
    ran.assert_fails(1, '"latent_channels":64', "tiny", "not with")
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("what", "value"),
    [("architecture", "f8c16"), ("architecture", "f99")],
    ids=["other", "unknown"],
)
def test_latents_that_contradict_their_weights_are_listed(
    stae, latents, two_stages, tmp_path, what, value
):
    path = latents / "large.safetensors"
    latent, info = read_latent(path)
    write_latent(path, latent, replace(info, **{what: value}))
    ran = stae("decode", latents, tmp_path / "out", "--weights", two_stages)
    assert ran.code == 3
    assert f"it says {value}" in ran.err
    assert len(list((tmp_path / "out").glob("*.png"))) == len(SIZES) - 1


SHORT = ("--steps", 3, "--batch", 2, "--crop", 64, "--device", "cpu", "--quiet", "--json")


@pytest.mark.parametrize("name", [each.name for each in FAMILY])
@pytest.mark.usefixtures("family")
def test_every_kind_of_network_trains_from_the_linear_start(stae, photos, tmp_path, name):
    out = tmp_path / "new.safetensors"
    ran = stae("train", photos, "--out", out, "--architecture", name, *SHORT, "--validate", photos)
    assert ran.code == 0, ran.err
    made = read_checkpoint(out, name="new")
    assert made.architecture == PRESETS[name]
    assert made.metadata["architecture"] == name
    assert len(json.loads(made.metadata["latents"])["std"]) == PRESETS[name].channels
    assert stae("encode", photos, tmp_path / "l", "--weights", out).code == 0
    assert stae("decode", tmp_path / "l", tmp_path / "p", "--weights", out).code == 0


@pytest.mark.usefixtures("family")
def test_a_second_stage_leaves_its_first_as_it_was(stae, photos, tmp_path):
    first, out = saved(tmp_path / "first.safetensors", SMALL), tmp_path / "two.safetensors"
    args = ("train", photos, "--out", out, "--stage", 2, "--from", first, *SHORT)
    ran = stae(*args)
    assert ran.code == 0, ran.err
    made = read_checkpoint(out, name="two")
    assert made.architecture.name == "small-32"
    assert json.loads(made.metadata["recipe"])["start"].endswith("second stage pca")
    before = read_checkpoint(first, name="").tensors
    assert all(torch.equal(made.tensors[name], before[name]) for name in before)
    start = seeded_tensors(made.architecture)
    moved = [name for name in made.tensors.keys() - before if "weight" in name]
    assert len(moved) > 10
    assert all(made.tensors[name].shape == start[name].shape for name in moved)
    further = tmp_path / "further.safetensors"
    ran = stae("train", photos, "--out", further, "--from", out, *SHORT)
    assert ran.code == 0, ran.err
    after = read_checkpoint(further, name="").tensors
    assert not torch.equal(
        after["encoder.0.initial.0.weight"], before["encoder.0.initial.0.weight"]
    )


@pytest.mark.usefixtures("family")
def test_a_second_stage_is_not_built_on_a_broken_first(stae, photos, tmp_path):
    tensors = seeded_tensors(SMALL)
    tensors["decoder.0.positions"][0, 3, 1] = float("nan")
    write_checkpoint(first := tmp_path / "broken.safetensors", tensors, SMALL, {})
    out = tmp_path / "two.safetensors"
    ran = stae("train", photos, "--out", out, "--stage", 2, "--from", first, *SHORT)
    ran.assert_fails(1, "broken.safetensors", "NaN", "decoder.0.positions")
    assert not out.exists()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.usefixtures("family")
def test_a_second_stage_learns(stae, photos, tmp_path, optimizer):
    if optimizer == "muon":
        pytest.importorskip("pytorch_optimizer")
    first, out = saved(tmp_path / "first.safetensors", SMALL), tmp_path / "two.safetensors"
    args = ("--stage", 2, "--from", first, "--init", "random", "--optimizer", optimizer)
    more = ("--steps", 60, "--batch", 4, "--crop", 64, "--lr", "5e-3", "--device", "cpu")
    assert stae("train", photos, "--out", out, *args, *more).code == 0
    log = (tmp_path / "two.training" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.usefixtures("family")
def test_what_does_not_fit_together_is_told(stae, photos, two_stages, tmp_path):
    first, out = saved(tmp_path / "first.safetensors", SMALL), tmp_path / "new.safetensors"
    narrow = saved(tmp_path / "odd.safetensors", Architecture("odd", width=16, head_width=8))
    train = ("train", photos, "--out", out, *SHORT)
    stae(*train, "--architecture", "f9").assert_fails(2, "f9", "f8c16-shuffle", "f32c256-naive")
    stae(*train, "--stage", 2).assert_fails(2, "second stage needs its first", "--from")
    stae(*train, "--stage", 2, "--from", two_stages).assert_fails(2, "two stages already")
    stae(*train, "--stage", 2, "--from", narrow).assert_fails(
        2, "no second stage", "f32c64 on f8c16"
    )
    ran = stae(*train, "--stage", 2, "--from", first, "--architecture", "f32c256")
    ran.assert_fails(2, "no f32c256", "small-32 on small")
    ran = stae(*train, "--from", first, "--architecture", "small-1x1")
    ran.assert_fails(1, "first.safetensors", "is a small, not a small-1x1")
    ran = stae(*train, "--architecture", "small-32", "--crop", "40")
    ran.assert_fails(2, "a crop of 40", "multiple of 32")
    assert not out.exists()


def test_a_linear_start_that_cannot_be_is_told(stae, photos, tmp_path, monkeypatch):
    wide = replace(SMALL, name="wide", second=SecondStage(17))
    monkeypatch.setitem(PRESETS, "wide", wide)
    train = ("train", photos, "--out", tmp_path / "new.safetensors", *SHORT)
    ran = stae(*train, "--architecture", "wide")
    ran.assert_fails(2, "17 latent channels are too many", "--init random")
    assert stae(*train, "--architecture", "wide", "--init", "random").code == 0


@pytest.mark.usefixtures("family")
def test_bench_takes_any_network(stae, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.LARGE", ((64, 64, 64),))
    monkeypatch.setattr("stae_cli.benchmark.stopwatch.SHORTEST_SAMPLE", 0.001)
    bench = ("bench", "--device", "cpu", "--seconds", 0)
    ran = stae(
        *bench, "--architecture", "small-32", "--size", 64, "--json", "--against", "reference"
    )
    assert ran.code == 0, ran.err
    assert ran.json["architecture"] == "small-32"
    stae(*bench, "--architecture", "small-32", "--size", 40).assert_fails(2, "multiple of 32")
    stae(*bench, "--architecture", "f9").assert_fails(2, "f9", "f32c64")
    ran = stae(*bench, "--architecture", "f8c32", "--weights", tiny)
    ran.assert_fails(1, "tiny.safetensors", "not a f8c32")
    Image.fromarray(noise(70, 40)).save(tmp_path / "a.png")
    ran = stae(*bench[:3], "--architecture", "small-32", "--path", tmp_path, "--json")
    assert ran.code == 0, ran.err


@pytest.mark.usefixtures("family")
def test_a_training_step_is_timed_with_any_network(stae, monkeypatch):
    """A token is one position of 32x32 pixels, or four of 8x8."""
    from stae_cli.benchmark.transformer import SIZES, TransformerSize

    monkeypatch.setitem(SIZES, "mite", TransformerSize(16, 2, 2))
    loop = ("bench", "--loop", "--transformer", "mite", "--device", "cpu", "--seconds", 0)
    for name, tokens, numbers in (("small-32", 2, 8), ("small-shuffle", 8, 64)):
        ran = stae(*loop, "--architecture", name, "--size", "64x32", "--json")
        assert ran.code == 0, ran.err
        assert ran.json["architecture"] == name
        assert ran.json["results"][0]["tokens"] == tokens
        assert ran.json["results"][0]["latent_bytes"] == tokens * numbers * 2
    stae(*loop, "--architecture", "small-32", "--size", 48).assert_fails(2, "multiple of 32")


def test_flops_of_one_network_and_of_the_family(stae):
    pytest.importorskip("diffusers", exc_type=ImportError)
    one = stae("flops", "--architecture", "f32c64", "--size", "64x32", "--json").json["networks"][0]
    assert (one["network"], one["latent"]) == ("f32c64", [64, 1, 2])
    ran = stae("flops", "--all", "--size", "64")
    assert ran.code == 0
    assert all(f" {name} " in ran.out for name in (*PRESETS, "sdxl", "taesd"))
    networks = stae("flops", "--all", "--size", "64", "--json").json["networks"]
    assert [each["network"] for each in networks] == [*PRESETS, "sdxl", "taesd"]
    stae("flops", "--all", "--architecture", "f8c16").assert_fails(2, "--all")
    stae("flops", "--architecture", "f9").assert_fails(2, "f9", "f8c32")
    stae("flops", "--architecture", "f32c64", "--size", "40").assert_fails(2, "multiple of 32")


def test_the_family_is_counted_without_diffusers_too(stae, monkeypatch):
    monkeypatch.setattr("stae_cli.benchmark.peers.peers_are_installed", lambda: False)
    ran = stae("flops", "--all", "--size", "64")
    assert ran.code == 0
    assert "f32c256-naive" in ran.out
    assert "pip install 'stae[peers]'" in ran.err
