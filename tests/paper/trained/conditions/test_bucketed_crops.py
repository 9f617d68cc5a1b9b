"""Centre crops cut crowns and buckets keep them; the arms see as many pictures by the project's own plan."""

import numpy as np
import pytest
import torch

from refimpl.data.crop import SizeInts
from refimpl.paper.trained.conditions.bucketed_crops import (
    BUCKETS,
    CROWN,
    SIDE,
    SQUARE,
    TALL,
    WHOLE_SHARE,
    crown_cut,
    crown_share,
    figures,
    visited,
)
from refimpl.paper.trained.small_training import SmallRun
from refimpl.run.visit_draws import CentreDraws

RUN = SmallRun(side=SIDE, steps=40, batch=4)


def test_buckets_hold_the_area_of_the_square():
    assert all(width * height <= SIDE * SIDE for width, height in BUCKETS)
    width, height = BUCKETS[TALL]
    assert height / width == pytest.approx(2, rel=0.25)


def test_a_crown_is_whole_until_the_crop_cuts_its_rows():
    whole = SizeInts(200, 100, 0, 0, 32, 32)  # scaled to 64 px of height
    assert crown_cut(whole) == 0
    assert crown_cut(whole._replace(crop_top=int(CROWN * 64 / 2))) == pytest.approx(0.5, abs=0.1)
    assert crown_cut(whole._replace(crop_top=16)) == 1


def test_centre_crops_cut_what_buckets_keep():
    whole = figures(96, 0)
    centred = visited(whole, SQUARE, CentreDraws(), RUN)
    bucketed = visited(whole, BUCKETS, np.random.default_rng(0), RUN)
    assert centred.crown_cut > 0.5
    assert bucketed.crown_cut < 0.2
    for crops, buckets in ((centred, SQUARE), (bucketed, BUCKETS)):
        assert len(crops.order) == RUN.steps
        assert all(len(rows) == RUN.batch for _, rows in crops.order)
        for number, (images, captions, sizes) in enumerate(
            zip(crops.images, crops.captions, crops.sizes, strict=True)
        ):
            height, width = images.shape[2:]
            assert (width, height) in buckets
            assert sizes[:, 4:].tolist() == [[height, width]] * len(images)
            used = torch.cat([rows for bucket, rows in crops.order if bucket == number])
            assert used.unique().tolist() == list(range(len(images))) == list(range(len(captions)))


def test_the_crown_of_a_whole_figure_has_its_share():
    for picture, caption in figures(6, 1):
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        share = crown_share(image, caption.split()[-1])
        assert share.item() == pytest.approx(WHOLE_SHARE, abs=0.03)
        assert crown_share(image[:, :, picture.height // 2 :], caption.split()[-1]) == 0
