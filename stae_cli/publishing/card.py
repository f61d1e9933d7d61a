"""The dataset card of uploaded latents: what they are, and how to read and decode them."""

from __future__ import annotations

from stae_cli.latents.run_record import NO_PREP, SHARDS
from stae_cli.publishing.plan import PushPlan

NAME = "README.md"
SIZES_NAMED = 5


def card_of(plan: PushPlan, repository: str) -> str:
    """The text of the card."""
    assert plan.info is not None
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(plan))
    return f"""---
tags:
- stae
- latents
- safetensors
---

# {repository.partition("/")[2]}

{plan.count:,} latents of images, written by [stae](https://pypi.org/project/stae/) \
{plan.info.stae_version}.

| | |
|---|---|
{facts}

## Reading

```python
from huggingface_hub import snapshot_download
from stae_cli import LatentDataset

dataset = LatentDataset(snapshot_download("{repository}", repo_type="dataset"))
```

Without stae: each `.safetensors` file has {_layout(plan)}, of shape \
({plan.info.latent_channels}, height / {plan.info.downsample}, width / {plan.info.downsample}).
The metadata of the file record the source, the size and the checksum of each.

To decode them to pictures:

```console
$ hf download {repository} --repo-type dataset --local-dir latents
$ stae decode latents pictures
```

Mean, deviation and scale for training: `stae stats latents`.
"""


def _facts(plan: PushPlan) -> list[tuple[str, str]]:
    info, record = plan.info, plan.record
    assert info is not None
    common = ", ".join(
        f"{width}x{height} ({count:,})"
        for (width, height), count in plan.pictures.most_common(SIZES_NAMED)
    )
    more = len(plan.pictures) - SIZES_NAMED
    facts = [
        ("network", f"`{info.architecture}`"),
        ("weights", f"`{record.weights}`"),
        ("fingerprint of the weights", f"`{record.weights_sha256}`"),
        ("stored as", f"{record.output}, {info.latent_channels} channels"),
        ("pictures, width x height", common + (f" and {more:,} more sizes" if more > 0 else "")),
        ("size", f"{plan.size / 1e6:,.1f} MB in {len(plan.latents):,} files"),
    ]
    if record.prep != NO_PREP:
        facts.append(("preparation", f"`{record.prep}`"))
    counted = {"captions": plan.captions, "labels": plan.labels, "mirrored too": plan.flips}
    return facts + [(name, f"{count:,}") for name, count in counted.items() if count]


def _layout(plan: PushPlan) -> str:
    if plan.record.layout == SHARDS:
        return "many latents, each a tensor named by its key"
    return "one latent, the tensor `latents`"
