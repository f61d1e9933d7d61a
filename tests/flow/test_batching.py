"""Batching: nothing is lost, order is kept, the budget holds."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stae_cli.flow.batching import pack

sizes = st.lists(st.integers(1, 50))
LIMIT = 40


@given(sizes)
def test_packs_keep_order_and_budget(items):
    packs = list(pack(items, patches=lambda size: size, limit=LIMIT))
    assert [size for members in packs for size in members] == items
    assert all(sum(members) <= LIMIT or len(members) == 1 for members in packs)
    # No two neighbours would have fitted together.
    assert all(sum(a) + b[0] > LIMIT for a, b in pairwise(packs))


def test_nothing_gives_nothing():
    assert list(pack([], patches=lambda _: 1, limit=1)) == []
