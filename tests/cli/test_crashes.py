"""Encodes that are killed without a chance to clean up, and two processes at the same work."""

import os

import pytest

from tests.killing import LAYOUTS, Killing

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")


@pytest.fixture(scope="module")
def killing(launcher, tiny, tmp_path_factory):
    return Killing(tmp_path_factory.mktemp("killing"), launcher, tiny, count=500)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rerun_after_kills_completes_what_was_begun(killing, layout, ranks):
    outcome = killing.outcome(layout, ranks=ranks, kills=1, seed=1)
    assert outcome.last_code == 0
    assert outcome.undisturbed
    assert outcome.redone == []
    assert outcome.temporaries == []


@pytest.mark.parametrize("layout", ["files", "shards"])
def test_two_processes_at_once_leave_a_valid_result(killing, layout):
    codes, undisturbed = killing.together(layout)
    assert codes == [0, 0]
    assert undisturbed
