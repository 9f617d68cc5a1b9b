"""The compiled operations against the reference: values and gradients, every dtype, layout, size and device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.ops import load_ops
from tests.ops import checks
from tests.strategies import (
    keys_of,
    latent_shapes,
    latents,
    mixed_precisions,
    offsets,
    sample_scalars,
    vp_pairs,
)
from tests.tolerances import BINARY_DECIMAL_AT_1E7, FLOAT64_ROUNDING

KERNEL = load_ops("kernel")
ZTSNR = zero_terminal_snr(sdxl_schedule())
# Around the edges of the kernels' vectors, tiles and groups of noise, and the shapes of SDXL's latents.
SHAPES = [
    (2, 4, 64, 64),
    (1, 4, 104, 152),
    (3, 4, 33, 31),
    (2, 3, 65, 67),
    (2, 5, 16, 16),
    (1, 70, 8, 9),
    (1, 1100, 2, 4),
    (1, 1, 1, 4097),
    (7, 1, 1, 1),
    (0, 4, 8, 8),
]
ORDERS = [torch.contiguous_format, torch.channels_last]


def example(shape, dtype, device, order=torch.contiguous_format, latent_dtype=None):
    """prediction, x0, eps, key, alpha, sigma, weight of one shape; the timesteps include 0 and 999."""
    generator = torch.Generator().manual_seed(sum(shape))
    tensors = torch.randn(3, *shape, generator=generator).unbind()
    dtypes = (dtype, latent_dtype or dtype, latent_dtype or dtype)
    prediction, x0, eps = (
        t.to(device, d).contiguous(memory_format=order) for t, d in zip(tensors, dtypes, strict=True)
    )
    batch = shape[0]
    t = torch.tensor([999, 0, 500, 998, 20, 700, 999])[torch.arange(batch) % 7]
    alpha, sigma = (c.to(device) for c in ZTSNR.at(t))
    weight = torch.linspace(0.5, 2, batch).to(device)
    key = draw_key(1, torch.arange(batch), 0, Purpose.NOISE).to(device)
    return prediction, x0, eps, key, alpha, sigma, weight


@settings(max_examples=30)
@given(data=st.data())
def test_add_noise(dtype, device, data):
    shape = data.draw(latent_shapes())
    x0 = data.draw(latents(shape, dtype)).to(device)
    eps = data.draw(latents(shape, data.draw(mixed_precisions(dtype)))).to(device)
    alpha, sigma = (c.to(device) for c in data.draw(vp_pairs(shape[0])))
    checks.check_add_noise(KERNEL, x0, eps, alpha, sigma)


@settings(max_examples=30)
@given(data=st.data())
def test_add_keyed_noise(dtype, device, data):
    shape = data.draw(latent_shapes())
    x0 = data.draw(latents(shape, dtype)).to(device)
    key = data.draw(keys_of(shape[0])).to(device)
    alpha, sigma = (c.to(device) for c in data.draw(vp_pairs(shape[0])))
    checks.check_add_keyed_noise(KERNEL, x0, key, alpha, sigma, data.draw(offsets()))


@settings(max_examples=30)
@given(data=st.data())
def test_v_loss(dtype, device, data):
    shape = data.draw(latent_shapes())
    prediction = data.draw(latents(shape, dtype)).to(device)
    latent_dtype = data.draw(mixed_precisions(dtype))
    x0, eps = (data.draw(latents(shape, latent_dtype)).to(device) for _ in range(2))
    alpha, sigma = (c.to(device) for c in data.draw(vp_pairs(shape[0])))
    weight, incoming = (data.draw(sample_scalars(shape[0])).to(device) for _ in range(2))
    checks.check_v_loss(KERNEL, prediction, x0, eps, alpha, sigma, weight, incoming)


@settings(max_examples=30)
@given(data=st.data())
def test_keyed_v_loss(dtype, device, data):
    shape = data.draw(latent_shapes())
    prediction = data.draw(latents(shape, dtype)).to(device)
    x0 = data.draw(latents(shape, data.draw(mixed_precisions(dtype)))).to(device)
    key = data.draw(keys_of(shape[0])).to(device)
    alpha, sigma = (c.to(device) for c in data.draw(vp_pairs(shape[0])))
    weight, incoming = (data.draw(sample_scalars(shape[0])).to(device) for _ in range(2))
    offset = data.draw(offsets())
    checks.check_keyed_v_loss(KERNEL, prediction, x0, key, alpha, sigma, weight, offset, incoming)


@settings(max_examples=30)
@given(data=st.data())
def test_channel_moments(dtype, device, data):
    x = data.draw(latents(data.draw(latent_shapes()), dtype)).to(device)
    checks.check_channel_moments(KERNEL, x)


@pytest.mark.parametrize("order", ORDERS, ids=["contiguous", "channels_last"])
def test_moments_keep_a_small_variance_on_a_large_mean(order):
    # NIST StRD NumAcc4, as in test_reference, beside a channel of ones
    values = torch.tensor([10000000.2] + [10000000.1, 10000000.3] * 500, dtype=torch.float64)
    x = torch.stack([values, torch.ones(1001, dtype=torch.float64)]).view(1, 2, 7, 143)
    count, mean, m2 = KERNEL.channel_moments(x.contiguous(memory_format=order))
    assert mean[0].item() == pytest.approx(10000000.2, rel=FLOAT64_ROUNDING)
    assert (m2[0] / (count - 1)).sqrt().item() == pytest.approx(0.1, rel=BINARY_DECIMAL_AT_1E7)
    assert (mean[1].item(), m2[1].item()) == (1.0, 0.0)


@pytest.mark.parametrize("order", ORDERS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_across_tiles(shape, order, dtype, device):
    prediction, x0, eps, key, alpha, sigma, weight = example(shape, dtype, device, order)
    incoming = torch.linspace(-1, 1, shape[0]).to(device)
    checks.check_add_noise(KERNEL, x0, eps, alpha, sigma)
    checks.check_add_keyed_noise(KERNEL, x0, key, alpha, sigma, 0.05)
    checks.check_v_loss(KERNEL, prediction, x0, eps, alpha, sigma, weight, incoming)
    checks.check_keyed_v_loss(KERNEL, prediction, x0, key, alpha, sigma, weight, 0.05, incoming)
    checks.check_channel_moments(KERNEL, x0)
    checks.check_noise_belongs_to_the_sample(KERNEL, x0, key, 0.05)


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (3, 0, 5, 5), (3, 4, 0, 5), (2, 4, 5, 0)], ids=str)
def test_empty_tensors(shape, dtype, device):
    x = torch.zeros(shape, dtype=dtype, device=device)
    alpha, key = (
        torch.ones(shape[0], device=device),
        torch.zeros(shape[0], 2, dtype=torch.int64, device=device),
    )
    assert KERNEL.add_noise(x, x, alpha, alpha).shape == shape
    assert KERNEL.add_keyed_noise(x, key, alpha, alpha, 0.05).shape == shape
    assert KERNEL.keyed_normal(key, shape[1:]).shape == shape
    checks.check_channel_moments(KERNEL, x)
    if shape[0]:
        with pytest.raises(ValueError, match="leaves nothing to average"):
            KERNEL.v_loss(x, x, x, alpha, alpha, alpha)
    else:
        assert KERNEL.v_loss(x, x, x, alpha, alpha, alpha).shape == (0,)


@pytest.mark.parametrize("orders", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 0, 0)], ids=str)
def test_tensors_of_one_call_may_differ_in_memory_order(orders, device):
    prediction, x0, eps, key, alpha, sigma, weight = example((2, 4, 6, 5), torch.float32, device)
    prediction, x0, eps = (
        t.contiguous(memory_format=ORDERS[o]) for t, o in zip((prediction, x0, eps), orders, strict=True)
    )
    checks.check_add_noise(KERNEL, x0, eps, alpha, sigma)
    checks.check_v_loss(KERNEL, prediction, x0, eps, alpha, sigma, weight, weight)
    checks.check_keyed_v_loss(KERNEL, prediction, x0, key, alpha, sigma, weight, 0.0, weight)


@pytest.mark.parametrize("order", ORDERS, ids=["contiguous", "channels_last"])
def test_results_keep_the_memory_order(order, device):
    prediction, x0, eps, key, alpha, sigma, weight = example((2, 4, 6, 5), torch.float32, device, order)
    assert KERNEL.add_noise(x0, eps, alpha, sigma).is_contiguous(memory_format=order)
    assert KERNEL.add_keyed_noise(x0, key, alpha, sigma).is_contiguous(memory_format=order)
    prediction.requires_grad_()
    KERNEL.v_loss(prediction, x0, eps, alpha, sigma, weight).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.is_contiguous(memory_format=order)


def test_the_last_timestep_is_exact(dtype, device):
    _, x0, eps, _, _, _, weight = example((2, 4, 5, 7), dtype, device)
    alpha, sigma = (c.to(device) for c in ZTSNR.at(torch.tensor([999, 999])))
    assert torch.equal(KERNEL.add_noise(x0, eps, alpha, sigma), eps)
    loss, gradient = checks.loss_and_gradient(
        KERNEL.v_loss, -x0, x0, eps, alpha, sigma, weight, incoming=torch.ones_like(weight)
    )
    assert not loss.any(), "v is −x0, so this prediction is perfect"
    assert not gradient.any()


def test_non_finite_values_stay_in_their_sample(dtype, device):
    prediction, x0, eps, _, alpha, sigma, weight = example((3, 4, 9, 9), dtype, device)
    prediction[1, 0, 0, 0] = torch.nan
    x0[2, 3, 8, 8] = torch.inf
    loss = KERNEL.v_loss(prediction, x0, eps, alpha, sigma, weight)
    assert loss.isnan().tolist() == [False, True, False]
    assert loss.isinf().tolist() == [False, False, True]
    x_t = KERNEL.add_noise(x0, eps, alpha, sigma)
    assert int(x_t.isfinite().logical_not().sum()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0": torch.zeros(2, 4, 5)}, r"x0 must have shape \[B, C, H, W\]"),
        ({"eps": torch.zeros(2, 4, 5, 6)}, r"eps has shape \[2, 4, 5, 6\] and x0 \[2, 4, 5, 5\]"),
        ({"alpha": torch.zeros(3)}, r"alpha has shape \[3\]"),
        ({"sigma": torch.zeros(2, 1)}, r"sigma has shape \[2, 1\]"),
        ({"x0": torch.zeros(2, 4, 5, 5, dtype=torch.int32)}, "x0 must be float32"),
        ({"key": torch.zeros(2, 3, dtype=torch.int64)}, r"key has shape \[2, 3\]"),
        ({"key": torch.zeros(2, 2)}, "key must be int64"),
        ({"offset": float("nan")}, "offset must be finite"),
        ({"prediction": torch.zeros(1, 4, 5, 5)}, "prediction has shape"),
        ({"weight": torch.zeros(())}, r"weight has shape \[\]"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x = torch.zeros(2, 4, 5, 5)
    a = torch.ones(2)
    arguments = {"prediction": x, "x0": x, "eps": x, "key": torch.zeros(2, 2, dtype=torch.int64)}
    arguments |= {"alpha": a, "sigma": a, "weight": a, "offset": 0.0} | change
    calls = {
        "add_noise": ("x0", "eps", "alpha", "sigma"),
        "add_keyed_noise": ("x0", "key", "alpha", "sigma", "offset"),
        "v_loss": ("prediction", "x0", "eps", "alpha", "sigma", "weight"),
        "keyed_v_loss": ("prediction", "x0", "key", "alpha", "sigma", "weight", "offset"),
    }
    (changed,) = change
    for name, parameters in calls.items():
        if changed in parameters:
            with pytest.raises((ValueError, TypeError), match=message):
                getattr(KERNEL, name)(*(arguments[p] for p in parameters))


def test_latents_beside_a_tensor_on_another_device_are_refused(cuda):
    x, a, key = torch.zeros(2, 4, 5, 5), torch.ones(2), torch.zeros(2, 2, dtype=torch.int64)
    calls = {
        "add_noise": (x, x.to(cuda), a, a),
        "add_keyed_noise": (x, key.to(cuda), a, a),
        "v_loss": (x.to(cuda), x, x, a, a, a),
        "keyed_v_loss": (x, x.to(cuda), key, a, a, a),
    }
    for name, arguments in calls.items():
        with pytest.raises(ValueError, match="move them to one device"):
            getattr(KERNEL, name)(*arguments)
