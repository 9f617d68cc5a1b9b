"""The reference operations: what they compute, in which precision, and what they refuse."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.diffusion import v_prediction
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from refimpl.ops import BUILD_COMMAND, KernelNotBuilt, Ops, load_ops
from tests.strategies import latent_shapes, latents, vp_pairs
from tests.tolerances import BINARY_DECIMAL_AT_1E7, FLOAT32_ROUNDING, FLOAT64_ROUNDING

OPS = load_ops("reference")
ZTSNR = zero_terminal_snr(sdxl_schedule())
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)


def keys(n: int) -> torch.Tensor:
    return draw_key(3, torch.arange(n), 0, Purpose.NOISE)


def plain_loss(prediction, x0, eps, alpha, sigma, weight) -> torch.Tensor:
    """The definition, sample by sample in float64."""
    losses = [
        w * ((p.double() - (a * e.double() - s * x.double())) ** 2).mean()
        for p, x, e, a, s, w in zip(prediction, x0, eps, alpha, sigma, weight, strict=True)
    ]
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


@st.composite
def loss_arguments(draw, dtype: torch.dtype):
    """prediction, x0, eps, alpha, sigma, weight."""
    shape = draw(latent_shapes())
    tensors = [draw(latents(shape, dtype)) for _ in range(3)]
    weight = draw(
        st.lists(st.sampled_from((0.0, 1.0)) | st.floats(0, 10), min_size=shape[0], max_size=shape[0])
    )
    return *tensors, *draw(vp_pairs(shape[0])), torch.tensor(weight, dtype=torch.float64)


# --- noising ---


@DTYPES
@given(data=st.data())
def test_add_noise_is_the_formula_of_diffusion(dtype, data):
    shape = data.draw(latent_shapes())
    x0, eps = data.draw(latents(shape, dtype)), data.draw(latents(shape, dtype))
    alpha, sigma = data.draw(vp_pairs(shape[0]))
    x_t = OPS.add_noise(x0, eps, alpha, sigma)
    assert x_t.dtype == dtype
    assert torch.equal(x_t, v_prediction.add_noise(x0, eps, alpha, sigma))


@DTYPES
@pytest.mark.parametrize("offset", [0.0, 0.05])
def test_keyed_operations_are_the_plain_ones_on_keyed_noise(dtype, offset):
    x0, prediction = torch.randn(2, 3, 4, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    key, eps = keys(3), keyed_normal(keys(3), (4, 5, 7), offset)
    alpha, sigma = ZTSNR.at(torch.tensor([0, 500, 999]))
    weight = torch.tensor([1.0, 0.5, 2.0])
    x_t = OPS.add_keyed_noise(x0, key, alpha, sigma, offset)
    assert x_t.dtype == dtype
    assert torch.equal(x_t, OPS.add_noise(x0, eps, alpha, sigma))
    assert torch.equal(x_t[2], eps[2].to(dtype))  # pure noise is exactly the noise
    loss = OPS.keyed_v_loss(prediction, x0, key, alpha, sigma, weight, offset)
    assert torch.equal(loss, OPS.v_loss(prediction, x0, eps, alpha, sigma, weight))
    assert torch.equal(OPS.keyed_normal(key, (4, 5, 7), offset), eps)


# --- the loss ---


@DTYPES
@given(data=st.data())
def test_loss_equals_the_definition(dtype, data):
    arguments = data.draw(loss_arguments(dtype))
    loss, expected = OPS.v_loss(*arguments), plain_loss(*arguments)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.shape == expected.shape
    rounding = FLOAT64_ROUNDING if dtype == torch.float64 else FLOAT32_ROUNDING
    # errors are relative to the squares before v is subtracted
    largest = max([1.0, *(float(t.double().abs().max()) for t in arguments[:3] if t.numel())])
    slack = 9 * rounding * largest**2 * max([1.0, *arguments[5].tolist()])
    assert torch.allclose(loss.double(), expected, rtol=0, atol=slack)


def test_a_perfect_prediction_costs_nothing():
    x0, eps = torch.randn(2, 4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    alpha, sigma = ZTSNR.at(torch.tensor([0, 1, 998, 999]))
    v = v_prediction.v_target(x0, eps, alpha, sigma)
    assert OPS.v_loss(v, x0, eps, alpha, sigma, torch.ones(4)).tolist() == [0] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_accumulated_in_float32(dtype):
    # 2^20 squares of 2^-12: a sum in half precision stalls long before 2^-12 · 2^20
    prediction = torch.full((1, 1, 1024, 1024), 2.0**-6, dtype=dtype)
    zero = torch.zeros_like(prediction)
    loss = OPS.v_loss(prediction, zero, zero, torch.ones(1), torch.zeros(1), torch.ones(1))
    assert loss.dtype == torch.float32
    assert loss.item() == 2.0**-12


def test_the_target_is_not_rounded_to_low_precision():
    x0, eps = torch.full((2, 1, 1, 1, 1), 1.0, dtype=torch.bfloat16)
    alpha, sigma = torch.tensor([0.6], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)
    v = alpha - sigma  # no bfloat16
    loss = OPS.v_loss(torch.zeros_like(x0), x0, eps, alpha, sigma, torch.ones(1))
    assert loss.item() == pytest.approx(v.item() ** 2, rel=FLOAT32_ROUNDING)


def test_large_half_precision_values_do_not_overflow():
    big = torch.full((1, 4, 2, 2), 60000.0, dtype=torch.float16)
    loss = OPS.v_loss(big, -big, big, torch.zeros(1), torch.ones(1), torch.ones(1))
    assert loss.item() == 0
    assert OPS.v_loss(big, big, big, torch.zeros(1), torch.ones(1), torch.ones(1)).item() == pytest.approx(
        120000.0**2, rel=FLOAT32_ROUNDING
    )


@pytest.mark.parametrize("keyed", [False, True])
def test_gradcheck(keyed):
    generator = torch.Generator().manual_seed(0)
    prediction, x0, eps = torch.randn(3, 3, 2, 3, 3, dtype=torch.float64, generator=generator)
    alpha, sigma = ZTSNR.at(torch.tensor([0, 500, 999]))
    weight = torch.tensor([1.0, 0.0, 2.0])

    def loss(p):
        if keyed:
            return OPS.keyed_v_loss(p, x0, keys(3), alpha, sigma, weight, 0.05)
        return OPS.v_loss(p, x0, eps, alpha, sigma, weight)

    assert torch.autograd.gradcheck(loss, prediction.requires_grad_())


@DTYPES
def test_the_gradient_is_that_of_a_mean_of_squares(dtype):
    prediction, x0, eps = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    prediction.requires_grad_()
    alpha, sigma = ZTSNR.at(torch.tensor([300, 999]))
    weight = torch.tensor([0.5, 3.0], dtype=torch.float64)
    OPS.v_loss(prediction, x0, eps, alpha, sigma, weight).sum().backward()
    v = v_prediction.v_target(x0.double(), eps.double(), alpha, sigma)
    expected = 2 / 36 * weight[:, None, None, None] * (prediction.detach().double() - v)
    assert prediction.grad is not None
    assert prediction.grad.dtype == dtype
    rounding = FLOAT64_ROUNDING if dtype == torch.float64 else max(torch.finfo(dtype).eps, FLOAT32_ROUNDING)
    assert torch.allclose(prediction.grad.double(), expected, rtol=rounding, atol=rounding)


def test_only_the_prediction_gets_a_gradient():
    prediction, x0, eps = (torch.randn(2, 4, 2, 2, requires_grad=True) for _ in range(3))
    alpha, sigma, weight = (torch.rand(2, requires_grad=True) for _ in range(3))
    OPS.v_loss(prediction, x0, eps, alpha, sigma, weight).sum().backward()
    assert prediction.grad is not None
    assert all(t.grad is None for t in (x0, eps, alpha, sigma, weight))
    fixed = OPS.v_loss(prediction.detach(), x0, eps, alpha, sigma, weight)
    assert not fixed.requires_grad


def test_nothing_is_changed_in_place_and_a_second_run_gives_the_same_bits():
    tensors = [torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    kept = [t.clone() for t in tensors]
    coefficients = torch.tensor([0.6, 0.0]), torch.tensor([0.8, 1.0]), torch.tensor([1.0, 2.0])
    first = OPS.v_loss(*tensors, *coefficients)
    assert torch.equal(first, OPS.v_loss(*tensors, *coefficients))
    assert all(torch.equal(t, k) for t, k in zip(tensors, kept, strict=True))


# --- channel moments ---


@DTYPES
@given(data=st.data())
def test_moments_are_those_of_numpy(dtype, data):
    shape = data.draw(latent_shapes())
    x = data.draw(latents(shape, dtype))
    count, mean, m2 = OPS.channel_moments(x)
    assert count.shape == ()
    assert count.item() == shape[0] * shape[2] * shape[3]
    assert count.dtype == mean.dtype == m2.dtype == torch.float64
    if shape[0] == 0:
        assert mean.tolist() == m2.tolist() == [0] * shape[1]
        return
    values = x.double().contiguous().numpy()
    scale = max(1.0, np.abs(values).max())
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=0, atol=FLOAT64_ROUNDING * scale)
    expected = values.var(axis=(0, 2, 3)) * count.item()
    np.testing.assert_allclose(m2, expected, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING * scale**2)


def test_moments_keep_a_small_variance_on_a_large_mean():
    # the values of NIST StRD NumAcc4: 10000000.2 once, then 10000000.1 and 10000000.3 in turn; its
    # certified mean is 10000000.2 and its standard deviation 0.1
    values = [10000000.2] + [10000000.1, 10000000.3] * 500
    count, mean, m2 = OPS.channel_moments(torch.tensor(values, dtype=torch.float64).view(1, 1, 7, 143))
    assert mean.item() == pytest.approx(10000000.2, rel=FLOAT64_ROUNDING)
    assert (m2 / (count - 1)).sqrt().item() == pytest.approx(0.1, rel=BINARY_DECIMAL_AT_1E7)


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 4, 0, 8), (2, 4, 8, 0)])
def test_moments_of_nothing(shape):
    count, mean, m2 = OPS.channel_moments(torch.zeros(shape))
    assert count.item() == 0
    assert mean.tolist() == m2.tolist() == [0] * 4


# --- empty and wrong input ---


def test_an_empty_batch_has_no_losses():
    x = torch.zeros(0, 4, 3, 3, requires_grad=True)
    none = torch.zeros(0)
    loss = OPS.v_loss(x, x, x, none, none, none)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert OPS.add_keyed_noise(x.detach(), keys(0), none, none).shape == (0, 4, 3, 3)
    assert OPS.keyed_v_loss(x, x, keys(0), none, none, none).shape == (0,)


@pytest.mark.parametrize("shape", [(2, 0, 3, 3), (2, 4, 0, 3), (2, 4, 3, 0)])
def test_a_mean_of_nothing_is_refused(shape):
    x, one = torch.zeros(shape), torch.ones(2)
    with pytest.raises(InputError, match="nothing to average"):
        OPS.v_loss(x, x, x, one, one, one)
    with pytest.raises(InputError, match="nothing to average"):
        OPS.keyed_v_loss(x, x, keys(2), one, one, one)
    assert OPS.add_noise(x, x, one, one).shape == shape


X, ONE, WRONG = torch.ones(2, 4, 3, 3), torch.ones(2), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OPS.add_noise(X, X[:1], ONE, ONE), r"x0.*\[2, 4, 3, 3\].*eps.*\[1, 4, 3, 3\]"),
        (lambda: OPS.add_noise(X, X, WRONG, ONE), r"alpha.*\[3\].*\[2, 4, 3, 3\]"),
        (lambda: OPS.add_noise(X, X, ONE, torch.tensor(1.0)), r"sigma.*\[\].*\[2, 4, 3, 3\]"),
        (lambda: OPS.add_noise(X, X, 0.5, ONE), r"alpha must be a tensor of shape \[B\].*0\.5"),
        (lambda: OPS.add_noise(X[0], X[0], ONE, ONE), r"\[B, C, H, W\].*\[4, 3, 3\]"),
        (lambda: OPS.add_noise(X.long(), X.long(), ONE, ONE), "floating-point.*int64"),
        (lambda: OPS.v_loss(X[:1], X, X, ONE, ONE, ONE), r"prediction.*\[1, 4, 3, 3\].*\[2, 4, 3, 3\]"),
        (lambda: OPS.v_loss(X, X, X[:1], ONE, ONE, ONE), r"\[2, 4, 3, 3\].*\[1, 4, 3, 3\]"),
        (lambda: OPS.v_loss(X.int(), X, X, ONE, ONE, ONE), r"prediction.*floating-point.*int32"),
        (lambda: OPS.v_loss(X, X, X.int(), ONE, ONE, ONE), r"eps.*floating-point.*int32"),
        (lambda: OPS.v_loss(X, X, X, ONE, ONE, WRONG), r"weight.*\[3\]"),
        (lambda: OPS.v_loss(X, X, X, ONE, ONE, ONE[:, None]), r"weight.*\[2, 1\]"),
        (lambda: OPS.add_keyed_noise(X, keys(3), ONE, ONE), r"key.*\[3, 2\].*\[2, 4, 3, 3\]"),
        (lambda: OPS.keyed_v_loss(X, X, keys(2)[0], ONE, ONE, ONE), r"key.*\[2\]"),
        (lambda: OPS.add_keyed_noise(X, keys(2).float(), ONE, ONE), "key.*int64.*float32"),
        (lambda: OPS.channel_moments(X[0]), r"\[B, C, H, W\].*\[4, 3, 3\]"),
        (lambda: OPS.channel_moments(X.long()), "floating-point.*int64"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- backends ---


def test_unknown_backends_are_refused():
    with pytest.raises(InputError, match=r"'triton'.*'reference' or 'kernel'"):
        load_ops("triton")


def test_an_unbuilt_kernel_says_how_to_build_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "refimpl.ops.kernel", None)  # makes its import fail
    with pytest.raises(KernelNotBuilt, match=BUILD_COMMAND) as raised:
        load_ops("kernel")
    assert isinstance(raised.value, InputError)
    assert isinstance(raised.value, RuntimeError)


def test_a_backend_is_complete():
    assert Ops._fields == (
        "add_noise",
        "v_loss",
        "add_keyed_noise",
        "keyed_v_loss",
        "channel_moments",
        "keyed_normal",
        "geglu",
        "group_norm_silu",
        "layer_norm",
    )
    assert all(callable(op) for op in OPS)
