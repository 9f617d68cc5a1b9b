"""Bytes alive after each operation: against arithmetic by hand, and against torch's own account on the CPU."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from refimpl.model.config import Recompute
from refimpl.model.unet import UNet, UNetConfig
from refimpl.train.budget.live_memory import COUNTED_BATCH, Timeline, count_inference, count_training
from tests import strategies
from tests.tolerances import PROFILED_MEMORY

WIDE = 16


def rows(width: int, batch: int = COUNTED_BATCH, device: str = "meta") -> Tensor:
    return torch.zeros(batch, width, device=device)


def on_meta(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).to("meta")


def test_the_batch_is_a_prime_beyond_every_side() -> None:
    assert COUNTED_BATCH > 2**20
    assert all(COUNTED_BATCH % divisor for divisor in range(2, int(COUNTED_BATCH**0.5) + 1))


def test_inference_keeps_only_what_is_used_next() -> None:
    network = on_meta(nn.Linear(8, WIDE, bias=False), nn.GELU(), nn.Linear(WIDE, 4, bias=False))
    timeline = count_inference([network], lambda: network(rows(8)))
    # Floats alive for each image: the input; with the first product; with its GELU; then what that needs no more.
    assert timeline.peak(1) == 4 * (8 + WIDE + WIDE)
    assert set(timeline.constant) == {0}
    assert set(timeline.gradients) == {0}


def test_weights_are_there_anyway_and_their_gradients_are_counted_apart() -> None:
    network = on_meta(nn.Linear(8, WIDE, bias=False), nn.GELU(), nn.Linear(WIDE, 4, bias=False))
    timeline = count_training([network], lambda: network(rows(8)))
    weights = 4 * (8 * WIDE + WIDE * 4)
    assert timeline.gradients[-1] == weights
    assert timeline.constant[-1] == 0
    assert timeline.peak(0) > timeline.peak(0, with_gradients=False)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_frozen_layer_saves_no_input_for_its_weight() -> None:
    def saved(is_trained: bool) -> int:
        network = on_meta(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        network[1].requires_grad_(is_trained)
        network[2].requires_grad_(is_trained)
        return count_training([network], lambda: network(rows(8))).peak(1)

    assert saved(False) < saved(True)


def test_in_place_and_views_take_nothing() -> None:
    network = on_meta(nn.Linear(4, 4))
    timeline = count_inference([network], lambda: rows(4).add_(1).view(-1, 2).t())
    assert timeline.peak(3) == 3 * 4 * 4


def test_one_after_the_other() -> None:
    first, second = Timeline([1], [2], [3]), Timeline([5], [0], [0])
    assert (first + second).peak(1) == 6
    assert (first + second).peak(1, with_gradients=False) == 5
    assert Timeline().peak(7) == 0


def allocated(run) -> int:
    """Most bytes that torch's CPU allocator had given out at once during the run, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    alive = most = 0
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    for event in results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


@pytest.mark.parametrize("batch", [64, 1000])
def test_the_peak_is_what_torch_allocates(batch: int) -> None:
    """An MLP, whose operations need no memory of their own on the CPU."""
    sizes = (32, 256, 64, 8)

    def network(device: str) -> nn.Sequential:
        layers = [(nn.Linear(a, b), nn.GELU()) for a, b in pairwise(sizes)]
        return nn.Sequential(*(layer for pair in layers for layer in pair)).to(device)

    counted = network("meta")
    timeline = count_training([counted], lambda: counted(rows(sizes[0])))
    real = network("cpu")

    def run() -> None:
        real(rows(sizes[0], batch, "cpu")).square().mean().backward()

    assert timeline.peak(batch) == pytest.approx(allocated(run), rel=PROFILED_MEMORY)


@settings(max_examples=6)
@given(
    config=strategies.unet_configs(),
    checkpointing=st.sampled_from(("none", "cheap", "full")),
    batch=st.integers(1, 7),
)
def test_one_count_gives_every_batch(config: UNetConfig, checkpointing: Recompute, batch: int) -> None:
    """The count with a prime stands for a count with the batch itself."""
    with torch.device("meta"):
        unet = UNet(config, checkpointing)

    def run(size: int) -> Tensor:
        x = torch.zeros(size, config.in_channels, 8, 8, device="meta")
        t = torch.zeros(size, dtype=torch.int64, device="meta")
        context = torch.zeros(size, 5, config.context_dim, device="meta")
        return unet(x, t, context, torch.zeros(size, config.vector_dim, device="meta"))

    general = count_training([unet], lambda: run(COUNTED_BATCH))
    special = count_training([unet], lambda: run(batch))
    assert general.peak(batch) == special.peak(0)
    assert general.peak(batch, with_gradients=False) == special.peak(0, with_gradients=False)
