"""A folder of damaged images: no crash, no hang, and each one is encoded or listed."""

import json
import random

import pytest

from tests.difficult import CASES

KINDS = {
    ".jpg": ["jpeg 4:2:0", "progressive jpeg", "grey jpeg", "cmyk jpeg"],
    ".png": ["rgb png", "palette png, alpha bytes", "rgba png", "one-bit png"],
    ".webp": ["webp", "lossless webp with alpha", "animated webp"],
    ".tif": ["tiff", "lzw tiff", "jpeg in tiff", "tiled tiff"],
}


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Bytes changed, cut out, doubled or put in; half of the changes hit the first hundred."""
    blob = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        reach = max(len(blob) if generator.random() < 0.5 else min(len(blob), 100), 1)
        at, length = generator.randrange(reach), generator.randint(1, 20)
        match generator.randrange(6):
            case 0:
                blob[at : at + length] = generator.randbytes(length)
            case 1:
                del blob[at : at + length]
            case 2:
                blob[at:at] = blob[at : at + length]
            case 3:
                blob[at : at + 4] = generator.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
            case _:
                blob[at : at + 1] = generator.randbytes(1)
    return bytes(blob[: generator.randrange(len(blob) + 1)] if generator.random() < 0.1 else blob)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1])
def test_every_damaged_image_is_encoded_or_listed(stae, tiny, tmp_path, seed):
    generator, source = random.Random(seed), tmp_path / "photos"
    source.mkdir()
    wholes = {suffix: [CASES[kind]() for kind in kinds] for suffix, kinds in KINDS.items()}
    for number in range(500):
        suffix = generator.choice(list(KINDS))
        data = mutated(generator.choice(wholes[suffix]), generator)
        (source / f"{number}{suffix}").write_bytes(data)
    out = tmp_path / "out"
    # A flaw in a header can make an image as large as any that is read; --square keeps that
    # from making this test slow.
    ran = stae("encode", source, out, "--weights", tiny, "--json", "--square", 32)
    assert ran.code == 3
    rows = (out / "failures.jsonl").read_text().splitlines()
    listed = [json.loads(row)["source"] for row in rows]
    encoded = [path.stem for path in out.glob("*.safetensors")]
    assert len(listed) == ran.json["failed"] > 50
    assert len(encoded) == ran.json["done"] > 20
    keys = sorted(path.stem for path in source.iterdir())
    assert sorted(encoded + [name.rpartition(".")[0] for name in listed]) == keys
