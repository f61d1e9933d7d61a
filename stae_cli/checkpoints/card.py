"""The card of a checkpoint: what it is, and what its file says of how it was made."""

from __future__ import annotations

import json
from typing import Any

from stae_cli.checkpoints.checkpoint import Checkpoint

HISTORY = ("recipe", "data", "training", "validation", "latents")  # metadata in chronological order


def card(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts of a checkpoint; objects in its metadata are parsed."""
    return {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "architecture": checkpoint.architecture.describe(),
        "parameters": checkpoint.parameters,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "metadata": {key: _parsed(text) for key, text in checkpoint.metadata.items()},
    }


def in_words(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """A card as lines to read: metadata behind the rest, each object as `name figure, ...`."""
    metadata = facts["metadata"]
    own = {key: value for key, value in facts.items() if key != "metadata"}
    known = [key for key in HISTORY if key in metadata]
    others = sorted(metadata.keys() - own.keys() - set(known))
    rows = own | {key: metadata[key] for key in [*known, *others]}
    return [(key.replace("_", " "), _words(value)) for key, value in rows.items()]


def _words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key.replace('_', ' ')} {_figures(each)}" for key, each in value.items())


def _figures(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _parsed(text: str) -> Any:
    """Metadata that holds a JSON object as that object; anything else unchanged."""
    try:
        value = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _refused(constant: str) -> None:
    """Refuses NaN and infinity, which JSON does not have."""
    raise ValueError(constant)
