"""Guidance and its rescale against numpy, with the cases that divide by zero."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conformance.checks.sampling.guide import guided, rescaled
from refimpl.errors import InputError
from refimpl.sample.config import DEFAULT_SCALE
from refimpl.sample.guidance import SCALE_RANGE, cfg, rescale
from tests.conforming import conforms
from tests.strategies import latents
from tests.tolerances import FLOAT64_ROUNDING

SHAPE = (3, 2, 4, 5)


def test_default_scale_is_in_the_range_of_the_paper():
    assert SCALE_RANGE == (3.5, 5.0)
    assert SCALE_RANGE[0] <= DEFAULT_SCALE <= SCALE_RANGE[1]


@given(latents(SHAPE), latents(SHAPE), st.sampled_from([0.0, 1.0, -2.0, 7.5]) | st.floats(-20, 20))
def test_cfg_is_the_formula(v_cond, v_uncond, scale):
    size = float(max(v_cond.abs().max(), v_uncond.abs().max())) * (
        1 + abs(scale)
    )  # the difference may cancel
    error = (cfg(v_cond, v_uncond, scale) - guided(v_cond, v_uncond, scale)).abs().max()
    assert error <= FLOAT64_ROUNDING * size
    assert cfg(v_cond, v_uncond, 1) is v_cond
    assert torch.equal(cfg(v_cond, v_uncond, 0), v_uncond)
    assert torch.equal(cfg(v_cond, v_cond, scale), v_cond)


@given(latents(SHAPE), latents(SHAPE), st.sampled_from([0.0, 0.7, 1.0]) | st.floats(0, 1))
def test_rescale_is_the_formula_sample_by_sample(v_cfg, v_cond, factor):
    for ours, v, cond in zip(rescale(v_cfg, v_cond, factor), v_cfg, v_cond, strict=True):
        expected = v if v.min() == v.max() else rescaled(v[None], cond[None], factor)[0]
        torch.testing.assert_close(ours, expected, rtol=FLOAT64_ROUNDING, atol=0)


@pytest.mark.parametrize("check", ["linear", "scale_one", "rescales", "flat_sample"])
def test_guidance_and_its_rescale_together(check):
    conforms(f"guide.{check}", within=FLOAT64_ROUNDING)


def test_a_sample_is_guided_to_the_same_bits_in_any_batch():
    conforms("guide.per_sample", within=0)


@given(latents(SHAPE, torch.float32), latents(SHAPE, torch.float32))
def test_factor_0_changes_no_bit(v_cfg, v_cond):
    assert rescale(v_cfg, v_cond, 0.0) is v_cfg


def test_full_rescale_gives_the_contrast_of_the_conditional_one():
    v_cond, v_uncond = torch.randn(2, 4, 4, 16, 16, dtype=torch.float64).unbind()
    rescaled = rescale(cfg(v_cond, v_uncond, 5.0), v_cond, 1.0)
    torch.testing.assert_close(
        rescaled.flatten(1).std(1), v_cond.flatten(1).std(1), rtol=FLOAT64_ROUNDING, atol=0
    )


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sample_without_contrast_stays_as_it_is(value, dtype):
    v = torch.full((2, 4, 33, 31), value, dtype=dtype)  # a size for which the mean of equal values rounds
    assert torch.equal(rescale(v, torch.randn(2, 4, 33, 31).to(dtype), 1.0), v)


def test_tiny_contrast_in_float32_does_not_underflow():
    v = torch.randn(1, 4, 8, 8) * 1e-30
    torch.testing.assert_close(rescale(v, v / 2, 1.0), v / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_costs_one_rounding(dtype):
    v_cond, v_uncond = torch.randn(2, 2, 4, 8, 8).to(dtype).unbind()
    guided = cfg(v_cond, v_uncond, 4.3)
    assert guided.dtype == dtype
    assert torch.equal(guided, cfg(v_cond.double(), v_uncond.double(), 4.3).to(dtype))
    contrast = rescale(guided, v_cond, 0.7)
    assert torch.equal(contrast, rescale(guided.double(), v_cond.double(), 0.7).to(dtype))


def test_an_empty_batch_stays_empty():
    v, v_cond = torch.randn(2, 0, 4, 6, 6).unbind()
    assert rescale(v, v_cond, 0.7).shape == (0, 4, 6, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: cfg(v, v[:1], 5.0), "equal shape"),
        (lambda v: cfg(v, v, math.nan), "scale is nan"),
        (lambda v: cfg(v, v, math.inf), "scale is inf"),
        (lambda v: cfg(v.long(), v.long(), 5.0), "floating-point"),
        (lambda v: rescale(v, v[:, :1], 0.5), "equal shape"),
        (lambda v: rescale(v, v, -0.1), "factor is -0.1"),
        (lambda v: rescale(v, v, 1.1), "factor is 1.1"),
        (lambda v: rescale(v, v, math.nan), "factor is nan"),
        (lambda v: rescale(v[:, :1, :1, :1], v[:, :1, :1, :1], 0.5), "two values"),
        (lambda v: rescale(v[:, 0, 0, 0], v[:, 0, 0, 0], 0.5), "two values"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.zeros(2, 2, 2, 2))
