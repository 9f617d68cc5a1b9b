"""Boards of every original size, told as they were made, hold the detail of their originals."""

import torch

from refimpl.paper.trained.conditions.size_conditioning import ORIGINALS, SIDE, boards, detail


def test_boards_are_told_their_original_size_and_hold_its_detail():
    images, captions, sizes = boards(48, 0)
    assert images.shape == (48, 3, SIDE, SIDE)
    assert {tuple(each) for each in sizes.tolist()} == {(side, side, 0, 0, SIDE, SIDE) for side in ORIGINALS}
    least, middle, most = (detail(images[sizes[:, 0] == side] / 2 + 0.5) for side in ORIGINALS)
    assert least < middle / 2
    assert middle < most * 1.2
    assert all(caption.endswith(" chequerboard") for caption in captions)
    assert torch.equal(boards(48, 0)[0], images)
    assert not torch.equal(boards(48, 1)[0], images)


def test_detail_is_the_mean_difference_of_neighbours():
    image = torch.zeros(1, 3, 4, 4)
    assert detail(image) == 0
    image[..., ::2] = 1
    assert detail(image) == 0.5
