"""`stae weights convert --to diffusers`: what diffusers itself makes of the folder."""

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stae_cli.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from stae_cli.checkpoints.diffusers import module_text
from stae_cli.checkpoints.names import builtin_file
from stae_cli.network.architecture import Architecture, SecondStage
from tests.seeded import TINY, seeded_model

diffusers = pytest.importorskip("diffusers", reason="needs pip install 'stae[peers]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, about what it deprecates

NETWORKS = {
    "tiny": TINY,
    "shuffle": replace(TINY, name="shuffle", head="pixel_shuffle"),
    "two stages": replace(TINY, name="two", second=SecondStage(64)),
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Remote code is copied into a cache, which must not be the user's."""
    from diffusers.utils import dynamic_modules_utils

    patch = pytest.MonkeyPatch()
    cache = tmp_path_factory.mktemp("modules")
    patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(cache))
    patch.syspath_prepend(str(cache))
    yield
    patch.undo()


def saved(model, path):
    write_checkpoint(path, model.state_dict(), model.architecture, {})
    return path


@pytest.fixture
def convert(stae, tmp_path):
    def run(name, *options):
        ran = stae("weights", "convert", name, tmp_path / "vae", "--to", "diffusers", *options)
        assert ran.code == 0, ran.err
        return tmp_path / "vae"

    return run


def loaded(folder, **options):
    return diffusers.AutoModel.from_pretrained(
        str(folder), trust_remote_code=True, **options
    ).eval()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_numbers_are_those_of_the_reference(convert, tmp_path, name):
    model = seeded_model(NETWORKS[name]).eval()
    vae = loaded(convert(saved(model, tmp_path / "w.safetensors")))
    factor = model.architecture.downsample
    assert (vae.spatial_compression_ratio, vae.config.latent_channels) == (
        factor,
        model.architecture.channels,
    )
    assert 2 ** (len(vae.config.block_out_channels) - 1) == factor  # as pipelines compute it
    images = torch.rand(2, 3, 3 * factor, 5 * factor) * 2 - 1
    latents = vae.encode(images).latent_dist.sample()
    assert torch.equal(latents, model.encode(images))
    assert torch.equal(vae.decode(latents).sample, model.decode(latents))
    assert torch.equal(vae(images, return_dict=False)[0], model(images))
    assert torch.equal(vae.encode(images, return_dict=False)[0].mode(), latents)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_tiles_and_slices_change_nothing(convert, tmp_path, name):
    model = seeded_model(NETWORKS[name]).eval()
    vae = loaded(convert(saved(model, tmp_path / "w.safetensors")))
    factor = model.architecture.downsample
    images = torch.rand(2, 3, 7 * factor, 12 * factor) * 2 - 1
    latents = vae.encode(images).latent
    decoded = vae.decode(latents).sample
    vae.enable_tiling(3 * factor, 4 * factor)
    vae.enable_slicing()
    torch.testing.assert_close(vae.encode(images).latent, latents, rtol=0, atol=1e-4)
    torch.testing.assert_close(vae.decode(latents).sample, decoded, rtol=0, atol=1e-4)
    vae.disable_tiling()
    torch.testing.assert_close(vae.decode(latents).sample, decoded, rtol=0, atol=1e-4)


def test_the_built_in_checkpoint_in_another_process(convert, tmp_path):
    """Loading needs nothing of stae: its package is not even importable there."""
    folder = convert("builtin")
    script = (
        "import sys, torch; sys.modules['stae_cli'] = None\n"
        "from diffusers import AutoModel\n"
        f"vae = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "z = vae.encode(torch.zeros(1, 3, 16, 24)).latents\n"
        "print(tuple(z.shape), tuple(vae.decode(z).sample.shape), vae.dtype)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "(1, 16, 2, 3) (1, 3, 16, 24) torch.float32"


def test_statistics_are_those_that_the_checkpoint_records(convert):
    config = json.loads((convert("builtin") / "config.json").read_text())
    checkpoint = read_checkpoint(builtin_file("photo-2"), name="photo-2")
    recorded = json.loads(checkpoint.metadata["latents"])
    shift, scale = checkpoint.model().scaling
    assert (config["shift_factor"], config["scaling_factor"]) == (shift, scale)
    assert config["latents_mean"] == recorded["mean"]
    assert config["latents_std"] == recorded["std"]
    assert config["force_upcast"] is False


@torch.no_grad()
def test_it_is_saved_and_loaded_again(convert, tmp_path):
    folder = convert("builtin", "--dtype", "float16")
    vae = loaded(folder)
    vae.save_pretrained(tmp_path / "again")
    shutil.copy(folder / "stupidae_diffusers.py", tmp_path / "again")
    again = loaded(tmp_path / "again")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(again(images).sample, vae(images).sample)
    half = loaded(folder, torch_dtype=torch.bfloat16)
    found = half(images.bfloat16()).sample
    assert found.dtype == torch.bfloat16
    assert (found.float() - vae(images).sample).abs().mean() < 0.02


def retrieve_latents():
    """The function by which pipelines encode; importing its module needs more packages."""
    pipelines = Path(diffusers.__file__).parent / "pipelines" / "stable_diffusion"
    tree = ast.parse((pipelines / "pipeline_stable_diffusion_img2img.py").read_text())
    found = [node for node in tree.body if getattr(node, "name", "") == "retrieve_latents"]
    names = {"torch": torch}
    exec(compile(ast.Module(found, []), "retrieve_latents", "exec"), names)
    return names["retrieve_latents"]


@torch.no_grad()
def test_pipelines_use_it(convert):
    """DiT's makes pictures of it, and those from image to image encode with it."""
    vae = loaded(convert("builtin"))
    images = torch.rand(1, 3, 32, 40) * 2 - 1
    generator = torch.Generator().manual_seed(0)
    latents = retrieve_latents()(vae.encode(images), generator=generator)
    assert torch.equal(latents, vae.encode(images).latent)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        out_channels=32,
        num_layers=1,
        sample_size=4,
        num_embeds_ada_norm=1000,
    )
    pipeline = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline([1, 2], num_inference_steps=2, generator=generator).images
    assert [image.size for image in made] == [(32, 32)] * 2


def test_the_module_needs_torch_and_diffusers_alone():
    tree = ast.parse(module_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} == {
        *("__future__", "dataclasses", "typing", "torch", "diffusers"),
    }
    assert "stae_cli" not in module_text()


def test_what_is_refused(stae, convert, tmp_path):
    folder = convert("builtin")
    command = ["weights", "convert", "builtin"]
    stae(*command, folder, "--to", "diffusers").assert_fails(2, "exists", "--overwrite")
    assert stae(*command, folder, "--to", "diffusers", "--overwrite").code == 0
    (folder / "mine.txt").write_text("x")
    stae(*command, folder, "--to", "diffusers", "--overwrite").assert_fails(2, "other files")
    stae(*command, folder / "mine.txt", "--to", "onnx").assert_fails(2, "is a file")
    stae(*command, tmp_path / "n", "--to", "onnx", "--linear").assert_fails(2, "--linear")
    ran = stae(*command, tmp_path / "n", "--to", "onnx", "--dtype", "bfloat16")
    ran.assert_fails(2, "float32 or float16")
    odd = seeded_model(Architecture("odd", patch=12, width=32, head_width=8))
    odd_file = saved(odd, tmp_path / "odd.safetensors")
    ran = stae("weights", "convert", odd_file, tmp_path / "n", "--to", "diffusers")
    ran.assert_fails(2, "not 12")
    absent = ["weights", "convert", tmp_path / "absent.safetensors", tmp_path / "n"]
    assert stae(*absent, "--to", "diffusers").code == 1
    assert not (tmp_path / "n").exists()
    assert not list(tmp_path.glob(".stae-*"))
