"""Figures of quality: the same as `stae roundtrip`'s, and clear words about what is missing."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import quality
from stae_cli.checkpoints.checkpoint import write_checkpoint
from stae_cli.network.architecture import Architecture, SecondStage
from tests.pictures import noise
from tests.seeded import seeded_tensors


@pytest.fixture(autouse=True)
def _results(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.record.RESULTS", tmp_path / "results")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality") / "photos"
    folder.mkdir()
    for number, size in enumerate([(32, 48), (40, 24), (64, 64)]):
        Image.fromarray(noise(*size, seed=number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    for number in range(4):
        Image.fromarray(noise(80, 72, seed=20 + number)).save(folder / f"{number}.png")
    return folder


def table_of(text):
    """{name: [figures]} of a Markdown table."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()
    ]
    return {name: list(map(float, figures)) for name, *figures in rows[2:]}


def test_a_checkpoint_scores_as_in_a_round_trip(photos, tiny, other_tiny, stae, tmp_path, capsys):
    both = ("--weights", str(tiny), "--weights", str(other_tiny))
    quality.main([str(photos), *both, "--device", "cpu"])
    rows = table_of(capsys.readouterr().out)
    assert list(rows) == ["tiny.safetensors", "other.safetensors"]
    for file, name in ((tiny, "tiny.safetensors"), (other_tiny, "other.safetensors")):
        ran = stae("roundtrip", photos, tmp_path / name, "--weights", file, "--json")
        expected = ran.json["autoencoders"][0]["overall"]
        assert rows[name] == pytest.approx(
            [expected["psnr"], expected["ssim"], expected["mse"]], abs=6e-4
        )
    recorded = json.loads((tmp_path / "results" / "quality.json").read_text())
    assert [row["name"] for row in recorded["rows"]] == list(rows)
    assert recorded["machine"]["device"] == "cpu"


def test_the_baseline_has_the_patches_and_channels_of_the_whole_network(others, tmp_path, capsys):
    """Those of both stages: 16x16 pixels to 24 numbers, not the first one's 8x8 to 16."""
    sizes = Architecture("two", width=32, head_width=8, second=SecondStage(24, patch=2))
    write_checkpoint(two := tmp_path / "two.safetensors", seeded_tensors(sizes), sizes, {})
    arguments = [str(others), "--weights", str(two), "--fit", str(others), "--device", "cpu"]
    quality.main(arguments)
    assert list(table_of(capsys.readouterr().out)) == [
        "linear PCA, 768 to 24", "two.safetensors"
    ]  # fmt: skip


def test_the_baseline_is_the_best_linear_map(photos, others, capsys):
    """With every component it loses only what float16 and rounding do; with few, much more."""
    for components, least, most in ((192, 45, math.inf), (16, 20, 45), (1, 10, 35)):
        quality.main([str(photos), "--fit", str(others), "--components", str(components)])
        ((name, (psnr, _, _)),) = table_of(capsys.readouterr().out).items()
        assert name == f"linear PCA, 192 to {components}"
        assert least < psnr <= most


def test_an_autoencoder_that_diffusers_saved(photos, tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    shallow = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    diffusers.AutoencoderTiny(**shallow, **widths).save_pretrained(tmp_path / "taesd")
    quality.main([str(photos), "--peer", str(tmp_path / "taesd"), "--device", "cpu"])
    ((name, (psnr, _, _)),) = table_of(capsys.readouterr().out).items()
    assert name.endswith("taesd")
    assert 0 < psnr < 20  # its weights are random


def test_a_file_of_taesds_family(photos, tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    file, folder = tmp_path / "taesd3.safetensors", tmp_path / "taesd3"
    network = diffusers.AutoencoderTiny(latent_channels=16)
    save_file(network.state_dict(), file)
    network.save_pretrained(folder)
    quality.main([str(photos), *("--peer", str(file)), *("--peer", str(folder))])
    first, second = table_of(capsys.readouterr().out).values()
    assert first == second


def test_lpips_is_a_column(photos, tiny, capsys, monkeypatch, tmp_path):
    """With another distance in its place: the library and its weights are not installed."""

    class Distance(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "alex"

        def forward(self, first, second):
            assert first.shape == second.shape
            assert -1 <= float(first.min()) < 0 < float(first.max()) <= 1
            return (first - first).abs().mean() + 0.25

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Distance))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    command = [str(photos), "--weights", str(tiny), "--device", "cpu", "--lpips"]
    with pytest.raises(SystemExit, match=r"AlexNet's weights.*\nhint: .*--download"):
        quality.main(command)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / quality.ALEXNET).touch()
    quality.main(command)
    assert table_of(capsys.readouterr().out)["tiny.safetensors"][-1] == 0.25


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`")  # diffusers' own business
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "nothing to score"),
        (["--weights", "absent.safetensors"], "no checkpoint file"),
        (["--fit", "{photos}", "--components", "193"], "193 components"),
        (["--weights", "{tiny}", "--lpips"], "needs the library lpips"),
        (["--peer", "{photos}"], "is not an available autoencoder"),
        (["--peer", "{tiny}"], "is not an available autoencoder"),
        (["--peer", "nobody/nothing"], "is not an available autoencoder"),
    ],
)
def test_what_is_missing_is_said(photos, tiny, tmp_path, monkeypatch, more, words):
    if "--peer" in more:
        pytest.importorskip("diffusers")
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    given = [word.format(photos=photos, tiny=tiny) for word in more]
    with pytest.raises(SystemExit, match=words) as caught:
        quality.main([str(photos), *given])
    assert "\nhint: " in str(caught.value)


def test_a_damaged_photo_is_named(tiny, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SystemExit, match=r"broken\.png"):
        quality.main([str(tmp_path), "--weights", str(tiny)])


def test_pixels_and_images_are_inverse():
    picture = noise(24, 16)
    assert np.array_equal(quality.pixels_of(quality.image_of(picture)), picture)
