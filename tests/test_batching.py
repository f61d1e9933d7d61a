"""Batching: nothing is lost, order is kept where promised, the budget holds."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stae_cli.batching import group, pack

sizes = st.lists(st.integers(1, 50))
LIMIT = 40


@given(sizes)
def test_packs_keep_order_and_budget(items):
    packs = list(pack(items, patches=lambda size: size, limit=LIMIT))
    assert [size for members in packs for size in members] == items
    assert all(sum(members) <= LIMIT or len(members) == 1 for members in packs)
    # No two neighbours would have fitted together.
    assert all(sum(a) + b[0] > LIMIT for a, b in pairwise(packs))


@given(sizes)
def test_groups_hold_one_shape_and_lose_nothing(items):
    groups = list(group(items, shape=lambda s: s % 7, patches=lambda s: s, limit=LIMIT))
    assert sorted(s for members in groups for s in members) == sorted(items)
    assert all(len({s % 7 for s in members}) == 1 for members in groups)
    assert all(sum(members) <= LIMIT or len(members) == 1 for members in groups)


@given(sizes)
def test_what_waits_for_company_is_bounded(items):
    drawn, given_out = 0, 0

    def draw():
        nonlocal drawn
        for size in items:
            drawn += size
            yield size

    for members in group(draw(), shape=lambda s: s, patches=lambda s: s, limit=LIMIT):
        assert drawn - given_out <= 2 * LIMIT + 50
        given_out += sum(members)


@pytest.mark.parametrize("batch", [pack, group])
def test_nothing_gives_nothing(batch):
    extra = {"shape": lambda _: 0} if batch is group else {}
    assert list(batch([], patches=lambda _: 1, limit=1, **extra)) == []
