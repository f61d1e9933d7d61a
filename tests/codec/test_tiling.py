"""Tiling: every position of every latent once, each with its whole neighbourhood."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stae_cli.codec.tiling import rounds

sizes = st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=6)


@given(sizes=sizes, limit=st.integers(1, 3000), halo=st.sampled_from([(2, 1), (4, 4)]))
def test_everything_once_with_its_neighbours(sizes, limit, halo):
    reach, alignment = halo
    covered = [np.zeros(size, int) for size in sizes]
    for pieces in rounds(sizes, limit=limit, halo=reach, alignment=alignment):
        for piece in pieces:
            covered[piece.index][piece.rows.target(1), piece.columns.target(1)] += 1
            for span, length in zip((piece.rows, piece.columns), sizes[piece.index], strict=True):
                assert span.seen_start == max(0, span.start - reach)
                assert span.seen_stop == min(length, span.stop + reach)
                assert span.seen_start % alignment == 0
                seen = np.arange(length)[span.seen]
                assert (seen[span.inner(1)] == np.arange(length)[span.target(1)]).all()
    assert all((one == 1).all() for one in covered)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=6),
    limit=st.integers(400, 9000),
)
def test_no_round_exceeds_the_limit(sizes, limit):
    for pieces in rounds(sizes, limit=limit, halo=4, alignment=4):
        assert sum(piece.seen[0] * piece.seen[1] for piece in pieces) <= limit
        shapes = [piece.seen for piece in pieces]
        assert shapes == sorted(shapes)  # equal ones are neighbours


def test_small_latents_are_decoded_together_and_large_ones_are_cut():
    sizes = [(3, 2), (7, 8), (3, 2), (60, 10)]
    together, *cut = rounds(sizes, limit=99, halo=2, alignment=1)
    assert [piece.index for piece in together] == [0, 2, 1]
    tiles = [piece for pieces in cut for piece in pieces]
    assert {piece.index for piece in tiles} == {3}
    assert len(tiles) > 6


def test_pixels_are_patches_times_their_size():
    ((piece,),) = rounds([(3, 2)], limit=6, halo=2, alignment=1)
    assert piece.rows.target(8) == slice(0, 24)
    assert piece.columns.inner(8) == slice(0, 16)
