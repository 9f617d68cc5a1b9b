"""Images as pictures: what is one, and what its file holds."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from refimpl.errors import InputError
from refimpl.report.pictures import above, as_picture, png


def flat(colour, height=16, width=16) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


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
        as_picture(image)


def test_a_tensor_is_a_picture_too():
    assert as_picture(torch.full((8, 6, 3), 9, dtype=torch.uint8)).getpixel((5, 7)) == (9, 9, 9)


def test_above_puts_the_first_on_top():
    both = above(flat(10), flat(20))
    assert both.shape == (34, 16, 3)
    assert (both[:16] == 10).all()
    assert (both[18:] == 20).all()
    with pytest.raises(InputError, match="differ in size"):
        above(flat(0), flat(0, 8, 8))


def test_png_is_read_back_unchanged():
    picture = as_picture(flat(7))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), np.asarray(picture))
