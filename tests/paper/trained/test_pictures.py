"""The pictures that small networks learn."""

import pytest
import torch

from refimpl.paper.trained.pictures import NAMES, colour_value, flat_caption, pictures


def test_a_larger_set_begins_with_the_smaller_one():
    few, some = pictures(6, 16, 3), pictures(14, 16, 3)
    assert torch.equal(few[0], some[0][:6])
    assert few[1] == some[1][:6]
    assert not torch.equal(few[0], pictures(6, 16, 4)[0])


def test_flat_pictures_are_of_the_colour_that_they_say():
    images, captions = pictures(24, 8, 0)
    for name in NAMES:
        flat = images[captions.index(flat_caption(name))]
        assert torch.equal(flat, colour_value(name)[:, None, None].expand(3, 8, 8))


@pytest.mark.parametrize("side", [8, 16])
def test_shapes_are_large_and_inside_on_the_background_named(side):
    images, captions = pictures(40, side, 1)
    for image, caption in zip(images, captions, strict=True):
        if caption.startswith("completely"):
            continue
        shape, background = caption.split(", ")
        behind = colour_value(background.split()[0])[:, None, None]
        assert image.shape == (3, side, side)
        is_background = (image == behind).all(0)
        assert 0.05 < 1 - is_background.double().mean() < 0.85
        corners = is_background[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.sum() >= 2
        inside = (image - colour_value(shape.split()[0])[:, None, None]).abs().amax(0) < 0.02
        assert inside.any()
