"""Keyed normals of the kernels: the definition within ulps, their statistics, the same bits on CPU and CUDA."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.conformance import Adapter
from refimpl.conformance.checks.noise.keyed import worst_moment
from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.ops import load_ops
from tests.conforming import conforms
from tests.ops import checks
from tests.strategies import keys_of, latent_shapes, offsets
from tests.tolerances import KS_CRITICAL, STANDARD_ERRORS

KERNEL = load_ops("kernel")
DRAWS = 2**26


class ByTheKernel(Adapter):
    """This project's noise, drawn by the compiled kernel."""

    def keyed(self, seed, ids, visit, shape):
        return KERNEL.keyed_normal(draw_key(seed, torch.tensor(ids), visit, Purpose.NOISE), tuple(shape))


@settings(max_examples=60)
@given(data=st.data())
def test_the_definition(device, data):
    batch, *shape = data.draw(latent_shapes())
    key = data.draw(keys_of(batch)).to(device)
    checks.check_keyed_normal(KERNEL, key, tuple(shape), data.draw(offsets()))


@pytest.mark.parametrize(
    "shape", [(4, 128, 128), (4, 104, 152), (3, 65, 33), (9, 1, 1), (1, 1, 1025)], ids=str
)
def test_the_definition_across_tiles(shape, device):
    key = draw_key(7, torch.arange(3), 0, Purpose.NOISE).to(device)
    for offset in (0.0, 0.05):
        checks.check_keyed_normal(KERNEL, key, shape, offset)
        checks.check_noise_belongs_to_the_sample(KERNEL, torch.zeros(3, *shape, device=device), key, offset)


@pytest.mark.parametrize("shape", [(4, 104, 152), (3, 65, 33), (70, 5, 3)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 0.05])
def test_equal_bits_on_cpu_and_cuda(shape, offset, cuda):
    key = draw_key(7, torch.arange(5), 0, Purpose.NOISE)
    assert torch.equal(
        KERNEL.keyed_normal(key.to(cuda), shape, offset).cpu(), KERNEL.keyed_normal(key, shape, offset)
    )


@pytest.fixture(scope="module")
def draws() -> torch.Tensor:
    """2^26 normals of 64 keys."""
    key = draw_key(11, torch.arange(64), 3, Purpose.NOISE)
    return KERNEL.keyed_normal(key, (1, 1, DRAWS // 64)).flatten()


@pytest.mark.parametrize(
    "check", ["repeats", "batch_independent", "distinct", "standard_normal", "uncorrelated"]
)
def test_what_every_keyed_noise_is(check):
    conforms(f"keyed.{check}", on=ByTheKernel())


def test_moments_of_many_more_draws(draws):
    assert worst_moment(draws.view(64, -1)) < STANDARD_ERRORS


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 64, 4096])
def test_autocorrelation(draws, lag):
    rows = draws.view(64, -1)[:8]
    products = (rows[:, :-lag] * rows[:, lag:]).double()
    assert abs(products.mean().item()) < STANDARD_ERRORS / math.sqrt(products.numel())


def test_kolmogorov_smirnov(draws):
    # D on a grid of 2^14 points, a lower bound of D that misses next to nothing between them
    bound, bins = 8.0, 2**14
    counts = sum(torch.histc(chunk, bins, -bound, bound).double() for chunk in draws.view(64, -1))
    empirical = counts.cumsum(0) / DRAWS
    edges = torch.linspace(-bound, bound, bins + 1, dtype=torch.float64)[1:]
    distance = (empirical - torch.special.ndtr(edges)).abs().max().item()
    assert distance * math.sqrt(DRAWS) < KS_CRITICAL
