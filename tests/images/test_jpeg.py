"""JPEGs with oddities are read as without them; those that lack data are refused."""

import io
import random
import struct

import numpy as np
import pytest
from PIL import Image

from stae_cli.errors import InputError
from stae_cli.images.read import open_image
from tests.difficult import ADOBE_LIKE, LINEAR_GREY, by_pillow, photo, saved, ycck_jpeg
from tests.pictures import noise

SOS, EOI = b"\xff\xda", b"\xff\xd9"
STRAY = 20  # behind a JFIF segment


def read(data):
    return open_image(io.BytesIO(data)).pixels()


def smooth(width=200, height=150):
    return Image.fromarray(noise(10, 8, 3)).resize((width, height), Image.Resampling.BICUBIC)


def separate_scans(stretch=1):
    """A baseline JPEG whose components are in scans of their own, the colours' less wide."""
    y, *colours = smooth().convert("YCbCr").split()
    narrow = [each.resize((-(-200 // stretch), 150)) for each in colours]
    grey = [saved(band, "JPEG") for band in (y, *narrow)]
    frame, tables, scan = (grey[0].index(marker) for marker in (b"\xff\xc0", b"\xff\xc4", SOS))
    head = grey[0][:frame] + b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 150, 200, 3)
    head += bytes((1, 16 * stretch + 1, 0, 2, 17, 0, 3, 17, 0)) + grey[0][tables:scan]
    scans = [
        SOS + struct.pack(">H6B", 8, 1, name, 0, 0, 63, 0) + each[scan + 10 : -2]
        for name, each in enumerate(grey, 1)
    ]
    return head + b"".join(scans) + EOI


WHOLE = {
    "baseline": lambda: saved(smooth(), "JPEG"),
    "optimised": lambda: saved(smooth(), "JPEG", optimize=True, subsampling=0),
    "progressive": lambda: saved(smooth(), "JPEG", progressive=True),
    "restarts": lambda: saved(smooth(), "JPEG", restart_marker_rows=1),
    "separate scans": separate_scans,
    "rare sampling": lambda: separate_scans(3),
    "profile": lambda: saved(smooth(), "JPEG", icc_profile=ADOBE_LIKE),
    "grey": lambda: saved(smooth().convert("L"), "JPEG"),
    "grey with a profile": lambda: saved(smooth().convert("L"), "JPEG", icc_profile=LINEAR_GREY),
    "cmyk": lambda: saved(smooth().convert("CMYK"), "JPEG"),
    "ycck": lambda: ycck_jpeg(smooth()),
    "mpo": lambda: saved(smooth(), "MPO", save_all=True, append_images=[photo(40, 40)]),
}


def end_of(data):
    """Where the first picture's end marker is."""
    return data.index(EOI, data.index(SOS))


def inserted(data, place, what):
    return data[:place] + what + data[place:]


def stray(data):
    return inserted(data, 4 + int.from_bytes(data[4:6]), b"\0")  # behind the first segment


ODDITIES = {
    "a stray byte": stray,
    "30 bytes between segments": lambda data: inserted(data, data.index(b"\xff\xdb"), b"?" * 30),
    "no end": lambda data: data[: end_of(data)],
    "zeros before the end": lambda data: inserted(data, end_of(data), bytes(3)),
    "many zeros before the end": lambda data: inserted(data, end_of(data), bytes(700)),
    "fill bytes before the end": lambda data: inserted(data, end_of(data), b"\xff" * 5),
    "zeros after the end": lambda data: data + bytes(5000),
    "a JPEG after the end": lambda data: data + saved(photo(), "JPEG"),
    "JFIF 0.00": lambda data: data[:11] + bytes(2) + data[13:],
    "a comment in the scans": lambda data: inserted(data, end_of(data), b"\xff\xfe\0\x05abc"),
    "a height after the scan": lambda data: inserted(data, end_of(data), b"\xff\xdc\0\4\0\x96"),
}


@pytest.mark.parametrize("oddity", ODDITIES)
@pytest.mark.parametrize("kind", WHOLE)
def test_oddities_change_nothing(kind, oddity):
    whole = WHOLE[kind]()
    odd = ODDITIES[oddity](whole)
    assert odd != whole
    assert np.array_equal(read(odd), read(whole))
    assert "profile" in kind or np.array_equal(read(whole), by_pillow(whole))


def test_odd_parameters_of_a_scan_change_nothing():
    whole = WHOLE["baseline"]()
    last = whole.index(SOS) + 12
    assert np.array_equal(read(whole[:last] + b"\0" + whole[last + 1 :]), by_pillow(whole))


def test_zeros_before_restart_markers_change_nothing():
    whole = WHOLE["restarts"]()
    odd = inserted(whole, whole.index(b"\xff\xd2"), bytes(9))
    assert np.array_equal(read(odd), by_pillow(whole))


def test_an_unknown_transform_of_adobe_is_that_of_the_colours():
    whole = WHOLE["baseline"]()
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + b"\2"
    odd = whole[:2] + adobe + whole[STRAY:]
    assert np.array_equal(read(odd), by_pillow(whole))


def test_flat_pictures_are_zeros_for_the_most_part():
    whole = saved(Image.new("RGB", (640, 640), (9, 200, 30)), "JPEG", optimize=True)
    assert bytes(200) in whole[whole.index(SOS) :]
    for data in (whole, stray(whole), whole[:-2]):
        assert np.array_equal(read(data), by_pillow(whole))


def changed(data, first, last, what):
    """From one share of the first picture's scan to another."""
    start, size = data.index(SOS) + 14, end_of(data) - data.index(SOS) - 14
    start, stop = start + int(first * size), start + int(last * size)
    return data[:start] + what(stop - start) + data[stop:]


DAMAGES = {
    "the middle third is cut": lambda data: changed(data, 0.3, 0.6, lambda _: b""),
    "the middle third is zeros": lambda data: changed(data, 0.3, 0.6, bytes),
    "zeros up to the end": lambda data: changed(data, 0.5, 1, bytes),
    "random bytes": lambda data: changed(data, 0.4, 0.6, random.Random(5).randbytes),
    "an end in its middle": lambda data: changed(data, 0.5, 0.52, lambda _: EOI),
    "nothing behind its middle": lambda data: data[: (data.index(SOS) + end_of(data)) // 2],
    "nine tenths with an end": lambda data: changed(data, 0.9, 1, lambda _: b""),
}


@pytest.mark.parametrize("oddity", [bytes, stray], ids=["plain", "stray byte"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", WHOLE)
def test_missing_data_are_damage(kind, damage, oddity):
    with pytest.raises(InputError, match="damaged or truncated"):
        read(oddity(DAMAGES[damage](WHOLE[kind]())))


def test_what_is_missing_between_scans():
    whole = WHOLE["separate scans"]()
    second = whole.index(SOS, whole.index(SOS) + 2)
    with pytest.raises(InputError, match="a colour component is missing"):
        read(whole[:second] + EOI)
    whole = WHOLE["progressive"]()
    for last in (whole.rindex(SOS), whole.rindex(b"\xff\xc4")):
        with pytest.raises(InputError, match="the last scans are missing"):
            read(whole[:last])


def test_overwritten_headers():
    whole = saved(smooth(), "JPEG", icc_profile=ADOBE_LIKE)
    table = whole.index(b"\xff\xdb") + 5
    assert np.array_equal(read(inserted(whole, table - 5, bytes(5000))), read(whole))
    with pytest.raises(InputError, match="a quantisation table was overwritten"):
        read(whole[: table + 20] + bytes(44) + whole[table + 64 :])
    with pytest.raises(InputError, match="a segment was overwritten"):
        read(whole[:15] + bytes(100) + whole[115:])


def test_encode_lists_damaged_jpegs_and_reads_odd_ones(stae, tiny, tmp_path):
    (tmp_path / "photos").mkdir()
    for kind in ("baseline", "cmyk", "mpo"):
        whole = WHOLE[kind]()
        (tmp_path / "photos" / f"{kind}.jpg").write_bytes(stray(whole))
        cut = DAMAGES["the middle third is zeros"](whole)
        (tmp_path / "photos" / f"{kind} damaged.jpg").write_bytes(stray(cut))
    ran = stae("encode", tmp_path / "photos", tmp_path / "latents", "--weights", tiny, "--json")
    assert ran.code == 3
    assert (ran.json["done"], ran.json["failed"]) == (3, 3)
    for failure in ran.json["failures"]:
        assert failure["source"].endswith(" damaged.jpg")
        assert failure["reason"].startswith("damaged or truncated image: Corrupt JPEG data")
