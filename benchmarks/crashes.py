"""Kills encodes of 500 images at random moments, and says whether reruns left anything amiss.

PYTHONPATH=. python benchmarks/crashes.py [KILLS]
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from record import record

from tests.killing import LAYOUTS, Killing, Outcome
from tests.launcher import Launcher
from tests.seeded import tiny_checkpoint

IMAGES = 500


def main(kills: int = 20) -> None:
    started, results = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder, Launcher() as launcher:
        place = Path(folder)
        weights = tiny_checkpoint(place / "tiny.safetensors")
        killing = Killing(place / "killing", launcher, weights, count=IMAGES)
        for layout in LAYOUTS:
            for ranks in (1, 2):
                outcomes = [
                    killing.outcome(layout, ranks=ranks, kills=1, seed=s) for s in range(kills)
                ]
                results.append({"layout": layout, "ranks": ranks, **summary(outcomes)})
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    result = {"images": IMAGES, "seconds": round(time.monotonic() - started), "runs": results}
    record("crashes", result)
    print(json.dumps(result, indent=1))


def summary(outcomes: list[Outcome]) -> dict[str, object]:
    return {
        "kills": len(outcomes),
        "processes that a kill struck": sum(outcome.kills for outcome in outcomes),
        "outputs that survived, of each": [outcome.survivors for outcome in outcomes],
        "flawed": [asdict(outcome) for outcome in outcomes if not is_sound(outcome)],
    }


def is_sound(outcome: Outcome) -> bool:
    """The rerun is complete, equals an undisturbed run, redid nothing and left nothing."""
    return (
        outcome.undisturbed
        and outcome.last_code == 0
        and not outcome.redone
        and not outcome.temporaries
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
