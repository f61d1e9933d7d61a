"""Photos and latents of commands that only read them; other tests have their own."""

import pytest

from tests.pictures import write_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture
def latents(stae, photos, tiny, tmp_path):
    assert stae("encode", photos, tmp_path / "latents", "--weights", tiny).code == 0
    return tmp_path / "latents"
