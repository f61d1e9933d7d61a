"""Findings: what a check of stored latents can find wrong, one kind for each remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "record",  # the run record is absent or damaged
    "damaged",  # truncated, malformed, not finite, or no latent of ours
    "mixed",  # made with other weights or settings than the rest
    "misnamed",  # its name is not that of the source that it records
    "duplicate",  # its key or its source is there twice
    "missing",  # a source without an output
    "stale",  # the source changed since
    "orphaned",  # an output without a source
    "unreadable",  # a source that cannot be reached
    "failed",  # the last run listed it as a failure
    "temporary",  # a file left by a run that was killed
    "differs",  # encoded again, it is another latent
    "manifest",  # it is absent, or says something else than the shards
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: with a file, a latent (`FILE:KEY` in shards) or a source."""

    kind: Kind
    key: str
    reason: str
