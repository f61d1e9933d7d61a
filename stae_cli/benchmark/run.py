"""The benchmark itself: every network in turn, in shuffled rounds, beside the machine's own speed.

Each round times every network's encoder and decoder and one large matrix product once, in a new
order. Comparisons are made within a round, so that whatever else the machine does in the meantime
meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from stae_cli.benchmark.contenders import Contender, check_against, contenders
from stae_cli.benchmark.inputs import Inputs
from stae_cli.benchmark.machine import describe_machine, host_peak_bytes
from stae_cli.benchmark.matmul import Matmul, large_matmuls
from stae_cli.benchmark.report import OURS, Case, CaseResult, Report, Spread, Timing
from stae_cli.benchmark.rounds import Key, Round, is_memory_error, memory_errors, rounds_of
from stae_cli.benchmark.stopwatch import Stopwatch, WarmUp
from stae_cli.model.codec import Codec
from stae_cli.model.flops import check_size
from stae_cli.model.stupid_ae import StupidAE


@dataclass(frozen=True)
class Entrant:
    """One stage of one network in one case, warmed up."""

    network: str
    stage: str
    flops: int  # of a whole batch
    stopwatch: Stopwatch
    warm_up: WarmUp

    @property
    def key(self) -> tuple[str, str]:
        return self.network, self.stage

    def sample(self) -> float:
        return self.stopwatch.sample(self.warm_up.calls)


def run(
    model: StupidAE,
    cases: Sequence[Case],
    *,
    weights: str,
    against: Sequence[str] = (),
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    seconds: float = 20.0,
    on_case: Callable[[Case], None] = lambda _case: None,
) -> Report:
    """Times a model's codec, and other networks beside it.

    Args:
        model: the reference model; `contenders.seeded_model()` is as good as any.
        cases: sizes and batches.
        weights: what the model's weights are called, for the report.
        against: `reference` (the plain module), `unfused` (the codec without Triton kernels) and
            names from `model.peers.PEERS`.
        device: where all networks run, as in `Codec`.
        dtype: what they compute in, as in `Codec`.
        seconds: how long the rounds of one case may take; there are at least three.
        on_case: called as each case begins.

    Raises:
        UsageError: a size that the network cannot take, or an unknown network.
        StaeError: a network is not installed, or memory runs out for the codec itself.
        DeviceError: the device is absent.
    """
    check_against(against)
    for case in cases:
        check_size(case.width, case.height, multiple=model.architecture.downsample)
    codec = Codec(model, device=device, dtype=dtype)
    with _even_terms():
        entered = contenders(codec, model, against)
        matmuls = large_matmuls(codec.device, codec.dtype)
        results = []
        for case in cases:
            on_case(case)
            with memory_errors(case):
                results.append(_run_case(case, codec, entered, matmuls, seconds))
    return Report(
        describe_machine(codec.device),
        model.architecture.describe(),
        weights,
        str(codec.dtype).removeprefix("torch."),
        codec.unfused,
        host_peak_bytes(),
        tuple(results),
    )


def _run_case(
    case: Case,
    codec: Codec,
    entered: Sequence[Contender],
    matmuls: Sequence[Matmul],
    seconds: float,
) -> CaseResult:
    inputs = Inputs(case, device=codec.device, dtype=codec.dtype)
    entrants: list[Entrant] = []
    left_out: list[str] = []
    for each in entered:
        try:
            entrants += _entrants(each, case, inputs, codec.device)
        except RuntimeError as error:
            if each.name == OURS or not is_memory_error(error):
                raise
            left_out.append(each.name)
        if codec.device.type == "cuda":
            torch.cuda.empty_cache()  # what one network held in reserve, the next may need
    tasks: dict[Key, Callable[[], float]] = {each.key: each.sample for each in entrants}
    tasks |= {each.key: each.sample for each in matmuls}
    rounds = rounds_of(tasks, seconds)
    fastest, rates = _fastest(matmuls, rounds)
    timings = tuple(_timing(entrant, case, rounds, rates) for entrant in entrants)
    return CaseResult(case, len(rounds), fastest.shape, Spread.of(rates), timings, tuple(left_out))


def _entrants(
    contender: Contender, case: Case, inputs: Inputs, device: torch.device
) -> Iterator[Entrant]:
    cost = contender.cost(case.width, case.height)
    pictures = inputs.pixels() if contender.takes_pixels else inputs.images()
    latents = inputs.latents(contender.latent_channels, contender.factor)
    for stage, function, given in (
        (cost.encoder, contender.encode, pictures),
        (cost.decoder, contender.decode, latents),
    ):
        watch = Stopwatch(device, function, given)
        flops = stage.flops.total * case.batch
        yield Entrant(contender.name, stage.name, flops, watch, watch.warm_up())


def _fastest(matmuls: Sequence[Matmul], rounds: Sequence[Round]) -> tuple[Matmul, list[float]]:
    """The matrix product with the highest median rate, and its rates in 10^12 per second."""
    rates = {each: [each.flops / times[each.key] / 1e12 for times in rounds] for each in matmuls}
    fastest = max(matmuls, key=lambda each: median(rates[each]))
    return fastest, rates[fastest]


def _timing(
    entrant: Entrant, case: Case, rounds: Sequence[Round], rates: Sequence[float]
) -> Timing:
    times = [each[entrant.key] for each in rounds]
    ours = [each[OURS, entrant.stage] for each in rounds]
    speeds = [entrant.flops / time / 1e12 for time in times]
    return Timing(
        entrant.network,
        entrant.stage,
        milliseconds=Spread.of([time * 1000 for time in times]),
        images_per_second=Spread.of([case.batch / time for time in times]),
        tflops=Spread.of(speeds).median,
        share=Spread.of([speed / rate for speed, rate in zip(speeds, rates, strict=True)]),
        slowdown=Spread.of([time / base for time, base in zip(times, ours, strict=True)]),
        memory_bytes=entrant.warm_up.memory_bytes,
    )


@contextmanager
def _even_terms() -> Iterator[None]:
    """No gradients, and full float32 convolutions for the others too, as the codec has them."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
