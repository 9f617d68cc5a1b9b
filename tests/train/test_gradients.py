"""The two ways to add up gradients, on one process; for several ranks see tests/run/test_world.py."""

import pytest
import torch
from torch import nn

from refimpl.run.world import World
from refimpl.train.gradients import make_gradients
from refimpl.train.setup.trainable import Part
from refimpl.train.sharding.ordered_sum import OrderedSum
from tests.train import runs

CPU = torch.device("cpu")


def test_gradients_are_added_in_order() -> None:
    """1 + 1e8 − 1e8 is 0 in float32, 1e8 − 1e8 + 1 is 1."""
    for gradients, total in (([1.0, 1e8, -1e8], 0.0), ([1e8, -1e8, 1.0], 1.0)):
        running = OrderedSum(ranks=1, nodes=1)
        for gradient in gradients:
            running.add(torch.tensor([gradient]), real=1)
        assert running.take().item() == total


@pytest.mark.parametrize("reduction", ["fast", "ordered"])
def test_micro_batches_add_up(reduction: str) -> None:
    network = nn.Linear(1, 1, bias=False)
    gradients = make_gradients(reduction, network, [Part("unet", network, 0.0)], runs.ALONE)
    for step in range(2):  # totals begin anew with every step
        for k, x in enumerate((1.0, 2.0, 4.0)):
            with gradients.micro_batch(is_last=k == 2, real=1):
                gradients.backward(gradients.network(torch.tensor([[x]])).sum())
        gradients.finish()
        assert network.weight.grad is not None
        assert network.weight.grad.item() == 7.0, step
        network.weight.grad = None


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["fast", "ordered"])
def test_the_incoming_gradient_is_foretold_to_the_bit(reduction: str, size: int) -> None:
    """What autograd sends through the sum, the division and, where DDP will take a mean, the product."""
    network = nn.Linear(1, 1)
    unet, world = nn.Linear(1, 1), World(0, size, CPU)
    gradients = make_gradients(reduction, unet, [Part("tower", network, 0.0)], world)
    for images in (16, 7, 3, *(number / 10 for number in range(10, 400))):
        losses = torch.ones(5, requires_grad=True)
        total = losses.sum() / images
        (total * size if reduction == "fast" else total).backward()
        assert losses.grad is not None
        assert losses.grad.tolist() == [gradients.incoming(images)] * 5


def test_an_unknown_reduction_is_no_default() -> None:
    with pytest.raises(KeyError):
        make_gradients("mean", nn.Linear(1, 1), [], runs.ALONE)
