"""The patch discriminator and its hinge losses."""

import pytest
import torch

from refimpl.autoencoder.patch_discriminator import (
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    make_discriminator,
)
from tests.tolerances import FLOAT32_ROUNDING


def receptive_field(network: PatchDiscriminator, side: int) -> int:
    """Rows of the image on which the middle patch's output depends, with the group norms removed."""
    plain = torch.nn.Sequential(*[m for m in network.layers if not isinstance(m, torch.nn.GroupNorm)])
    x = torch.zeros(1, 3, side, side, requires_grad=True)
    judgement = plain(x)
    middle = judgement.shape[2] // 2
    judgement[0, 0, middle, middle].backward()
    assert x.grad is not None
    return int((x.grad.abs().sum(dim=(0, 1, 3)) > 0).sum())


def test_a_patch_is_70_pixels() -> None:
    assert receptive_field(make_discriminator(0, channels=8), 160) == 70


def test_a_picture_is_judged_alone_and_by_the_seed() -> None:
    images = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = torch.get_rng_state()
    network, again, other = (make_discriminator(seed, channels=8) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    together = network(images)
    assert together.shape == (3, 1, 2, 3)
    assert torch.equal(together, again(images))
    assert not torch.equal(together, other(images))
    alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(together, alone, rtol=0, atol=FLOAT32_ROUNDING)


def test_the_smallest_picture_leaves_one_patch() -> None:
    network = make_discriminator(0, channels=8)
    side = network.smallest_side
    assert network(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, side - 8, side - 8))


def test_hinge_losses_by_hand() -> None:
    real, restored = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert discriminator_loss(real, restored).item() == pytest.approx(0.5 * (0.25 + 0.5))
    assert generator_loss(restored).item() == pytest.approx(1.0)
