"""One folder with every kind of image, name, link and flaw, through `stae encode` as a user would.

Every file of it must end as a latent equal to that of Pillow's own conversion, or on the list of
failures with its reason: none is lost, none is there twice.
"""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from stae_cli.checkpoints import checkpoint
from stae_cli.images.read import MAX_PIXELS, SUFFIXES_OF
from stae_cli.latents.listing import read_latent
from tests.difficult import ADOBE_LIKE, CASES, by_pillow, photo, png_of, saved

ODD_NAMES = [
    "with space.png", "-dash.png", "--weights.png", "Ünïcödé 日本.png", "a.b.c.png", "UPPER.PNG",
    "percent%20.png", "comma,semi;colon.png", "emoji \N{GRINNING FACE}.png",
]  # fmt: skip
ODD_NAMES_OF_POSIX = ["new\nline.png", 'quo"te.png', "quo'te.png", "back\\slash.png", "star*.png"]
NESTED = "deep/er/and/deeper/photo.png"


def grey_profile():
    """A grey profile of gamma 1 with the white of D50, so that it changes every level."""

    def s15(value):
        return round(value * 65536).to_bytes(4, "big", signed=True)

    white = b"XYZ \0\0\0\0" + s15(0.9642) + s15(1) + s15(0.8249)
    curve = b"curv\0\0\0\0" + (1).to_bytes(4, "big") + (256).to_bytes(2, "big") + b"\0\0"
    text = b"desc\0\0\0\0" + (5).to_bytes(4, "big") + b"grey\0" + bytes(79)
    parts = [(b"desc", text), (b"wtpt", white), (b"kTRC", curve)]
    offset, table, body = 132 + 12 * len(parts), len(parts).to_bytes(4, "big"), b""
    for name, part in parts:
        table += name + (offset + len(body)).to_bytes(4, "big") + len(part).to_bytes(4, "big")
        body += part
    head = (offset + len(body)).to_bytes(4, "big") + bytes(4) + b"\x02\x10\0\0mntrGRAYXYZ "
    head += bytes(12) + b"acsp" + bytes(28) + s15(0.9642) + s15(1) + s15(0.8249)
    return head + bytes(128 - len(head)) + table + body


def converted(image, profile):
    srgb = ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB"))


