"""Encoding a sample of sources again, to compare with the stored latents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from stae_cli.errors import InputError
from stae_cli.flow.read_ahead import Reserve, scanning
from stae_cli.images.buffers import Buffers
from stae_cli.images.resize import parse_described
from stae_cli.latents.format import Latent, StoredLatent
from stae_cli.latents.listing import stored_in
from stae_cli.runs.pipeline import packed
from stae_cli.runs.read_picture import Picture, read_picture
from stae_cli.runs.tally import problem_or
from stae_cli.storage.entry import Entry, Problem
from stae_cli.storage.remote_entry import RemoteEntry
from stae_cli.verify.against import WithSource
from stae_cli.verify.findings import CheckedLatent, Finding

if TYPE_CHECKING:
    from stae_cli.codec.pixel_codec import PixelCodec

Item = TypeVar("Item")

# Relative to the largest value of a latent, by the less precise of the two dtypes that computed
# it. The last place of float16, in which latents are stored, is 0.001.
TOLERANCES = {"float32": 0.002, "float16": 0.01, "bfloat16": 0.05}


@dataclass(frozen=True)
class Reencoded:
    """A stored latent compared with its source encoded again, in the dtype that is stored.

    `difference` is the largest absolute difference of a value, `allowed` how large it may be.
    """

    key: str
    equal: bool  # every byte
    difference: float
    allowed: float

    @property
    def finding(self) -> Finding | None:
        """A finding if the difference is too large."""
        if self.difference <= self.allowed:
            return None
        reason = f"encoded again, it differs by {self.difference:.4g} (allowed {self.allowed:.4g})"
        return Finding("differs", self.key, reason)


@dataclass(frozen=True)
class _Pair:
    """A stored latent, its data and its flip's if it has one, and the picture to encode again."""

    stored: StoredLatent
    latents: Sequence[Latent]
    picture: Picture


def drawn(items: Iterable[Item], count: int, *, seed: int) -> list[Item]:
    """Draws `count` items at random, all equally likely (Vitter's algorithm R)."""
    generator, kept = random.Random(seed), []  # noqa: S311 (no secret)
    for index, item in enumerate(items):
        if index < count:
            kept.append(item)
        elif (place := generator.randrange(index + 1)) < count:
            kept[place] = item
    return kept


def reencode(
    sample: Sequence[WithSource],
    codec: PixelCodec,
    *,
    workers: int | None = None,
    advance: Callable[[int], None],
) -> Iterator[Reencoded | Finding]:
    """Encodes sources again, and compares the results with the stored latents.

    Args:
        sample: latents and their sources.
        codec: with the weights that made them.
        workers: reading threads.
        advance: called with the number of latents compared.
    """
    reader = _Reader(codec)
    in_files = sorted(sample, key=lambda pair: pair[0].file.key)  # headers are read once
    with scanning(in_files, reader.read, workers=workers) as results:
        for found in packed(results, patches=_patches, limit=codec.batch_patches):
            problems = (p for p in found if isinstance(p, Problem))
            yield from (Finding("unreadable", p.key, p.reason) for p in problems)
            pairs = [pair for pair in found if isinstance(pair, _Pair)]
            if pairs:
                both = [pair.picture.prepared.both for pair in pairs]
                made = iter(codec.encode_pixels(list(chain.from_iterable(both))))
                for pair in pairs:
                    again = list(islice(made, len(pair.latents)))
                    yield _compared(pair, again, str(codec.dtype).removeprefix("torch."))
            advance(len(found))


class _Reader:
    """Reads stored latents and their sources, in threads."""

    def __init__(self, codec: PixelCodec) -> None:
        self.patch, self.buffers = codec.architecture.downsample, Buffers(codec.host_memory)
        self.stored_in = lru_cache(maxsize=8)(stored_in)

    def read(self, sampled: WithSource, reserve: Reserve) -> _Pair | Problem:
        return problem_or(sampled[0].label, lambda: self._read(*sampled, reserve))

    def _read(self, checked: CheckedLatent, source: Entry, reserve: Reserve) -> _Pair:
        file = checked.file
        file = file.in_parts() if isinstance(file, RemoteEntry) else file
        stored = next((s for s in self.stored_in(file) if s.key == checked.key), None)
        if stored is None:
            raise InputError("it was removed during the check")
        picture = read_picture(
            source,
            parse_described(stored.info.prep),
            patch=self.patch,
            reserve=reserve,
            buffers=self.buffers,
        )
        latents = stored.read_both()
        if len(latents) != len(picture.prepared.both):
            raise InputError("damaged: its preparation and its tensors contradict each other")
        return _Pair(stored, latents, picture)


def _compared(pair: _Pair, again: Sequence[Latent | None], dtype: str) -> Reencoded | Finding:
    """The worse of the latent and its flip."""
    found = [_compared_one(pair, *two, dtype) for two in zip(pair.latents, again, strict=True)]
    results = [each for each in found if isinstance(each, Reencoded)]
    if len(results) < len(found):
        return next(each for each in found if isinstance(each, Finding))
    worst = max(results, key=lambda result: result.difference - result.allowed)
    return replace(worst, equal=all(result.equal for result in results))


def _compared_one(
    pair: _Pair, latent: Latent, again: Latent | None, dtype: str
) -> Reencoded | Finding:
    key = pair.stored.label
    if again is None or again.shape != latent.shape:
        what = "NaN or infinity" if again is None else f"the shape {again.shape}"
        return Finding("differs", key, f"encoded again, it has {what}")
    with np.errstate(over="ignore"):  # infinity differs, which is a finding
        kept = again.astype(latent.dtype)
    difference = np.abs(kept.astype(np.float64) - latent.astype(np.float64)).max()
    tolerances = (TOLERANCES.get(name, 0.0) for name in (dtype, pair.stored.info.compute_dtype))
    allowed = max(tolerances) * float(np.abs(latent).max())
    return Reencoded(key, kept.tobytes() == latent.tobytes(), float(difference), allowed)


def _patches(result: _Pair | Problem) -> int:
    return sum(z[0].size for z in result.latents) if isinstance(result, _Pair) else 0
