"""Crops say where they were taken, and a shape's place and whether it is cut are read off a picture."""

import pytest
import torch

from refimpl.data.demo.drawings import COLOURS
from refimpl.paper.trained.conditions import crop_conditioning
from refimpl.paper.trained.conditions.crop_conditioning import (
    ENDS,
    FOLLOWED,
    LEFTS,
    MEASURE,
    RADIUS,
    SIDE,
    UNTOLD,
    asked,
    cropped,
    shape_place,
    untold,
)


def test_what_is_asked_for_is_among_what_is_told():
    crops = cropped(200, 0)
    told = crops.sizes
    assert told[:, 3].min() == asked(LEFTS[0]).crop_left
    assert told[:, 3].max() == asked(LEFTS[-1]).crop_left
    told[:, 3] = asked(0).crop_left
    assert {tuple(each) for each in told.tolist()} == {tuple(asked(0))}


def test_a_shape_stands_where_its_crop_has_it():
    crops = cropped(60, 1)
    seen = set()
    for image, caption, ints in zip(crops.images, crops.captions, crops.sizes.tolist(), strict=True):
        shape, background = caption.split(", ")
        centre, cut = shape_place(image[None] / 2 + 0.5, shape.split()[0], background.split()[0])
        off_centre = abs(ints[3] - SIDE / 2)
        if off_centre < SIDE / 2 - RADIUS[1] - 1:
            assert cut == 0
            assert centre == pytest.approx(SIDE - ints[3] - 0.5, abs=0.3)
        elif off_centre > SIDE / 2 - RADIUS[0] + 1:
            assert cut == 1
        seen.add(cut)
    assert seen == {0, 1}


def test_without_the_condition_only_the_crop_is_not_told():
    sizes = cropped(20, 0).sizes
    told = untold(sizes)
    assert not told[:, 2:4].any()
    assert torch.equal(told[:, :2], sizes[:, :2])
    assert torch.equal(told[:, 4:], sizes[:, 4:])
    assert sizes[:, 3].any()


def test_a_picture_without_its_shape_counts_as_cut():
    image = (torch.tensor(COLOURS["white"]) / 255)[None, :, None, None].expand(1, 3, 4, 4)
    assert shape_place(image, "red", "white") == (1.5, 1.0)


def test_effects_are_positive_where_the_shape_follows(monkeypatch, tmp_path):
    def drawn(seed, sizes, crops, size, folder):
        if not sizes[:, 3].any():
            return 8.0, 0.75
        return dict(zip(LEFTS, ((14.0, 1.0), (8.0, 0.25), (2.0, 0.5)), strict=True))[size.crop_left]

    monkeypatch.setattr(crop_conditioning, "_drawn", drawn)
    found = crop_conditioning.of_seed(0, tmp_path)[MEASURE]
    assert found[FOLLOWED] == pytest.approx(12 / 16)
    assert found[ENDS] == pytest.approx(0.5)
    assert found[UNTOLD] == pytest.approx(0.5)
