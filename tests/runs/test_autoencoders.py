"""Autoencoders of diffusers, loaded from folders that diffusers saved, beside diffusers itself."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stae_cli.errors import CheckpointError
from stae_cli.images.resize import Prepared
from stae_cli.runs.autoencoders import NOT_FINITE, PeerAutoencoder, padded
from stae_cli.runs.roundtrip_plan import short_names
from tests.pictures import noise

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CPU = torch.device("cpu")


def kl(**changes):
    return diffusers.AutoencoderKL(
        **changes,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )


def tiny():
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=5,
    )


def deep():
    sizes = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16)}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    scales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    return diffusers.AutoencoderDC(
        latent_channels=8, attention_head_dim=8, **sizes, **layers, **scales
    )


def video():
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves the autoencoder that a function makes, once; returns it and its folder."""
    made = {}

    def save(make):
        if make not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("peers") / make.__name__
            made[make] = make().eval(), folder
            made[make][0].save_pretrained(folder)
        return made[make]

    return save


def prepared(pixels, width=None, height=None):
    sides = width or pixels.shape[1], height or pixels.shape[0]
    return Prepared(pixels, *sides, *sides)


def reconstructed(model, pixels):
    """What diffusers' own interface gives, latents rounded to float16."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        if isinstance(model, diffusers.AutoencoderKL):
            latent = model.encode(image).latent_dist.mode()
        elif isinstance(model, diffusers.AutoencoderTiny):
            latent = model.encode(image).latents
        elif isinstance(model, diffusers.AutoencoderDC):
            latent = model.encode(image).latent
        else:
            latent = model.encode(image[:, :, None]).latent_dist.mode()
        sample = model.decode(latent.half().float()).sample
    sample = sample if sample.ndim == 4 else sample[:, :, 0]
    levels = ((sample[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round()
    return levels.numpy().astype(np.uint8)


@pytest.mark.parametrize(
    ("make", "channels", "downsample"), [(kl, 4, 2), (tiny, 5, 2), (deep, 8, 2), (video, 4, 2)]
)
def test_reconstructions_are_those_of_diffusers(saved, make, channels, downsample):
    model, folder = saved(make)
    peer = PeerAutoencoder("peer", folder, CPU)
    assert (peer.channels, peer.downsample) == (channels, downsample)
    assert peer.parameters == sum(p.numel() for p in model.parameters())
    pictures = [noise(48, 32), noise(16, 64)]
    given = [prepared(pixels) for pixels in pictures]
    for pixels, made in zip(pictures, peer.begin(given)(), strict=True):
        expected = reconstructed(model, pixels)
        assert made.shape == pixels.shape
        assert np.abs(made.astype(int) - expected).max() <= 1
        assert expected.std() > 0


@pytest.mark.parametrize("size", [(47, 31), (48, 32), (1, 1)])
def test_each_pads_for_itself(saved, size):
    """Whatever the picture was padded to for another network, figures are the same."""
    _, folder = saved(kl)
    peer = PeerAutoencoder("peer", folder, CPU)
    pixels = noise(*size)
    (alone,) = peer.begin([prepared(pixels)])()
    wider = np.pad(pixels, [(0, 9), (0, 17), (0, 0)])  # with zeros, which must not be seen
    (other,) = peer.begin([prepared(wider, *size)])()
    assert alone.shape == pixels.shape
    assert np.array_equal(alone, other)
    whole = padded(prepared(pixels), 8)
    assert whole.shape == (-(-size[1] // 8) * 8, -(-size[0] // 8) * 8, 3)
    assert (whole[-1] == whole[size[1] - 1]).all()
    assert (whole[:, -1] == whole[:, size[0] - 1]).all()


def test_a_pipeline_s_folder(saved, tmp_path):
    _, folder = saved(kl)
    shutil.copytree(folder, tmp_path / "pipeline" / "vae")
    assert PeerAutoencoder("p", tmp_path / "pipeline", CPU).channels == 4


def test_what_is_not_finite_is_said(saved, tmp_path):
    model, _ = saved(kl)
    broken = type(model).from_config(model.config)
    torch.nn.init.constant_(broken.decoder.conv_out.bias, float("nan"))
    broken.save_pretrained(tmp_path / "nan")
    made = PeerAutoencoder("p", tmp_path / "nan", CPU).begin([prepared(noise(16, 16))])()
    assert made == [NOT_FINITE]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read"),
        ("[]", "does not name a class"),
        ({"_class_name": "UNet2DModel"}, "not an autoencoder"),
        ({"_class_name": "AutoencoderStupid"}, "not an autoencoder"),
        ({"_class_name": "os"}, "not an autoencoder"),
        ({"_class_name": "AutoencoderKL", "block_out_channels": "x"}, "cannot be loaded"),
    ],
)
def test_folders_of_something_else(tmp_path, config, words):
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        PeerAutoencoder("p", tmp_path, CPU)


def test_weights_that_are_not_those_of_the_network(saved, tmp_path):
    """diffusers would leave them at random, and go on."""
    _, folder = saved(kl)
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    name = "decoder.conv_in.bias"
    for kind, changed in {
        "missing": {k: v for k, v in weights.items() if k != name},
        "unexpected": {**weights, "more": torch.zeros(1)},
    }.items():
        shutil.copytree(folder, tmp_path / kind)
        save_file(changed, tmp_path / kind / "diffusion_pytorch_model.safetensors")
        with pytest.raises(CheckpointError, match=f"{kind} (more|{name})"):
            PeerAutoencoder("p", tmp_path / kind, CPU)


@pytest.mark.parametrize("changes", [{"out_channels": 6}, {"out_channels": 1}])
def test_what_gives_something_else_than_pictures(tmp_path, changes):
    kl(**changes).save_pretrained(tmp_path / "odd")
    with pytest.raises(CheckpointError, match="pictures of another size"):
        PeerAutoencoder("p", tmp_path / "odd", CPU)


def test_kinds_of_files_that_diffusers_writes(saved, tmp_path, capfd):
    model, folder = saved(kl)
    pixels = prepared(noise(32, 32))
    (expected,) = PeerAutoencoder("p", folder, CPU).begin([pixels])()
    for name, options in {
        "half": {"variant": "fp16"},
        "sharded": {"max_shard_size": "30KB"},
        "pickled": {"safe_serialization": False},
    }.items():
        model.save_pretrained(tmp_path / name, **options)
        (made,) = PeerAutoencoder("p", tmp_path / name, CPU).begin([pixels])()
        assert np.array_equal(made, expected), name
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert capfd.readouterr() == ("", "")


def test_damaged_weights(saved, tmp_path):
    _, folder = saved(kl)
    shutil.copytree(folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        PeerAutoencoder("p", tmp_path / "cut", CPU)
    shutil.copytree(folder, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": 4', '"latent_channels": 6'))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        PeerAutoencoder("p", tmp_path / "other", CPU)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["builtin", "stupidae"], ["builtin", "stupidae"]),
        (["runs/a.safetensors", "runs/b.pt"], ["a", "b"]),
        (["a/model.pt", "b/model.pt"], ["model", "b-model"]),
        (["x/model.pt", "./x/MODEL.PT", "x/Model.pth"], ["model", "x-MODEL", "x-Model-2"]),
        (["hf://owner/repo/file.pt@1.0"], ["file"]),
        (["sd xl.vae", "é"], ["sd-xl-vae", "é"]),
        (["a.png", "a-png", "/"], ["a-png", "a-png-2", "weights"]),
    ],
)
def test_short_names_are_different_and_parts_of_file_names(given, names):
    assert short_names(given) == names
