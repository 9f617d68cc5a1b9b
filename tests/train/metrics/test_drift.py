"""The distance between weights and their moving average."""

import pytest
import torch
from torch import nn

from refimpl.run.ema import ema_start
from refimpl.run.world import World
from refimpl.train.metrics.drift import ema_drift
from refimpl.train.setup.trainable import Part
from refimpl.train.sharding.kinds import Replicated
from tests.tolerances import FLOAT32_ROUNDING

ALONE = World(0, 1, torch.device("cpu"))


def test_it_is_relative_and_over_everything_that_is_trained() -> None:
    network = nn.Linear(2, 2)
    part = Part("unet", network, 0.0)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.bias.fill_(4.0)
    averages = {"unet": ema_start(part)}
    assert ema_drift([part], averages, Replicated(), ALONE) == 0
    averages["unet"]["weight"] += torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    averages["unet"]["bias"] -= 1.0
    wanted = (4.0 / (4 * 9.0 + 2 * 16.0)) ** 0.5
    drift = ema_drift([part, Part("elsewhere", nn.Linear(1, 1), 0.0)], averages, Replicated(), ALONE)
    assert float(drift) == pytest.approx(wanted, rel=FLOAT32_ROUNDING)  # pyright: ignore
    network.bias.requires_grad_(False)
    drift = ema_drift([part], averages, Replicated(), ALONE)
    assert float(drift) == pytest.approx((2.0 / 36.0) ** 0.5, rel=FLOAT32_ROUNDING)  # pyright: ignore