def write(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def good_files(folder: Path) -> dict[str, np.ndarray]:
    """Writes what must become latents; returns the pixels that each key stands for."""
    expected = {}
    for kind, make in CASES.items():
        data = make()
        suffix = SUFFIXES_OF[Image.open(io.BytesIO(data)).format][0]
        expected[write(folder, f"{kind}{suffix}", data)] = by_pillow(data)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(photo(), "JPEG", exif=exif)
        expected[write(folder, f"exif-{orientation}.jpeg", data)] = by_pillow(data)
    deep = np.arange(40 * 24, dtype=np.uint16).reshape(24, 40) * 60
    shallow = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    expected[write(folder, "deep.png", saved(Image.fromarray(deep), "PNG"))] = shallow
    expected[write(folder, "deep.tif", saved(Image.fromarray(deep), "TIFF"))] = shallow
    rgb48 = np.random.default_rng(0).integers(0, 256, (9, 11, 6), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in rgb48)
    expected[write(folder, "rgb48.png", png_of(11, 9, depth=16, kind=2, rows=rows))] = rgb48[
        ..., ::2
    ]
    data = saved(photo(), "JPEG", icc_profile=ADOBE_LIKE)
    expected[write(folder, "adobe.jpg", data)] = converted(Image.open(io.BytesIO(data)), ADOBE_LIKE)
    grey = photo().convert("L")
    data = saved(grey, "PNG", icc_profile=grey_profile())
    expected[write(folder, "grey profile.png", data)] = converted(grey, grey_profile())
    data = saved(photo(), "JPEG", icc_profile=b"no profile at all")
    expected[write(folder, "broken profile.jpg", data)] = by_pillow(data)
    expected[write(folder, "targa.tga", saved(photo(), "TGA"))] = np.asarray(photo())
    if features.check("avif"):
        data = saved(photo(64, 48), "AVIF")
        expected[write(folder, "av1.avif", data)] = by_pillow(data)
    names = [*ODD_NAMES, *([] if os.name == "nt" else ODD_NAMES_OF_POSIX), NESTED]
    for seed, name in enumerate(names):
        pixels = photo(seed=seed)
        expected[write(folder, name, saved(pixels, "PNG"))] = np.asarray(pixels)
    if os.name != "nt":
        (folder / "link.png").symlink_to(folder / "with space.png")
        expected["link.png"] = expected["with space.png"]
        (folder / "deep" / "up").symlink_to(folder)  # a loop: the folder above is read once
    return expected


def bad_files(folder: Path) -> dict[str, str]:
    """Writes what must be listed; returns a word of each reason."""
    side = int(MAX_PIXELS**0.5) + 1
    jpeg = saved(photo(300, 200), "JPEG")
    floats = Image.fromarray(np.ones((8, 8), np.float32))
    reasons = {
        write(folder, "truncated.jpg", jpeg[: len(jpeg) // 2]): "truncated",
        write(folder, "cut header.png", saved(photo(), "PNG")[:20]): "damaged",
        write(folder, "empty.webp", b""): "empty file",
        write(folder, "text.jpg", b"Dear sir or madam"): "not an image",
        write(folder, "page.png", b"<!doctype html><html></html>"): "not an image",
        write(folder, "bomb.png", png_of(side, side)): "million",
        write(folder, "float.tiff", saved(floats, "TIFF")): "floating-point",
        write(folder, "vanishes.png", saved(photo(), "PNG")): "No such file",
    }
    if os.name != "nt":
        (folder / "loop.png").symlink_to("loop.png")
        reasons["loop.png"] = "symbolic links"
        (folder / "nowhere.jpg").symlink_to("not there")
        reasons["nowhere.jpg"] = "No such file"
    if sys.platform == "linux":
        (folder / "unreadable.jpg").symlink_to("/proc/self/mem")  # fails to be read, even by root
        reasons["unreadable.jpg"] = "cannot read"
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(saved(photo(), "PNG"))
        reasons[os.fsdecode(b"\xff.png")] = "UTF-8"
    return reasons


def test_every_file_is_a_latent_or_on_the_list(stae, tiny, tmp_path, monkeypatch):
    photos, plain, out = (tmp_path / name for name in ("photos", "plain", "out"))
    photos.mkdir()
    good, bad = good_files(photos), bad_files(photos)
    write(photos, "notes.txt", b"passed over")
    write(photos, ".hidden.png", b"passed over")
    load = checkpoint.load_checkpoint

    def load_while_a_file_vanishes(name):
        (photos / "vanishes.png").unlink(missing_ok=True)  # it was planned, and is not yet read
        return load(name)

    monkeypatch.setattr(checkpoint, "load_checkpoint", load_while_a_file_vanishes)
    ran = stae("encode", photos, out, "--weights", tiny, "--keep-extension", "--json")
    assert ran.code == 3
    assert (ran.json["done"], ran.json["skipped"], ran.json["failed"]) == (len(good), 0, len(bad))

    rows = [json.loads(line) for line in (out / "failures.jsonl").read_text("utf-8").splitlines()]
    assert sorted(row["source"] for row in rows) == sorted(bad)
    for row in rows:
        assert bad[row["source"]] in row["reason"], row

    for key, pixels in good.items():
        write(plain, f"{key}.png", saved(Image.fromarray(pixels), "PNG"))
    assert stae("encode", plain, tmp_path / "expected", "--weights", tiny).code == 0
    written = {p.relative_to(out).as_posix() for p in out.rglob("*.safetensors")}
    assert written == {f"{key}.safetensors" for key in good}
    for key in good:
        latent, info = read_latent(out / f"{key}.safetensors")
        assert info.source == key
        assert np.array_equal(latent, read_latent(tmp_path / f"expected/{key}.safetensors")[0]), key

    again = stae("encode", photos, out, "--weights", tiny, "--keep-extension", "--json")
    counts = (again.json["done"], again.json["skipped"], again.json["failed"])
    vanished = 1  # not listed any more
    assert counts == (0, len(good), len(bad) - vanished)
    pictures = stae("decode", out, tmp_path / "pictures", "--weights", tiny, "--json")
    assert (pictures.code, pictures.json["done"]) == (0, len(good))
    for key, pixels in good.items():
        with Image.open(tmp_path / f"pictures/{key}.png") as picture:
            assert picture.size == (pixels.shape[1], pixels.shape[0])


@pytest.mark.parametrize("name", ["-dash.png", "--weights.png"])
def test_a_name_with_leading_dashes_after_the_double_dash(name, stae, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name, saved(photo(), "PNG"))
    assert stae("encode", "--weights", tiny, "--", name, "out").code == 0
    assert (tmp_path / "out" / name).with_suffix(".safetensors").exists()
