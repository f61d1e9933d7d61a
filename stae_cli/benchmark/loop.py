"""Encoding on the fly beside a training step: what it costs, and when caching latents pays.

A step is the forward pass, the backward pass and the optimizer step of a transformer on latents of
one size, with a mean square loss. Pixels and cached latents both start in host memory, as a data
loader leaves them; reading and decoding files is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stae_cli.benchmark.contenders import Inputs
from stae_cli.benchmark.report import Case, Machine, Spread, describe_machine
from stae_cli.benchmark.stopwatch import Key, Stopwatch, memory_errors, rounds_of
from stae_cli.benchmark.transformer import SIZES, Step, check_transformers
from stae_cli.codec.codec import Codec
from stae_cli.codec.device import dtype_name
from stae_cli.codec.tensors import PackedLatents
from stae_cli.network.flops import check_size
from stae_cli.network.stupid_ae import StupidAE

PIXELS_PER_TOKEN = 16  # on a side: what transformers on latents of a patch of 8 usually have
WORTHWHILE = 0.1  # the share of a step from which saving it pays for a cache

CACHED, ON_THE_FLY, ENCODING = "cached", "on the fly", "encoding"


@dataclass(frozen=True)
class LoopResult:
    """One transformer in one case.

    `cached`, `on_the_fly` and `encoding` are milliseconds for a batch: a step on cached latents, a
    step that encodes first, and the encoding alone. `share` is encoding over the step
    that encodes first, in the same round. `latent_bytes` is what a cached picture takes in float16.
    """

    case: Case
    transformer: str
    parameters: int
    tokens: int
    rounds: int
    cached: Spread
    on_the_fly: Spread
    encoding: Spread
    share: Spread
    latent_bytes: int

    @property
    def caching_pays(self) -> bool:
        """Whether a step without encoding is shorter by WORTHWHILE or more."""
        return self.share.median >= WORTHWHILE

    @property
    def parameters_where_it_pays(self) -> float:
        """The number below which caching pays, if a step's time is proportional to it."""
        longest = self.encoding.median * (1 - WORTHWHILE) / WORTHWHILE
        return self.parameters * longest / self.cached.median


@dataclass(frozen=True)
class LoopReport:
    """A whole benchmark; `step_dtype` is what the transformer computes in."""

    machine: Machine
    architecture: str
    weights: str
    dtype: str
    step_dtype: str
    results: Sequence[LoopResult]

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        figures = asdict(self)
        for entry, result in zip(figures["results"], self.results, strict=True):
            entry["caching_pays"] = result.caching_pays
            entry["parameters_where_it_pays"] = round(result.parameters_where_it_pays)
        return figures


def run_loop(
    model: StupidAE,
    cases: Sequence[Case],
    transformers: Sequence[str],
    *,
    weights: str,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    seconds: float = 20.0,
    on_case: Callable[[Case, str], None] = lambda _case, _transformer: None,
) -> LoopReport:
    """Times training steps of transformers with and without encoding.

    Args:
        model: encodes.
        cases: sizes and batches.
        transformers: names from `transformer.SIZES`.
        weights: what the model's weights are called, for the report.
        device: where everything runs, as in `Codec`.
        dtype: what the codec computes in; steps are in bfloat16 on CUDA, else in float32.
        seconds: how long the rounds of one transformer in one case may take.
        on_case: called as each transformer begins in each case.

    Raises:
        UsageError: a size that does not fit whole tokens, or an unknown transformer.
        StaeError: memory runs out.
        DeviceError: the device is absent.
    """
    check_transformers(transformers)
    for case in cases:
        check_size(
            case.width, case.height, multiple=max(PIXELS_PER_TOKEN, model.architecture.downsample)
        )
    codec = Codec(model, device=device, dtype=dtype)
    results = []
    for case in cases:
        for name in transformers:
            on_case(case, name)
            with memory_errors(case):
                results.append(_result(case, name, codec, seconds))
    return LoopReport(
        describe_machine(codec.device),
        model.architecture.describe(),
        weights,
        dtype_name(codec.dtype),
        dtype_name(_step_dtype(codec.device)),
        tuple(results),
    )


class _Loop:
    """A transformer and a codec in one case, with their inputs in host memory."""

    def __init__(self, case: Case, transformer: str, codec: Codec) -> None:
        self._codec = codec
        host = Inputs(case, device=torch.device("cpu"), dtype=torch.float32)
        self._pixels = [self._pinned(batch) for batch in host.pixels()]
        example = codec.encode_packed(self._pixels[0])
        self.sizes = example.sizes
        self._latents = [self._pinned(example.tokens.half().cpu())] * len(self._pixels)
        merge = max(1, PIXELS_PER_TOKEN * self.sizes[0][0] // case.height)
        self.tokens = example.counts[0] // merge**2
        self.latent_bytes = self._latents[0].nbytes // case.batch
        self._step = Step(
            transformer,
            device=codec.device,
            dtype=_step_dtype(codec.device),
            channels=example.tokens.shape[1],
            merge=merge,
        )

    def tasks(self) -> dict[Key, Callable[[], float]]:
        """The tasks of a round, warmed up."""
        return {
            CACHED: self._timed(self._step_on_latents, self._latents),
            ON_THE_FLY: self._timed(self._step_on_pixels, self._pixels),
            ENCODING: self._timed(self._encoded, self._pixels),
        }

    def _timed(
        self, function: Callable[[Tensor], object], given: Sequence[Tensor]
    ) -> Callable[[], float]:
        watch = Stopwatch(self._codec.device, function, given)
        calls = watch.warm_up().calls
        return lambda: watch.sample(calls)

    def _encoded(self, pixels: Tensor) -> PackedLatents:
        return self._codec.encode_packed(self._on_device(pixels))

    def _step_on_pixels(self, pixels: Tensor) -> object:
        return self._step(self._encoded(pixels))

    def _step_on_latents(self, tokens: Tensor) -> object:
        return self._step(PackedLatents(self._on_device(tokens), self.sizes))

    def _on_device(self, batch: Tensor) -> Tensor:
        return batch.to(self._codec.device, non_blocking=True)

    def _pinned(self, batch: Tensor) -> Tensor:
        """In pinned memory for CUDA, as a data loader hands it over."""
        return batch.pin_memory() if self._codec.device.type == "cuda" else batch


def _result(case: Case, transformer: str, codec: Codec, seconds: float) -> LoopResult:
    loop = _Loop(case, transformer, codec)
    rounds = rounds_of(loop.tasks(), seconds)
    cached, on_the_fly, encoding = (
        Spread.of([1000 * times[key] for times in rounds]) for key in (CACHED, ON_THE_FLY, ENCODING)
    )
    return LoopResult(
        case,
        transformer,
        SIZES[transformer].parameters,
        loop.tokens,
        len(rounds),
        cached=cached,
        on_the_fly=on_the_fly,
        encoding=encoding,
        share=Spread.of([times[ENCODING] / times[ON_THE_FLY] for times in rounds]),
        latent_bytes=loop.latent_bytes,
    )


def _step_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
