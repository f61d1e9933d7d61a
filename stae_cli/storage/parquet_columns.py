"""Columns of Parquet files: which one holds the pictures, and which say something of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stae_cli.errors import InputError
from stae_cli.storage.notes import CAPTIONS

if TYPE_CHECKING:
    import pyarrow as pa

# Binary columns of other names may be anything: sound, embeddings, latents.
NAMES = {
    *("image", "images", "img", "picture", "photo", "pixel_values", "image_bytes", "image_data"),
    *("bytes", "content", "data", "jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tiff"),
}
LABEL = "label"
COLUMNS_NAMED = 12


@dataclass(frozen=True)
class Columns:
    """The columns that are read: `caption` and `label` are empty if there are none."""

    image: str
    caption: str = ""
    label: str = ""

    @property
    def notes(self) -> list[str]:
        """Those that say something of the pictures."""
        return [name for name in (self.caption, self.label) if name]


class NoPicturesError(InputError):
    """A table in which no column holds pictures."""


class SeveralColumnsError(InputError):
    """A table in which several columns hold pictures."""


def choose_columns(schema: pa.Schema, wanted: str = "") -> Columns:
    """The columns to read.

    Args:
        schema: of the file.
        wanted: the column of pictures, by default the only one there is.

    Raises:
        NoPicturesError: there is none, or the wanted one holds something else.
        SeveralColumnsError: it is not clear which one is meant.
    """
    import pyarrow.types as kinds

    found = [name for name in schema.names if _can_hold_pictures(schema.field(name))]
    if wanted and wanted not in found:
        raise NoPicturesError(f"its column `{wanted}` holds no pictures{_listing(schema)}"
                         if wanted in schema.names else
                         f"no column `{wanted}`{_listing(schema)}")  # fmt: skip
    likely = [wanted] if wanted else [name for name in found if _is_likely(schema, name)]
    if not likely:
        raise NoPicturesError(f"no column of pictures{_listing(schema)}")
    if len(likely) > 1:
        raise SeveralColumnsError(f"several columns of pictures: {', '.join(likely)}")
    captions = (name for name in CAPTIONS if name in schema.names)
    caption = next((name for name in captions if _is_text(schema.field(name).type)), "")
    has_label = LABEL in schema.names and kinds.is_integer(schema.field(LABEL).type)
    return Columns(likely[0], caption, LABEL if has_label else "")


def _can_hold_pictures(field: pa.Field) -> bool:
    """Whether it has the bytes of a file in each row, alone or as `datasets` writes them."""
    import pyarrow.types as kinds

    kind = field.type
    if kinds.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_likely(schema: pa.Schema, name: str) -> bool:
    """Whether a column that can hold pictures does, by what `datasets` says or by its name."""
    import pyarrow.types as kinds

    feature = _features(schema).get(name)
    if isinstance(feature, dict) and isinstance(feature.get("_type"), str):
        return feature["_type"] == "Image" or (
            feature["_type"] == "Value" and name.lower() in NAMES
        )
    return kinds.is_struct(schema.field(name).type) or name.lower() in NAMES


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` has noted of the columns; empty for files of other programs."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return kinds.is_binary(kind) or kinds.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return kinds.is_string(kind) or kinds.is_large_string(kind)


def _listing(schema: pa.Schema) -> str:
    names: Sequence[str] = [f"{field.name} ({field.type})" for field in schema]
    if not names:
        return "; it has no columns"
    more = f" and {len(names) - COLUMNS_NAMED} more" if len(names) > COLUMNS_NAMED else ""
    return f"; its columns are {', '.join(names[:COLUMNS_NAMED])}{more}"
