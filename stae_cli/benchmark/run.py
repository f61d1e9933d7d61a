"""The benchmark: every network in shuffled rounds, beside the machine's own matrix products.

Comparisons are made within a round (see `stopwatch`), which times every encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from stae_cli.benchmark.contenders import (
    Contender,
    Inputs,
    check_against,
    check_installed,
    contender,
)
from stae_cli.benchmark.report import (
    OURS,
    Case,
    CaseResult,
    MatmulRate,
    Report,
    Spread,
    Timing,
    describe_machine,
    host_peak_bytes,
)
from stae_cli.benchmark.stopwatch import (
    Key,
    Matmul,
    Round,
    Stopwatch,
    WarmUp,
    large_matmuls,
    memory_errors,
    rounds_of,
)
from stae_cli.codec.codec import Codec
from stae_cli.codec.device import dtype_name, is_memory_error
from stae_cli.network.flops import check_size
from stae_cli.network.stupid_ae import StupidAE


class _FailureError(Exception):
    """A network fails in a round, after a successful warm-up."""

    def __init__(self, network: str, error: RuntimeError) -> None:
        super().__init__(network)
        self.network, self.error = network, error


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
        """Seconds per call.

        Raises:
            _FailureError: the call fails, and the network is not the codec.
        """
        try:
            return self.stopwatch.sample(self.warm_up.calls)
        except RuntimeError as error:
            if self.network == OURS:
                raise
            raise _FailureError(self.network, error) from error


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
        model: the reference model; `contenders.seeded_model()` will do.
        cases: sizes and batches.
        weights: what the model's weights are called, for the report.
        against: `reference` (the plain module), names from `contenders.VARIANTS` (other forms of
            the codec) and from `peers.PEERS`.
        device: where all networks run, as in `Codec`.
        dtype: what they compute in, as in `Codec`.
        seconds: how long the rounds of one case may take; there are at least three.
        on_case: called as each case begins.

    Raises:
        UsageError: a size that the network cannot take, or an unknown network.
        StaeError: a network is not installed, or memory runs out for the codec itself. Other
            networks that do not run in a case are left out of it, with the reason.
        DeviceError: the device is absent.
    """
    check_against(against)
    for case in cases:
        check_size(case.width, case.height, multiple=model.architecture.downsample)
    check_installed(against)
    first = Codec(model, device=device, dtype=dtype)
    matmuls: Sequence[Matmul] = ()
    results = []
    # On even terms: the others too get full float32 convolutions, as the codec has them.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for number, case in enumerate(cases):
            on_case(case)
            with memory_errors(case):
                # One for each case: buffers that a codec keeps would not count in the next.
                codec = Codec(model, device=first.device, dtype=first.dtype) if number else first
                matmuls = matmuls or large_matmuls(codec.device, codec.dtype)
                results.append(_run_case(case, codec, model, against, matmuls, seconds))
    return Report(
        describe_machine(first.device),
        model.architecture.describe(),
        weights,
        dtype_name(first.dtype),
        first.unfused,
        host_peak_bytes(),
        tuple(results),
    )


def _run_case(
    case: Case,
    codec: Codec,
    model: StupidAE,
    against: Sequence[str],
    matmuls: Sequence[Matmul],
    seconds: float,
) -> CaseResult:
    inputs = Inputs(case, device=codec.device, dtype=codec.dtype)
    entrants: list[Entrant] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys((OURS, *against)):
        try:
            network = contender(name, codec, model)
            entrants += list(_entrants(network, case, inputs, codec.device))
        except RuntimeError as error:
            if name == OURS:
                raise
            left_out[name] = _reason(error)
        if codec.device.type == "cuda":
            torch.cuda.empty_cache()  # what this network has cached, the next may need
    rounds, failed = _rounds(entrants, matmuls, seconds)
    fastest = max(matmuls, key=lambda each: median(_rates(each, rounds)))
    rates = _rates(fastest, rounds)
    return CaseResult(
        case,
        len(rounds),
        fastest.shape,
        Spread.of(rates),
        tuple(_timing(e, case, rounds, rates) for e in entrants if e.network not in failed),
        left_out | failed,
        tuple(MatmulRate(each.shape, Spread.of(_rates(each, rounds))) for each in matmuls),
    )


def _rounds(
    entrants: Sequence[Entrant], matmuls: Sequence[Matmul], seconds: float
) -> tuple[list[Round], dict[str, str]]:
    """Rounds of the networks that succeed in all of them, and why others failed."""
    failed: dict[str, str] = {}
    while True:
        running = [each for each in entrants if each.network not in failed]
        tasks: dict[Key, Callable[[], float]] = {each.key: each.sample for each in running}
        tasks |= {each.key: each.sample for each in matmuls}
        try:
            return rounds_of(tasks, seconds), failed
        except _FailureError as failure:
            failed[failure.network] = _reason(failure.error)


def _reason(error: RuntimeError) -> str:
    """The reason in a few words, for a table."""
    if is_memory_error(error):
        return "out of memory"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _entrants(
    network: Contender, case: Case, inputs: Inputs, device: torch.device
) -> Iterator[Entrant]:
    cost = network.cost(case.width, case.height)
    pictures = inputs.pixels() if network.takes_pixels else inputs.images()
    latents = inputs.latents(network.latent_channels, network.factor)
    for stage, function, given in (
        (cost.encoder, network.encode, pictures),
        (cost.decoder, network.decode, latents),
    ):
        watch = Stopwatch(device, function, given)
        flops = stage.flops.total * case.batch
        yield Entrant(network.name, stage.name, flops, watch, watch.warm_up())


def _rates(matmul: Matmul, rounds: Sequence[Round]) -> list[float]:
    """Operations per second in 10^12, in each round."""
    return [matmul.flops / times[matmul.key] / 1e12 for times in rounds]


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
