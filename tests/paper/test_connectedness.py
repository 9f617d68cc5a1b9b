"""Whether a shape is in one piece."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.paper.connectedness import connectedness, largest_piece
from tests.tolerances import FLOAT64_ROUNDING


def image(rows: list[str], colour=(1.0, 0.0, 0.0), background=(0.0, 0.0, 1.0)) -> torch.Tensor:
    mask = torch.tensor([[cell == "#" for cell in row] for row in rows])
    return torch.where(mask, torch.tensor(colour)[:, None, None], torch.tensor(background)[:, None, None])


WHOLE = ["......", ".####.", ".#..#.", ".####.", "......"]
PARTED = ["......", ".##.#.", ".##...", "....#.", "......"]


def test_pieces_by_hand():
    assert connectedness(torch.stack([image(WHOLE), image(PARTED)])).tolist() == [1.0, pytest.approx(4 / 6)]
    assert largest_piece(torch.ones(3, 5, dtype=torch.bool)) == 15


def test_corners_do_not_join():
    assert connectedness(image(["....", ".#..", "..#.", "...."])[None]).tolist() == [0.5]


def test_the_shape_is_what_leaves_the_border_free_whichever_is_brighter():
    dark = image(PARTED, colour=(0.0, 0.0, 0.1), background=(1.0, 1.0, 0.9))
    assert connectedness(dark[None]).item() == pytest.approx(4 / 6, rel=FLOAT64_ROUNDING)


def test_one_colour_has_no_separate_piece():
    assert connectedness(torch.full((1, 3, 4, 4), 0.3)).tolist() == [1.0]


@given(st.integers(0, 2**20 - 1))
def test_the_largest_piece_is_that_of_a_search(bits):
    mask = torch.tensor([[bool(bits >> (5 * row + column) & 1) for column in range(5)] for row in range(4)])
    if not mask.any():
        return
    left = {(row, column) for row, column in mask.nonzero().tolist()}
    sizes = []
    while left:
        edge, size = [left.pop()], 0
        while edge:
            row, column = edge.pop()
            size += 1
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if near in left:
                    left.remove(near)
                    edge.append(near)
        sizes.append(size)
    assert int(largest_piece(mask)) == max(sizes)
