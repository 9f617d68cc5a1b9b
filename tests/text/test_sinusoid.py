"""Fourier features against their definition and diffusers' (S §2.2)."""

import math

import pytest
import torch
from diffusers.models.embeddings import Timesteps
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.text.sinusoid import sinusoidal_features
from tests import tolerances
from tests.conforming import conforms


@given(
    values=st.lists(st.sampled_from((0, 1, 999, 1216, 1217)) | st.integers(-4096, 4096), max_size=8),
    half=st.integers(1, 160),
)
def test_definition_in_float64(values: list[int], half: int) -> None:
    features = sinusoidal_features(torch.tensor(values, dtype=torch.int64), 2 * half)
    frequency = torch.tensor([10000 ** (-k / half) for k in range(half)], dtype=torch.float64)
    angle = torch.tensor(values, dtype=torch.float64)[:, None] * frequency
    expected = torch.cat((angle.cos(), angle.sin()), dim=-1)
    assert features.dtype == torch.float32
    assert features.shape == (len(values), 2 * half)
    torch.testing.assert_close(features.double(), expected, rtol=0, atol=tolerances.SINUSOID_FLOAT32)


@pytest.mark.parametrize("dim", [2, 32, 256, 320])
def test_same_bits_as_diffusers(dim: int) -> None:
    values = torch.tensor([0.0, 0.5, 1.0, 37.0, 998.7, 999.0, 1216.0, 2048.0])
    oracle = Timesteps(dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(sinusoidal_features(values, dim), oracle(values))


def test_cosine_first() -> None:
    features = sinusoidal_features(torch.zeros(1))[0]
    assert features.tolist() == [1.0] * 128 + [0.0] * 128
    assert sinusoidal_features(torch.tensor([1.0]), 2)[0].tolist() == pytest.approx(
        [math.cos(1), math.sin(1)], rel=tolerances.FLOAT32_ROUNDING
    )


def test_any_leading_shape() -> None:
    values = torch.arange(6)
    assert torch.equal(sinusoidal_features(values.view(2, 3)), sinusoidal_features(values).view(2, 3, 256))
    assert sinusoidal_features(torch.tensor(3)).shape == (256,)
    assert sinusoidal_features(torch.zeros(0, 6)).shape == (0, 6, 256)


@pytest.mark.parametrize("check", ["exact", "of_1217"])
def test_sizes_arrive_as_they_are(check: str) -> None:
    conforms(f"size_ints.{check}")


def test_neighbouring_sizes_stay_apart_under_autocast() -> None:
    sizes = torch.tensor([1216, 1217])
    plain = sinusoidal_features(sizes)
    with torch.autocast("cpu", torch.bfloat16):
        features = sinusoidal_features(sizes)
    assert torch.equal(features, plain)
    low = features.bfloat16()
    assert not torch.equal(low[0], low[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.complex64])
def test_dtypes_that_lose_the_value_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=f"values are {dtype}"):
        sinusoidal_features(torch.ones(2).to(dtype))


@pytest.mark.parametrize("dim", [-2, 0, 1, 3, 255])
def test_odd_dimensions_are_refused(dim: int) -> None:
    with pytest.raises(InputError, match=f"dim is {dim}"):
        sinusoidal_features(torch.ones(2), dim)
