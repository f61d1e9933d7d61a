"""Times the network beside others with `stae bench`, and records what it said.

python benchmarks/networks.py [--device cuda] [--sizes 256,512,1024] [--against reference]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", default="256,512,1024")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--against", default="reference,taesd,sdxl")
    parser.add_argument("--seconds", default="20")
    given = parser.parse_args()
    name = f"networks-{given.device.partition(':')[0]}"
    command = [sys.executable, "-m", "stae_cli", "bench", "--device", given.device, "--json"]
    command += ["--against", given.against, "--seconds", given.seconds]
    command += [part for size in given.sizes.split(",") for part in ("--size", size)]
    command += [part for batch in given.batches.split(",") for part in ("--batch", batch)]
    command += ["--plot", str(RESULTS / f"{name}.png")]
    print(" ".join(command[1:]), file=sys.stderr)
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    record(name, json.loads(ran.stdout))


def record(name: str, result: dict) -> None:
    """Writes a result with the commit it belongs to."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False, cwd=RESULTS,
    ).stdout.strip()  # fmt: skip
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"commit": commit, **result}, indent=1) + "\n")
    print(f"recorded in {path}")


if __name__ == "__main__":
    main()
