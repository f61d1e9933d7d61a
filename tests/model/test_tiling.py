"""Tiling: every position of every latent once, each with its whole neighbourhood."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stae_cli.model.tiling import pieces


@given(
    batch=st.integers(1, 5),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    limit=st.integers(1, 3000),
    halo=st.sampled_from([(2, 1), (4, 4)]),
)
def test_everything_once_with_its_neighbours(batch, height, width, limit, halo):
    reach, alignment = halo
    covered = np.zeros((batch, height, width), int)
    for piece in pieces(batch, height, width, limit=limit, halo=reach, alignment=alignment):
        rows, columns = piece.rows, piece.columns
        covered[piece.images, rows.target(1), columns.target(1)] += 1
        for span, length in ((rows, height), (columns, width)):
            assert span.seen_start == max(0, span.start - reach)
            assert span.seen_stop == min(length, span.stop + reach)
            assert span.seen_start % alignment == 0
            seen = np.arange(length)[span.seen]
            assert (seen[span.inner(1)] == np.arange(length)[span.target(1)]).all()
    assert (covered == 1).all()


@given(height=st.integers(1, 400), width=st.integers(1, 400), limit=st.integers(400, 9000))
def test_no_piece_exceeds_the_limit(height, width, limit):
    for piece in pieces(7, height, width, limit=limit, halo=4, alignment=4):
        images = piece.images.stop - piece.images.start
        rows, columns = (len(range(10**6)[span.seen]) for span in (piece.rows, piece.columns))
        assert images * rows * columns <= limit


def test_pixels_are_patches_times_their_size():
    (piece,) = pieces(1, 3, 2, limit=6, halo=2, alignment=1)
    assert piece.rows.target(8) == slice(0, 24)
    assert piece.columns.inner(8) == slice(0, 16)
