"""Encodes pictures alone, in company and with other numbers of threads on this CPU.

Prints the CPU capability and what differs; exits with 1 where a latent's bytes do.
"""

import sys

import torch

from stae_cli import Codec
from stae_cli.network.architecture import PRESETS, Architecture
from tests.seeded import TINY, seeded_model, tiny_like

CHUNK = 512  # rows that are encoded at once on a CPU: `inference.ROWS`
MIXED = [(1, 1), (7, 9), (16, 31), (3, 2), (1, 37)]
# Pictures that end just before, at and behind the end of a chunk, after one position and alone.
LIMITS = [(1, CHUNK - 2), (1, 1), (1, CHUNK), (1, CHUNK + 1), (2, CHUNK - 1), (1, CHUNK - 1)]
ODD = Architecture("odd", width=40, head_width=16)
CASES = [  # network, dtype, threads
    (PRESETS["f8c16"], torch.float32, 1),
    (TINY, torch.float32, 2),
    (tiny_like(PRESETS["f32c64"]), torch.float32, 1),
    (ODD, torch.bfloat16, 1),
    (ODD, torch.float16, 1),
]


def pictures(sizes, patch, *, as_bytes):
    generator = torch.Generator().manual_seed(1)
    for height, width in sizes:
        shape = (height * patch, width * patch, 3)
        levels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        yield levels if as_bytes else levels.permute(2, 0, 1) / 127.5 - 1


def differing(architecture, dtype):
    """What was encoded otherwise in company, in words."""
    model = seeded_model(architecture)
    codec = Codec(model, device="cpu", dtype=dtype)
    small = Codec(model, device="cpu", dtype=dtype, batch_patches=40)  # large ones come in bands
    for sizes, as_bytes in ((MIXED, False), (LIMITS, True)):
        given = list(pictures(sizes, architecture.downsample, as_bytes=as_bytes))
        other = list(pictures([(2, 3)], architecture.downsample, as_bytes=not as_bytes))
        alone = [codec.encode([picture])[0] for picture in given]
        found = {
            "in company": codec.encode(given),
            "in another order": codec.encode(given[::-1])[::-1],
            "after others": codec.encode([*other, given[-1], *given])[2:],
            "in bands": small.encode(given),
            "as a batch": [codec.encode(torch.stack([each] * 3))[1] for each in given],
        }
        for how, latents in found.items():
            for size, one, same in zip(sizes, alone, latents, strict=True):
                if not torch.equal(one, same):
                    yield f"{architecture.name} {dtype} {size} bytes={as_bytes} {how}"
        if not as_bytes:
            for how in differing_by_threads(codec, given, alone):
                yield f"{architecture.name} {dtype} {how}"


def differing_by_threads(codec, given, alone):
    """Which numbers of threads change a byte of the latents, or of the pictures from them."""
    before, painted = torch.get_num_threads(), codec.decode(alone)
    for threads in {1, 2, 5} - {before}:
        torch.set_num_threads(threads)
        if not all(map(torch.equal, codec.encode(given), alone)):
            yield f"encoded by {threads} threads"
        if not all(map(torch.equal, codec.decode(alone), painted)):
            yield f"decoded by {threads} threads"
    torch.set_num_threads(before)


def main():
    wrong = []
    for architecture, dtype, threads in CASES:
        torch.set_num_threads(threads)
        wrong += differing(architecture, dtype)
    sys.stdout.write("\n".join([torch.backends.cpu.get_cpu_capability(), *wrong, ""]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
