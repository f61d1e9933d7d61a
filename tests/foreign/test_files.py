"""Files of other programs that are damaged anywhere: an error of ours, or some numbers."""

import io

import numpy as np
import pytest
import torch
from safetensors.torch import save

from stae_cli.errors import InputError
from stae_cli.foreign.files import arrays_in, is_statistics
from stae_cli.foreign.listing import named
from stae_cli.storage.entry import FileEntry

LATENTS = torch.arange(2 * 16 * 3 * 5).reshape(2, 16, 3, 5) / 480


def written(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


FILES = {
    "a.npy": written(lambda file: np.save(file, LATENTS.numpy())),
    "fortran.npy": written(lambda file: np.save(file, np.asfortranarray(LATENTS.numpy()))),
    "a.npz": written(lambda file: np.savez(file, a=LATENTS.numpy(), b=LATENTS[0].numpy())),
    "small.npz": written(lambda file: np.savez_compressed(file, LATENTS.numpy())),
    "a.pt": written(lambda file: torch.save({"a": LATENTS, "b": 2}, file)),
    "old.pt": written(lambda file: torch.save(LATENTS, file, _use_new_zipfile_serialization=False)),
    "a.safetensors": save({"a": LATENTS.bfloat16(), "b": LATENTS}),
}


def read(path):
    """All latents of a file, as the run reads them."""
    arrays = [a for a in arrays_in(FileEntry(path.name, str(path))) if a.problem() is None]
    return [latent.read() for latent in named(arrays)] if arrays else []


@pytest.mark.parametrize("name", FILES)
def test_sound_files_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    first = read(tmp_path / name)[0]
    assert first.dtype == np.float32
    assert np.abs(first - LATENTS[0].numpy()).max() <= 0.004  # bfloat16


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_raise_errors_of_ours(tmp_path, name):
    whole, random = FILES[name], np.random.default_rng(len(name))
    path = tmp_path / name
    for _ in range(150):
        data = bytearray(whole)
        if random.random() < 0.3:
            del data[int(random.integers(len(data))) :]
        structure = (int(random.integers(min(400, len(data) + 1))), len(data) - 1)
        for at in (*structure[: int(random.integers(1, 3))],):
            if 0 <= at < len(data):
                data[at] = int(random.integers(256))
        path.write_bytes(data)
        try:
            read(path)
        except InputError as error:
            assert error.message  # noqa: PT017


def test_statistics_are_known(tmp_path):
    torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, tmp_path / "s.pt")
    torch.save({"mean": torch.zeros(1, 4, 2, 2), "std": torch.ones(1, 4, 2, 2)}, tmp_path / "z.pt")
    found = [arrays_in(FileEntry(name, str(tmp_path / name))) for name in ("s.pt", "z.pt")]
    assert [is_statistics(arrays) for arrays in found] == [True, False]
