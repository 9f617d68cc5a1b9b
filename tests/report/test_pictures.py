"""Grids of images: every image is above its caption, whatever the sizes and the captions."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refimpl.errors import InputError
from refimpl.report.pictures import GAP, GRID_WIDTH, _font, above, png, sample_grid, wrap


def flat(colour, height=16, width=16) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_images_are_in_reading_order_and_enlarged_by_a_whole_factor():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    grid = sample_grid(np.stack([flat(colour) for colour in colours]), ["a", "b", "c"], columns=2)
    side = 160
    assert grid.width == 2 * (side + GAP) + GAP
    first_row, row_height = GAP, (grid.height - GAP) // 2
    at = [(GAP, first_row), (2 * GAP + side, first_row), (GAP, first_row + row_height)]
    for (left, top), colour in zip(at, colours, strict=True):
        cell = np.asarray(grid)[top : top + side, left : left + side]
        assert (cell == colour).all()


def test_a_tensor_and_images_of_several_sizes_are_read():
    sample_grid(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), ["a", "b"])
    grid = sample_grid([flat(0, 32, 128), flat(200, 128, 32)], ["wide", "tall"])
    assert grid.width <= GRID_WIDTH


def test_rows_are_evenly_filled():
    one_row = sample_grid([flat(0)] * 5, ["x"] * 5)
    two_rows = sample_grid([flat(0)] * 8, ["x"] * 8)
    assert one_row.width > two_rows.width  # five in a row against four and four
    assert two_rows.width == 4 * (160 + GAP) + GAP


def test_the_caption_is_below_its_image():
    grid = np.asarray(sample_grid([flat(255)], ["WWW"]).convert("L"))
    assert (grid[GAP + 161 :] < 100).any()
    assert not (grid[GAP : GAP + 160, GAP : GAP + 160] < 100).any()


@settings(max_examples=40)
@given(st.text(max_size=60), st.sampled_from([20.0, 64.0, 160.0]), st.integers(1, 3))
def test_wrapped_lines_fit_and_lose_nothing_silently(text, width, lines):
    font = _font()
    wrapped = wrap(text, width, font, lines)
    assert 1 <= len(wrapped) <= lines
    assert all(font.getlength(line) <= width for line in wrapped)
    assert " ".join(wrapped) == " ".join(text.split()) or any(line.endswith("…") for line in wrapped)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(InputError, match=r"images must be uint8 \[H, W, 3\], got"):
        sample_grid([image], ["x"])


@pytest.mark.parametrize(("count", "labels"), [(0, []), (2, ["a"]), (1, ["a", "b"])])
def test_one_label_for_each_image(count, labels):
    with pytest.raises(InputError, match="one label for each image"):
        sample_grid([flat(0)] * count, labels)


def test_above_puts_the_first_on_top():
    both = above(flat(10), flat(20))
    assert both.shape == (34, 16, 3)
    assert (both[:16] == 10).all()
    assert (both[18:] == 20).all()
    with pytest.raises(InputError, match="differ in size"):
        above(flat(0), flat(0, 8, 8))


def test_png_is_read_back_unchanged():
    picture = sample_grid([flat(7)], ["x"])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), np.asarray(picture))
