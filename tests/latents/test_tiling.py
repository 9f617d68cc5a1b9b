"""Tiles cover the picture, overlap, and blend without a seam."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.latents.tiling import tile_starts, tiled
from tests.strategies import latents
from tests.tolerances import FLOAT64_ROUNDING


@given(st.integers(1, 300), st.integers(2, 64), st.data())
def test_tiles_are_whole_and_overlap_enough(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    if length <= tile:
        assert starts == [0]
        return
    assert starts[0] == 0
    assert starts[-1] + tile == length
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))
    fewest = 1 + -(-(length - tile) // (tile - overlap))
    assert len(starts) == fewest


@settings(max_examples=30)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(2, 9), st.data())
def test_a_function_of_each_cell_alone_is_unchanged(
    height: int, width: int, tile: int, data: st.DataObject
) -> None:
    x = data.draw(latents((2, 3, 2 * height, 2 * width)))
    overlap = data.draw(st.integers(0, tile - 1))
    out = tiled(lambda part: F.max_pool2d(part, 2), x, tile, overlap, 2, 1)
    expected = F.max_pool2d(x, 2)
    assert (out - expected).abs().max() <= FLOAT64_ROUNDING * max(expected.abs().max().item(), 1)
    back = tiled(
        lambda part: part.repeat_interleave(3, 2).repeat_interleave(3, 3), expected, tile, overlap, 1, 3
    )
    exact = expected.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert (back - exact).abs().max() <= FLOAT64_ROUNDING * max(exact.abs().max().item(), 1)


def test_neighbours_fade_into_each_other() -> None:
    calls = iter(range(100))
    x = torch.zeros(1, 1, 8, 20)
    out = tiled(lambda part: torch.full_like(part, float(next(calls))), x, 8, 4, 1, 1)
    fade = torch.tensor([0.125, 0.375, 0.625, 0.875])
    alone = torch.zeros(4)
    expected = torch.cat([alone, fade, 1 + fade, 2 + fade, 3 + alone])  # tiles 0 to 3 begin at 0, 4, 8, 12
    assert torch.equal(out, expected.expand(1, 1, 8, 20))


@pytest.mark.parametrize(("height", "width"), [(5, 7), (7, 7), (1, 1)])
def test_one_tile_is_the_function_itself(height: int, width: int) -> None:
    x = torch.randn(1, 2, height, width)
    assert torch.equal(tiled(torch.sin, x, 7, 3, 1, 1), torch.sin(x))


def test_no_call_sees_more_than_a_tile() -> None:
    seen = []

    def function(part: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(part.shape[2:]))
        return part

    tiled(function, torch.zeros(1, 1, 50, 9), 12, 3, 1, 1)
    assert set(seen) == {(12, 9)}
