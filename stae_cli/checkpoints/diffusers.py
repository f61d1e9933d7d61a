"""diffusers: a checkpoint as a folder that `AutoModel.from_pretrained` loads."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from stae_cli._version import __version__
from stae_cli.checkpoints.checkpoint import Checkpoint
from stae_cli.errors import UsageError
from stae_cli.network import architecture, stupid_ae

CLASS, MODULE = "AutoencoderStupid", "stupidae_diffusers"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
LAYERS_BEGIN, LAYERS_END = "CHANNEL_NORM_EPS = ", "\n\nclass StupidAE(nn.Module):"
OURS = re.compile(r"^from stae_cli\..*\n", re.MULTILINE)


def write_diffusers(
    checkpoint: Checkpoint, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Writes the weights, their configuration, the module that computes them, and a card.

    Args:
        checkpoint: any of the family.
        folder: an existing one.
        dtype: of the tensors; by default that of the checkpoint.

    Raises:
        UsageError: the network's factor is not a power of two.
        OSError: it cannot be written.
    """
    config = _config(checkpoint)
    model = checkpoint.model()
    tensors = {name: each.to(dtype or checkpoint.dtype) for name, each in _tensors(model).items()}
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / f"{MODULE}.py").write_text(module_text(), encoding="utf-8")
    (folder / "README.md").write_text(_card(checkpoint, config), encoding="utf-8")


def module_text() -> str:
    """The module that is written: the wrapper, with the network's own layers in it."""
    layers = inspect.getsource(stupid_ae)
    layers = layers[layers.index(LAYERS_BEGIN) : layers.index(LAYERS_END)]
    stage = inspect.getsource(architecture.Stage)
    text = files("stae_cli.checkpoints").joinpath("diffusers_model.py").read_text("utf-8")
    start = text.index("@dataclass\nclass StupidAEEncoderOutput")
    imports, wrapper = OURS.sub("", text[:start]), text[start:]
    docstring, imports = imports.split('"""\n', 1)
    title = docstring.partition("\n")[0]
    imports = imports.replace(
        "from typing import Any\n", "from typing import Any, Literal\n"
    ).replace(
        "from torch import Tensor, nn\n",
        "from torch import Tensor, nn\nfrom torch.nn.functional import gelu, silu\n",
    )
    head = 'Head = Literal["neural_field", "pixel_shuffle"]\n'
    made = f"{title}\n\nWritten by stae {__version__}, MIT licence; it needs torch and diffusers.\n"
    made += '"""\n'
    return f"{made}{imports.rstrip()}\n\n{head}{layers.rstrip()}\n\n\n{stage}\n\n{wrapper}"


def _tensors(model: stupid_ae.StupidAE) -> Mapping[str, torch.Tensor]:
    return {name: each.detach().contiguous() for name, each in model.state_dict().items()}


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    sizes = checkpoint.architecture
    halvings = sizes.downsample.bit_length() - 1
    if 1 << halvings != sizes.downsample:  # pipelines would compute another factor
        raise UsageError(
            f"pipelines of diffusers take factors such as 8 and 16, not {sizes.downsample}",
            "give a network whose patch is a power of two",
        )
    levels = [sizes.width] * (halvings + 1)
    config: dict[str, Any] = {
        "_class_name": CLASS,
        "_diffusers_version": "0.42.1",
        "auto_map": {"AutoModel": f"{MODULE}.{CLASS}"},
        "stages": [asdict(stage) for stage in sizes.stages],
        "latent_channels": sizes.channels,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": False,
        "block_out_channels": levels,
        "encoder_block_out_channels": levels,
        "sample_size": 512,
    }
    scaling = checkpoint.model().scaling
    if scaling is not None:
        config["shift_factor"], config["scaling_factor"] = scaling
    recorded = _recorded(checkpoint.metadata)
    for name, key in (("latents_mean", "mean"), ("latents_std", "std")):
        values = recorded.get(key)
        if isinstance(values, list) and len(values) == sizes.channels:
            config[name] = values
    return config


def _recorded(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What a checkpoint says of its latents; nothing if that is not readable."""
    try:
        found = json.loads(metadata.get("latents", "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _card(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str:
    factor = checkpoint.architecture.downsample
    known = config["latents_mean"] is not None
    statistics = "They are of this checkpoint's latents."
    if checkpoint.model().scaling is None:
        statistics = "This checkpoint records none: set them from your latents (`stae stats`)."
    return f"""---
library_name: diffusers
---

# StupidAE: `{checkpoint.name}`

A [StupidAE](https://huggingface.co/Muinez/StupidAE) autoencoder for diffusers, with patches of
{factor}x{factor} pixels and {checkpoint.architecture.channels} latent channels.
Written by stae {__version__} from `{checkpoint.name}`, fingerprint
{checkpoint.fingerprint}.

```python
from diffusers import AutoModel

vae = AutoModel.from_pretrained("PATH", trust_remote_code=True)
latents = vae.encode(images).latent_dist.sample()  # images (B, 3, H, W) in [-1, 1]
images = vae.decode(latents).sample
```

- The encoder is deterministic: each sample is the same.
- `save_pretrained` does not copy `{MODULE}.py`: copy it beside what it writes.
- `enable_tiling()` changes nothing but memory: tiles overlap by all that the decoder sees.
- `scaling_factor` ({config["scaling_factor"]:.5g}) and `shift_factor`
  ({config["shift_factor"]:.5g}) are what the pipelines of DiT, PixArt, Flux and SD3 use:
  (latents - shift) * scale. {statistics}
- `latents_mean` and `latents_std` are {"those of its channels" if known else "not recorded"}; these
  pipelines ignore them.
- The licence of the weights is that of the checkpoint, which does not record it.
"""
