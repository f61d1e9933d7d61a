"""Signatures: what a file that is not what it should be is instead, by its first bytes."""

from __future__ import annotations

SIGNATURES = (  # where in the file, what is there, and what it means
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (0, b"PK\x03\x04", "a ZIP archive (such as .npz, .pt or .docx)"),
    (0, b"PK\x05\x06", "an empty ZIP archive"),
    (0, b"\x80\x02", "a Python pickle (such as .pt)"),
    (0, b"\x80\x04", "a Python pickle"),
    (0, b"\x80\x05", "a Python pickle"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"gimp xcf", "a GIMP file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"\x1f\x8b", "a gzip-compressed file"),
    (0, b"BZh", "a bzip2-compressed file"),
    (0, b"\xfd7zXZ\0", "an xz-compressed file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd-compressed file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar"),
    (0, b"FUJIFILMCCD-RAW", "a raw photo"),
    (4, b"ftypcrx", "a raw photo"),
    (4, b"ftypqt", "a video"),
    (4, b"ftypisom", "a video"),
    (4, b"ftypmp4", "a video"),
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftyp", "a HEIF, AVIF or video file of a kind that is not read"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, whose file was not downloaded"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<!doctype", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"<?xml", "an XML file"),
    (0, b"<Error", "an XML error message"),
)
LONGEST = 264  # bytes that are looked at


def kind_of(beginning: bytes) -> str | None:
    """What a file is, in words, by its first `LONGEST` bytes; None if they say nothing."""
    for at, signature, kind in SIGNATURES:
        if beginning[at : at + len(signature)] == signature:
            return kind
    return None
