"""Parquet files, a row for each picture, for `datasets` and everything else that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stae_cli.errors import StaeError
from stae_cli.export.format import About, Format, Normalize
from stae_cli.export.samples import Sample, Samples

ROW_GROUP = 128  # rows: a reader of one row reads its group
LARGEST = 500 << 20  # bytes of a file, after which the next one begins


class Parquet(Format):
    """`latents-00000.parquet`, ...: key, latents, shape, sizes, caption and label.

    The bytes of a latent are little-endian, in the dtype that the schema's metadata name.
    """

    def check(self, samples: Samples, normalize: Normalize) -> None:
        _pyarrow()

    def write(self, samples: Samples, folder: Path, per_file: int, about: About) -> Iterator[int]:
        dtype = np.dtype(samples.dtype).newbyteorder("<")
        flips = samples.first(flip=True) is None
        schema = _schema(about, samples.dtype, flips=flips)
        rows: list[dict[str, Any]] = []
        writer, count, size, files = None, 0, 0, 0
        try:
            for sample in samples:
                rows.append(_row(sample, dtype, flips=flips))
                count, size = count + 1, size + len(rows[-1]["latents"]) * (1 + flips)
                is_full = count >= per_file or size >= LARGEST
                if len(rows) >= ROW_GROUP or is_full:
                    writer = writer or _writer(folder, files, schema)
                    _flush(writer, rows, schema)
                if is_full and writer is not None:
                    writer.close()
                    writer, count, size, files = None, 0, 0, files + 1
                yield 1
            if rows:
                writer = writer or _writer(folder, files, schema)
                _flush(writer, rows, schema)
        finally:
            if writer is not None:
                writer.close()


def _row(sample: Sample, dtype: np.dtype[Any], *, flips: bool) -> dict[str, Any]:
    row = {
        "key": sample.key,
        "latents": sample.latent.astype(dtype, copy=False).tobytes(),
        "shape": list(sample.latent.shape),
        "width": sample.width,
        "height": sample.height,
        "caption": sample.caption,
        "label": None if sample.label < 0 else sample.label,
    }
    if flips and sample.flip is not None:
        row["latents_flip"] = sample.flip.astype(dtype, copy=False).tobytes()
    return row


def _schema(about: About, dtype: str, *, flips: bool) -> Any:
    pa = _pyarrow()
    fields = [
        ("key", pa.string()),
        ("latents", pa.binary()),
        ("shape", pa.list_(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption", pa.string()),
        ("label", pa.int64()),
    ]
    fields += [("latents_flip", pa.binary())] * flips
    metadata = {
        "weights": about.weights,
        "weights_sha256": about.weights_sha256,
        "normalize": about.normalize,
        "dtype": dtype,
    }
    return pa.schema(fields, metadata=metadata)


def _writer(folder: Path, number: int, schema: Any) -> Any:
    from pyarrow import parquet

    path = folder / f"latents-{number:05}.parquet"
    return parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False)


def _flush(writer: Any, rows: list[dict[str, Any]], schema: Any) -> None:
    writer.write_table(_pyarrow().Table.from_pylist(rows, schema=schema))
    rows.clear()


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise StaeError("Parquet needs pyarrow", "run `pip install 'stae[parquet]'`") from error
    return pyarrow
