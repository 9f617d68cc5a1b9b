"""Photographs as canvases."""

import numpy as np
import pytest
from PIL import Image

from refimpl.paper.computed.photographs import HEIGHT, WIDTH, canvas, canvases, cells, luma_canvases
from tests.tolerances import FLOAT64_ROUNDING


def test_cells_are_averages_and_leave_out_what_fills_none():
    pixels = np.arange(3 * 17 * 26, dtype=np.uint8).reshape(17, 26, 3)
    got = cells(Image.fromarray(pixels))
    assert got.shape == (3, 2, 3)
    assert got[1, 1, 2] == pytest.approx(pixels[8:16, 16:24, 1].mean() / 255, rel=FLOAT64_ROUNDING)


@pytest.mark.parametrize(("size", "shape"), [((900, 600), (3, 104, 152)), ((600, 900), (3, 152, 104))])
def test_a_canvas_is_turned_as_its_image(size, shape):
    assert canvas(Image.new("RGB", size)).shape == shape


def test_the_middle_of_an_image_is_kept():
    wide = Image.new("RGB", (300, 100), (255, 0, 0))
    wide.paste((0, 255, 0), (100, 0, 200, 100))
    got = canvas(wide, 64, 64)
    assert got[1].min() > 0.9  # green
    assert got[0].max() < 0.1


def test_luma_is_standardised_over_all_of_them():
    luma = luma_canvases()
    assert len(luma) == len(canvases()) == 13
    assert {each.size for each in luma} == {WIDTH * HEIGHT // 64}
    together = np.concatenate([each.ravel() for each in luma])
    assert together.mean() == pytest.approx(0, abs=FLOAT64_ROUNDING)
    assert together.var() == pytest.approx(1, rel=FLOAT64_ROUNDING)
