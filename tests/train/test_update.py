"""Clip, AdamW and moving average, each against its definition on one weight."""

import math

import pytest
import torch
from torch import nn

from refimpl.errors import InputError
from refimpl.run.adamw import OptimizerConfig, make_adamw
from refimpl.run.ema import ema_decay, ema_start
from refimpl.train.setup.trainable import Averages, Part
from refimpl.train.update import update
from tests.tolerances import FLOAT32_ROUNDING

RATE = 0.1


def one_weight(gradient: float) -> tuple[nn.Linear, list[Part], torch.optim.AdamW]:
    """A network of weight 1, its gradient, and AdamW without weight decay."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    parts = [Part("unet", network, RATE)]
    optimizer = make_adamw(
        [(RATE, parts[0].parameters().values())], OptimizerConfig(learning_rate=RATE, weight_decay=0.0)
    )
    for group in optimizer.param_groups:
        group["lr"] = RATE
    network.weight.grad = torch.full((1, 1), gradient)
    return network, parts, optimizer


def test_the_first_step_is_the_rate_whatever_the_gradient() -> None:
    """AdamW's first step: m / √v = sign of the gradient (Loshchilov & Hutter 2019, alg. 2)."""
    for gradient in (0.5, -300.0):
        network, parts, optimizer = one_weight(gradient)
        norm = update(optimizer, parts, {}, 1.0, 0.9, 1, 0, ["a"])
        assert norm.item() == abs(gradient)  # before clipping
        assert network.weight.item() == pytest.approx(1 - math.copysign(RATE, gradient), rel=FLOAT32_ROUNDING)
        assert network.weight.grad is None


@pytest.mark.parametrize(("clip_norm", "kept"), [(1.0, 1.0), (8.0, 4.0), (0.0, 4.0)])
def test_a_gradient_is_clipped_to_the_norm(clip_norm: float, kept: float) -> None:
    network, parts, optimizer = one_weight(4.0)
    update(optimizer, parts, {}, clip_norm, 0.9, 1, 0, ["a"])
    moment = optimizer.state[network.weight]["exp_avg"].item()
    assert moment == pytest.approx(
        (1 - optimizer.param_groups[0]["betas"][0]) * kept, rel=FLOAT32_ROUNDING * 10
    )


@pytest.mark.parametrize("gradient", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_changes_nothing(gradient: float) -> None:
    network, parts, optimizer = one_weight(gradient)
    averages: Averages = {"unet": ema_start(network)}
    with pytest.raises(InputError, match=r"step 7, rank 3: the gradient is not finite.*images a, b"):
        update(optimizer, parts, averages, 1.0, 0.9, 7, 3, ["a", "b"])
    assert network.weight.item() == 1
    assert averages["unet"]["weight"].item() == 1


def test_the_average_follows_where_there_is_one() -> None:
    network, parts, optimizer = one_weight(1.0)
    averages: Averages = {"unet": ema_start(network)}
    update(optimizer, parts, averages, 1.0, 0.9, 4, 0, ["a"])
    kept = ema_decay(4, 0.9)
    expected = kept * 1 + (1 - kept) * network.weight.item()
    assert averages["unet"]["weight"].item() == pytest.approx(expected, rel=FLOAT32_ROUNDING)
