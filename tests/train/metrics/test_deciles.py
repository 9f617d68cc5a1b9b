"""The loss by tenths of the timesteps."""

import math

import pytest
import torch

from refimpl.run.world import World
from refimpl.train.metrics.deciles import TimestepLosses
from tests.train import runs


def test_each_tenth_has_the_mean_of_its_images() -> None:
    losses = TimestepLosses(1000)
    losses.add(torch.tensor([0, 99, 100, 999]), torch.tensor([1.0, 2.0, 4.0, 8.0]))
    losses.add(torch.tensor([50, 900]), torch.tensor([3.0, 6.0], requires_grad=True))
    assert losses.take(runs.ALONE) == [2.0, 4.0, *[None] * 7, 7.0]
    assert losses.take(runs.ALONE) == [None] * 10  # begins anew


@pytest.mark.parametrize("timesteps", [10, 7, 1000, 1001])
def test_every_timestep_has_a_tenth(timesteps: int) -> None:
    losses = TimestepLosses(timesteps)
    t = torch.arange(timesteps)
    losses.add(t, torch.ones(timesteps))
    assert losses._sums is not None
    counts = losses._sums[1].tolist()
    assert sum(counts) == timesteps
    assert max(counts) - min(counts) <= 1


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    losses = TimestepLosses(1000)
    losses.add(torch.tensor([0, 1, 200, 300]), torch.tensor([1.0, math.nan, math.inf, -math.inf]))
    assert losses.take(runs.ALONE) == [1.0, *[None] * 9]


def test_all_ranks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, world = TimestepLosses(1000), World(1, 2, torch.device("cpu"))
    other = TimestepLosses(1000)
    other.add(torch.tensor([0, 500]), torch.tensor([3.0, 5.0]))
    losses.add(torch.tensor([0]), torch.tensor([1.0]))
    monkeypatch.setattr(World, "sum", lambda self, value: value + other._sums)
    assert losses.take(world) == [2.0, *[None] * 4, 5.0, *[None] * 4]


def test_adding_waits_for_nothing_and_changes_nothing_else() -> None:
    """On a device without data, where a value that is asked for is an error."""
    meta = torch.device("meta")
    losses = TimestepLosses(1000)
    losses.add(torch.zeros(4, dtype=torch.long, device=meta), torch.ones(4, device=meta))
