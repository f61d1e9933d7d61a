"""What is recorded of a latent: a line of text for each field, sealed with a checksum."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from stae_cli.errors import InputError
from stae_cli.latents.checksums import crc32
from stae_cli.latents.safetensors_header import Shape
from stae_cli.storage.entry import SourceState
from stae_cli.storage.notes import LARGEST_LABEL, NO_LABEL

LATER_FIELDS = {  # with the values that are omitted
    **dict.fromkeys(("source_etag", "source_root", "source_xxh3", "data_crc32"), ""),
    "flip_crc32": "",
    "caption": "",
    "label": str(NO_LABEL),
}
SEALED_IF_GIVEN = ("flip_crc32", "caption", "label")  # what early seals do not count
SEAL = "info_crc32"  # the checksum of a latent's information

Data = bytes | memoryview  # of one latent


@dataclass(frozen=True, slots=True)
class LatentInfo:
    """What is recorded of a latent: its weights, its source, and the sizes to restore.

    Sizes are in pixels, `source_size` in bytes. `source_mtime_ns` is 0 for objects of a store,
    which have a `source_etag` instead. `source_root` identifies the folder or URL that `source` is
    relative to, `source_xxh3` is the hash of the source's bytes, and `data_crc32` the checksum of
    the latent's; `flip_crc32` is that of the mirrored picture's latent, empty if there is none.
    `caption` and `label` (a class's number, or -1) were found beside the source. Earlier versions
    recorded nothing from `source_root` on.
    """

    stae_version: str
    architecture: str
    weights: str
    weights_sha256: str
    downsample: int
    latent_channels: int
    source: str
    source_size: int
    source_mtime_ns: int
    width: int
    height: int
    original_width: int
    original_height: int
    prep: str
    compute_dtype: str
    source_etag: str = ""
    source_root: str = ""
    source_xxh3: str = ""
    data_crc32: str = ""
    flip_crc32: str = ""
    caption: str = ""
    label: int = NO_LABEL

    @property
    def source_state(self) -> SourceState:
        """The source's state when it was encoded."""
        return SourceState(self.source_size, self.source_mtime_ns, self.source_etag)

    def seal(self, shape: Shape, dtype: str) -> dict[str, str]:
        """The checksum of all fields and of the latent's shape and dtype, for its metadata."""
        added = zip(SEALED_IF_GIVEN, map(str, _added_fields(self)), strict=True)
        given = [f"{name}={text}" for name, text in added if text != LATER_FIELDS[name]]
        text = "\n".join(map(str, (*_sealed_fields(self), *shape, dtype, *given)))
        return {SEAL: checksum(text.encode(errors="surrogatepass"))}

    def to_strings(self) -> dict[str, str]:
        """All fields as text, without optional ones that are not given."""
        values = zip(FIELDS, map(str, _all_fields(self)), strict=True)
        return {name: text for name, text in values if text != LATER_FIELDS.get(name)}


FIELDS = tuple(field.name for field in fields(LatentInfo))
_all_fields = attrgetter(*FIELDS)
# What later versions add must not join these: what earlier ones wrote would look damaged.
_sealed_fields = attrgetter(*(name for name in FIELDS if name not in SEALED_IF_GIVEN))
_added_fields = attrgetter(*SEALED_IF_GIVEN)
_PARSED = [
    (each.name, LATER_FIELDS.get(each.name), each.type == "int") for each in fields(LatentInfo)
]
_is_number = re.compile(r"-?[0-9]{1,19}").fullmatch


def checksum(data: Data) -> str:
    """The CRC-32 of a latent's bytes, in hexadecimal."""
    return f"{crc32(data):08x}"


def parse_info(metadata: Mapping[str, Any]) -> LatentInfo:
    """Parses the fields of a latent from untrusted metadata.

    Raises:
        InputError: one is absent or not valid.
    """
    values: list[Any] = []
    for name, otherwise, is_number in _PARSED:
        text = metadata.get(name, otherwise)
        if not isinstance(text, str) or (is_number and not _is_number(text)):
            raise InputError(f"damaged: its metadata has no valid `{name}`")
        values.append(int(text) if is_number else sys.intern(text))
    info = LatentInfo(*values)
    if not NO_LABEL <= info.label <= LARGEST_LABEL:
        raise InputError("damaged: its metadata has no valid `label`")
    return info


def check_shape(shape: Shape, info: LatentInfo) -> None:
    """Checks that a latent's shape fits the recorded sizes.

    Raises:
        InputError: it does not.
    """
    if min(info.downsample, info.width, info.height) < 1:
        raise InputError("damaged: impossible sizes in its metadata")
    rows = -(-info.height // info.downsample)
    columns = -(-info.width // info.downsample)
    if shape != (info.latent_channels, rows, columns):
        raise InputError(
            f"damaged: a latent of {shape} cannot be {info.width}x{info.height} pixels"
        )


def check_seal(metadata: Mapping[str, Any], info: LatentInfo, shape: Shape, dtype: str) -> None:
    """Checks what is recorded of a latent against its checksum, which earlier files lack.

    Raises:
        InputError: it is not what was written.
    """
    if SEAL in metadata and info.seal(shape, dtype)[SEAL] != metadata[SEAL]:
        raise InputError("damaged: its metadata are not those that were written")
