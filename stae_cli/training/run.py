"""The run behind `stae train`: photos in, a checkpoint out, resumable in between."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stae_cli import charts
from stae_cli.checkpoints.checkpoint import write_checkpoint
from stae_cli.codec.device import is_memory_error
from stae_cli.errors import StaeError
from stae_cli.interrupts import Interrupts, held_interrupts
from stae_cli.metrics import finite
from stae_cli.training.evaluation import Validation, describe, latent_statistics
from stae_cli.training.loop import LOG_STEPS, DivergedError, Loop
from stae_cli.training.photos import Crops, PhotoSet, load_photos
from stae_cli.training.pictures import draw_curve, draw_samples, sample_photos
from stae_cli.training.ranks import Ranks
from stae_cli.training.recipe import TrainSettings
from stae_cli.training.start import first_model
from stae_cli.training.state import damage_reported
from stae_cli.training.workspace import Workspace

VALIDATION_SHARE = 0.03  # of the time, at most
SAMPLES = 6

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `psnr` is of the last validation, `fraction` 0 to 1."""

    step: int
    fraction: float
    loss: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run made; `psnr` is infinite if the validation photos are reproduced exactly.

    `no_curve` says why the curve could not be drawn.
    """

    out: Path
    workspace: Path
    photos: PhotoSet
    steps: int
    seconds: float
    resumed_at: int
    loss: float | None
    psnr: float | None
    no_curve: StaeError | None


class Run:
    """One run: its settings, its photos and its loop. `train` runs it to its end."""

    def __init__(
        self,
        settings: TrainSettings,
        *,
        device: torch.device,
        ranks: Ranks,
        on_progress: Callable[[Progress], None],
    ) -> None:
        recipe, patch = settings.recipe, settings.architecture.downsample
        recipe.check(patch=patch, processes=ranks.processes)
        self.settings, self.ranks, self.on_progress = settings, ranks, on_progress
        self.workspace = Workspace(settings.out)
        self.workspace.check(overwrite=settings.overwrite)
        with ExitStack() as stack:
            if ranks.first:
                stack.enter_context(self.workspace.held())
            with _within_memory():
                self._load(device, patch=patch)
            self._held = stack.pop_all()  # until the end of `train`

    def _load(self, device: torch.device, *, patch: int) -> None:
        """Reads the photos, and sets up the loop where the last state left it."""
        settings, recipe = self.settings, self.settings.recipe
        self.photos = load_photos(
            settings.sources,
            crop=recipe.crop,
            memory=settings.memory,
            seed=recipe.seed,
            workers=settings.workers,
        )
        folder = settings.validate
        self.validation = Validation(folder, patch=patch, device=device) if folder else None
        self.overlap = self.validation.trained_on(self.photos) if self.validation else []
        self.crops = Crops(
            self.photos, crop=recipe.crop, batch=recipe.batch, seed=recipe.seed, device=device
        )
        self.record = _record(settings, self.photos)
        saved = self.workspace.resume(self.record, overwrite=settings.overwrite)
        self.ranks.wait()  # the first process may change the workspace once all have read it
        self._validated_at = self._validation_cost = 0.0
        self._psnr: float | None = None
        self._no_curve: StaeError | None = None
        self.loop = Loop(
            first_model(settings, self.crops, blank=saved is not None),
            recipe,
            self.crops,
            ranks=self.ranks,
            compiled=settings.compiled,
        )
        if saved is not None:
            with damage_reported(self.workspace.state):
                self.loop.load_state_dict(saved)
        self.resumed_at = self.loop.step
        form = f"{recipe.dtype}, compiled" if settings.compiled else recipe.dtype
        process = f"process {self.ranks.rank + 1} of {self.ranks.processes}"
        _log.info("%s trains on %s in %s after step %d", process, device, form, self.resumed_at)

    def train(self) -> Outcome:
        """Trains to the end, or until it is interrupted; then the state is saved.

        Raises:
            StaeError: the loss became NaN, or memory or the disk ran out; the last good state
                stays.
        """
        with self._held:
            if self.ranks.first and not self.resumed_at:
                self.workspace.clear()
            elif self.ranks.first:
                self.workspace.log.cut(self.resumed_at)
            try:
                with _within_memory():
                    with held_interrupts() as interrupts:
                        self._steps(interrupts)
                    return self._finished()
            except DivergedError as error:
                raise self._diverged(error) from error

    def _steps(self, interrupts: Interrupts) -> None:
        """Trains until the end or an interrupt."""
        loop, saved_at = self.loop, time.monotonic()
        if not loop.step:
            self._log(loss=None, validate=True)
        while not loop.finished:
            loop.advance()
            regular = loop.step % LOG_STEPS == 0
            if regular or loop.finished:
                self._log(loss=loop.take_loss(), validate=self._validation_is_due())
            if regular or self.ranks.processes == 1:
                stop = self.ranks.agreed_any(interrupts.signal is not None, self.crops.device)
                if stop or time.monotonic() - saved_at >= self.settings.save_seconds:
                    self._save()
                    saved_at = time.monotonic()
                if stop:
                    return
        self._save()  # the rest takes a while, and may fail

    def _log(self, *, loss: float | None, validate: bool) -> None:
        loop, psnr = self.loop, None
        if validate and self.ranks.first and self.validation is not None:
            psnr = self._validate(self.validation)
        line: dict[str, Any] = {"step": loop.step, "seconds": round(loop.clock.seconds, 3)}
        if loss is not None:
            line |= {"loss": loss, "learning_rate": loop.rate}
        if psnr is not None:
            line["psnr"] = finite(psnr)
        if self.ranks.first:
            self.workspace.log.write(line)
        self.on_progress(Progress(loop.step, loop.progress, loss, self._psnr))

    def _validation_is_due(self) -> bool:
        """Whether validation costs no more than its share of the time so far."""
        since = self.loop.clock.seconds - self._validated_at
        return since * VALIDATION_SHARE >= self._validation_cost and not self.loop.finished

    def _validate(self, validation: Validation) -> float:
        began = time.monotonic()
        self._psnr = validation.psnr(self.loop.average.model)
        self._validation_cost = time.monotonic() - began
        self._validated_at = self.loop.clock.seconds
        return self._psnr

    def _save(self) -> None:
        """Replaces the state and the last good weights, after checking that both are finite."""
        if not self.ranks.first:
            return
        self.loop.check()
        self.workspace.save(self.record, self.loop.state_dict())
        tensors = self.loop.average.model.state_dict()
        write_checkpoint(self.workspace.last, tensors, self.settings.architecture, {})

    def _diverged(self, error: DivergedError) -> StaeError:
        last = self.workspace.last
        hint = "train with a lower `--lr`"
        if last.exists():
            hint += f", or go on from the last good weights: `--from {last}` and another `--out`"
        return StaeError(error.message, hint)

    def _finished(self) -> Outcome:
        """Writes the pictures and the checkpoint."""
        loop = self.loop
        if not loop.finished:  # another process was interrupted
            raise KeyboardInterrupt
        if self.ranks.first:
            if self.validation is not None:
                self._log(loss=None, validate=True)
            self._write_results()
        self.ranks.wait()
        losses = [line["loss"] for line in self.workspace.log.read() if "loss" in line]
        return Outcome(
            out=self.settings.out,
            workspace=self.workspace.folder,
            photos=self.photos,
            steps=loop.step,
            seconds=loop.clock.seconds,
            resumed_at=self.resumed_at,
            loss=losses[-1] if losses else None,
            psnr=self._psnr,
            no_curve=self._no_curve,
        )

    def _write_results(self) -> None:
        model, place = self.loop.average.model, self.workspace
        statistics = latent_statistics(model, self.crops)
        metadata = describe(
            self.settings, self.photos, self.loop, statistics, self._validation_facts()
        )
        self._no_curve = charts.obstacle()
        if self._no_curve is None:  # else a run would fail for want of a picture
            draw_curve(place.log.read(), place.curve)
        pictures = self.validation.pictures if self.validation else sample_photos(self.photos)
        draw_samples(model, pictures[:SAMPLES], place.samples, device=self.crops.device)
        # Last, since a checkpoint means that its run is over.
        write_checkpoint(
            self.settings.out, model.state_dict(), self.settings.architecture, metadata
        )
        place.finish()

    def _validation_facts(self) -> dict[str, Any] | None:
        folder, psnr = self.settings.validate, self._psnr
        if self.validation is None or folder is None or psnr is None:
            return None
        measured = {"photos": len(self.validation.keys), "psnr": finite(round(psnr, 3))}
        facts = {"folder": folder.name, **measured}
        return facts | ({"also_trained_on": len(self.overlap)} if self.overlap else {})


@contextmanager
def _within_memory() -> Iterator[None]:
    """Turns running out of memory into an error that says what to lower.

    Raises:
        StaeError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise StaeError(
            "out of memory", "lower `--batch` or `--crop`; `--memory` bounds what photos take"
        ) from error


def _record(settings: TrainSettings, photos: PhotoSet) -> str:
    """JSON of everything that the loss curve depends on."""
    recipe = json.loads(settings.recipe.describe())
    about = {"architecture": settings.architecture.describe(), "photos": photos.digest[:16]}
    return json.dumps(recipe | about, sort_keys=True, separators=(",", ":"))
