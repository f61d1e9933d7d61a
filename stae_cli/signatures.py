"""Signatures: what a file that is not what it should be is instead, by its first bytes."""

from __future__ import annotations

LONGEST = 512  # bytes that are looked at
SAFETENSORS = "a safetensors file"

SIGNATURES = (  # where in the file, what is there, and what it means
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (0, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", "a PyTorch file (.pt)"),
    *((0, b"\x80" + bytes([version]), "a Python pickle") for version in range(2, 6)),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (4, b"jP  \r\n\x87\n", "a JPEG 2000 image"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"gimp xcf", "a GIMP file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"FUJIFILMCCD-RAW", "a raw photo"),
    (4, b"ftypcrx", "a raw photo"),
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftypqt", "a video"),
    (4, b"ftypisom", "a video"),
    (4, b"ftypmp4", "a video"),
    (4, b"ftyp", "a HEIF image of a kind that is not read, or a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"\x1f\x8b", "a gzip-compressed file"),
    (0, b"BZh", "a bzip2-compressed file"),
    (0, b"\xfd7zXZ\0", "an xz-compressed file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd-compressed file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar"),
)
TEXTS = (  # beginnings of texts, in lowercase
    (b"version https://git-lfs", "a pointer of Git LFS, whose file was not downloaded"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file"),
    (b"<error", "an error message of a server"),
)
ZIPPED = ((b".npy", "NumPy arrays (.npz)"), (b"/data.pkl", "a PyTorch file (.pt)"))


def kind_of(beginning: bytes) -> str | None:
    """What a file is, in words, by its first `LONGEST` bytes; None if they say nothing."""
    for at, signature, kind in SIGNATURES:
        if beginning.startswith(signature, at):
            return kind
    text = beginning[:64].lstrip().lower()
    for signature, kind in TEXTS:
        if text.startswith(signature):
            return kind
    if beginning.startswith((b"PK\3\4", b"PK\5\6")):
        name = beginning[30 : 30 + int.from_bytes(beginning[26:28], "little")]
        return next((kind for end, kind in ZIPPED if name.endswith(end)), "a ZIP archive")
    if beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 1 << 30:
        return SAFETENSORS
    return None
