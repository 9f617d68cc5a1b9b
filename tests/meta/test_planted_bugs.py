"""The checkers of the kernel tests catch what a wrong kernel would do: one planted bug of each kind."""

import itertools

import pytest
import torch

from refimpl.ops import load_ops
from tests.ops import checks, network_checks
from tests.ops.test_kernel import example

REFERENCE = load_ops("reference")
SHAPE = (3, 4, 17, 33)
NORM = torch.tensor([[1.0, -0.5, 2.0, 0.25], [0.5, -1.0, 0.0, 2.0]]).unbind()  # weight and bias
ROWS = torch.linspace(-2, 2, 2 * SHAPE[-1]).chunk(2)  # those of each row


def arguments(dtype=torch.float32):
    prediction, x0, eps, key, alpha, sigma, weight = example(SHAPE, dtype, "cpu")
    return prediction, x0, eps, key, alpha, sigma, weight, torch.linspace(-1, 2, SHAPE[0])


def run_all_checks(ops, dtype=torch.float32) -> None:
    """What tests/ops asks of the kernels, on one set of arguments."""
    prediction, x0, eps, key, alpha, sigma, weight, incoming = arguments(dtype)
    checks.check_add_noise(ops, x0, eps, alpha, sigma)
    checks.check_add_keyed_noise(ops, x0, key, alpha, sigma, 0.05)
    checks.check_v_loss(ops, prediction, x0, eps, alpha, sigma, weight, incoming)
    checks.check_keyed_v_loss(ops, prediction, x0, key, alpha, sigma, weight, 0.05, incoming)
    checks.check_channel_moments(ops, x0)
    checks.check_keyed_normal(ops, key, SHAPE[1:], 0.05)
    network_checks.check_geglu(ops, torch.cat([prediction, 4 * x0], dim=-1), eps)
    network_checks.check_group_norm_silu(ops, x0 + 3, *NORM, 2, 1e-5, eps)
    network_checks.check_layer_norm(ops, x0 + 3, *(t.to(dtype) for t in ROWS), 1e-5, eps)
    checks.check_noise_belongs_to_the_sample(ops, x0, key, 0.05)
    checks.check_repeatable(ops, prediction, x0, eps, key, alpha, sigma, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_reference_passes(dtype):
    run_all_checks(REFERENCE, dtype)


def swapped_add_noise(x0, eps, alpha, sigma):
    return REFERENCE.add_noise(x0, eps, sigma, alpha)


def swapped_v_loss(prediction, x0, eps, alpha, sigma, weight):
    return REFERENCE.v_loss(prediction, x0, eps, sigma, alpha, weight)


def tail_left_unwritten(x0, eps, alpha, sigma):
    """Vectors of 16, and no loop for the rest."""
    x_t = REFERENCE.add_noise(x0, eps, alpha, sigma).contiguous()
    x_t.view(len(x0), -1)[:, x0[0].numel() // 16 * 16 :] = 0
    return x_t


def tail_not_summed(prediction, x0, eps, alpha, sigma, weight):
    """The same in the loss: its mean still divides by all elements."""
    n = prediction[0].numel()
    flat = (t.flatten(1)[:, : n // 16 * 16, None, None] for t in (prediction, x0, eps))
    return REFERENCE.v_loss(*flat, alpha, sigma, weight) * (n // 16 * 16 / n)


def missing_square(prediction, x0, eps, alpha, sigma, weight):
    a, s = (c.to(prediction)[:, None, None, None] for c in (alpha, sigma))
    return weight.to(prediction) * (prediction - (a * eps - s * x0)).abs().mean((1, 2, 3))


def accumulated_in_half(prediction, x0, eps, alpha, sigma, weight):
    a, s = (c.float()[:, None, None, None] for c in (alpha, sigma))
    squares = (prediction.float() - (a * eps.float() - s * x0.float())).square().half().flatten(1)
    total = sum(squares.unbind(1))
    return weight.float() * total.float() / squares.shape[1]


def noise_of_the_place_in_the_batch(x0, key, alpha, sigma, offset=0.0):
    """Every sample's noise continues where that of the sample before ended, under the first sample's key."""
    batch, n = len(x0), x0[0].numel()
    noise = REFERENCE.keyed_normal(key[:1], (1, 1, batch * n)).view(x0.shape)
    return REFERENCE.add_noise(x0, noise, alpha, sigma)


def noise_of_the_memory_order(x0, key, alpha, sigma, offset=0.0):
    """Draws follow the memory, so that channels-last gives other noise."""
    if x0.is_contiguous():
        return REFERENCE.add_keyed_noise(x0, key, alpha, sigma, offset)
    _, channels, height, width = x0.shape
    noise = REFERENCE.keyed_normal(key, (height, width, channels), offset).permute(0, 3, 1, 2)
    return REFERENCE.add_noise(x0, noise, alpha, sigma)


ARRIVALS = itertools.count()


def summed_in_order_of_arrival(prediction, x0, eps, alpha, sigma, weight):
    """Partial sums added by float atomics: every run has another order."""
    a, s = (c.float()[:, None, None, None] for c in (alpha, sigma))
    squares = (prediction - (a * eps - s * x0)).square().flatten(1)
    order = torch.randperm(squares.shape[1], generator=torch.Generator().manual_seed(next(ARRIVALS)))
    return weight.float() * sum(squares[:, order].unbind(1)) / squares.shape[1]


def one_pass_moments(x):
    """E[x²] − E[x]² in float32."""
    count = x.numel() // x.shape[1]
    mean = x.mean((0, 2, 3))
    m2 = (x.square().mean((0, 2, 3)) - mean.square()) * count
    return torch.tensor(float(count), dtype=torch.float64), mean.double(), m2.double()


def loss_without_gradient_scale(prediction, x0, eps, alpha, sigma, weight):
    """The right loss with the gradient of an unweighted one."""
    loss = REFERENCE.v_loss(prediction, x0, eps, alpha, sigma, weight)
    unweighted = REFERENCE.v_loss(prediction, x0, eps, alpha, sigma, torch.ones_like(weight))
    return loss.detach() + unweighted - unweighted.detach()


def halves_swapped(packed):
    """The gate taken from the first half."""
    return REFERENCE.geglu(torch.cat(packed.chunk(2, dim=-1)[::-1], dim=-1))


def gelu_by_tanh(packed):
    """The approximation instead of the exact GELU."""
    a, b = packed.chunk(2, dim=-1)
    return a * torch.nn.functional.gelu(b, approximate="tanh")


def gate_without_slope(packed):
    """The right value, with the gradient of a gate that is constant."""
    a, b = packed.chunk(2, dim=-1)
    constant = a * torch.nn.functional.gelu(b.detach())
    return REFERENCE.geglu(packed).detach() + constant - constant.detach()


def normed(x, weight, bias, groups, mean, variance):
    """silu(z) with these statistics, [B, groups, 1, 1, 1]."""
    z = ((x.unflatten(1, (groups, -1)) - mean) / variance.sqrt()).flatten(1, 2)
    return torch.nn.functional.silu(z * weight[:, None, None] + bias[:, None, None])


def statistics_of(x, groups, correction=0):
    variance, mean = torch.var_mean(
        x.unflatten(1, (groups, -1)), (2, 3, 4), correction=correction, keepdim=True
    )
    return mean, variance


def unbiased_deviation(x, weight, bias, groups, eps):
    """Divided by n − 1, as torch.var does by default."""
    mean, variance = statistics_of(x, groups, correction=1)
    return normed(x, weight, bias, groups, mean, variance + eps)


def norm_without_silu(x, weight, bias, groups, eps):
    return torch.nn.functional.group_norm(x, groups, weight.to(x), bias.to(x), eps)


def statistics_without_gradient(x, weight, bias, groups, eps):
    """The right value, with the gradient of a mean and a deviation that are constant."""
    mean, variance = statistics_of(x.detach(), groups)
    return normed(x, weight, bias, groups, mean, variance + eps)


def one_pass_deviation(x, weight, bias, groups, eps):
    """E[x²] − E[x]² of squares in float16, whose digits the mean has used up."""
    mean, _ = statistics_of(x, groups)
    squares = x.unflatten(1, (groups, -1)).square().half().float()
    return normed(x, weight, bias, groups, mean, squares.mean((2, 3, 4), keepdim=True) - mean.square() + eps)


def normed_rows(x, weight, bias, mean, variance):
    return (x - mean) / variance.sqrt() * weight + bias


def row_statistics(x, correction=0):
    variance, mean = torch.var_mean(x, -1, correction=correction, keepdim=True)
    return mean, variance


def unbiased_rows(x, weight, bias, eps):
    mean, variance = row_statistics(x, correction=1)
    return normed_rows(x, weight, bias, mean, variance + eps)


def rows_with_eps_outside_the_root(x, weight, bias, eps):
    mean, variance = row_statistics(x)
    return normed_rows(x, weight, bias, mean, (variance.sqrt() + eps).square())


def rows_of_a_constant_mean(x, weight, bias, eps):
    """The right value, with the gradient of a mean that is constant."""
    mean, variance = row_statistics(x)
    return normed_rows(x, weight, bias, mean.detach(), variance + eps)


def rows_without_the_last(x, weight, bias, eps):
    """The right value, with the gradients by weight and bias of all rows but the last."""
    right, constant = (
        REFERENCE.layer_norm(x, w, b, eps) for w, b in ((weight, bias), (weight.detach(), bias.detach()))
    )
    return torch.cat([right[:-1], constant[-1:]])


def one_pass_rows(x, weight, bias, eps):
    """E[x²] − E[x]² of squares in float16, whose digits the mean has used up."""
    mean, _ = row_statistics(x)
    squares = x.square().half().float().mean(-1, keepdim=True)
    return normed_rows(x, weight, bias, mean, squares - mean.square() + eps)


BUGS = {
    "alpha and sigma swapped in add_noise": {"add_noise": swapped_add_noise},
    "alpha and sigma swapped in the loss": {"v_loss": swapped_v_loss},
    "tail left unwritten": {"add_noise": tail_left_unwritten},
    "tail not summed": {"v_loss": tail_not_summed},
    "missing square": {"v_loss": missing_square},
    "fp16 accumulation": {"v_loss": accumulated_in_half},
    "noise keyed by batch position": {"add_keyed_noise": noise_of_the_place_in_the_batch},
    "noise keyed by memory order": {"add_keyed_noise": noise_of_the_memory_order},
    "order of atomics": {"v_loss": summed_in_order_of_arrival},
    "moments in one pass": {"channel_moments": one_pass_moments},
    "unbiased deviation of a group": {"group_norm_silu": unbiased_deviation},
    "GroupNorm without its SiLU": {"group_norm_silu": norm_without_silu},
    "statistics without a gradient": {"group_norm_silu": statistics_without_gradient},
    "deviation in one pass": {"group_norm_silu": one_pass_deviation},
    "unbiased deviation of a row": {"layer_norm": unbiased_rows},
    "eps outside the root": {"layer_norm": rows_with_eps_outside_the_root},
    "a row's mean without a gradient": {"layer_norm": rows_of_a_constant_mean},
    "gradients without the last rows": {"layer_norm": rows_without_the_last},
    "a row's deviation in one pass": {"layer_norm": one_pass_rows},
    "halves of geglu swapped": {"geglu": halves_swapped},
    "tanh instead of the exact GELU": {"geglu": gelu_by_tanh},
    "the gate's slope forgotten": {"geglu": gate_without_slope},
    "weight missing from the gradient": {"v_loss": loss_without_gradient_scale},
}


@pytest.mark.parametrize("bug", list(BUGS))
def test_caught(bug):
    with pytest.raises(AssertionError):
        run_all_checks(REFERENCE._replace(**BUGS[bug]))


def test_order_of_atomics_is_caught_by_the_repeat_alone():
    prediction, x0, eps, key, alpha, sigma, weight, _ = arguments()
    ops = REFERENCE._replace(v_loss=summed_in_order_of_arrival)
    with pytest.raises(AssertionError, match="two runs differ"):
        checks.check_repeatable(ops, prediction, x0, eps, key, alpha, sigma, weight)


def test_fp16_accumulation_is_caught_in_fp16():
    with pytest.raises(AssertionError):
        run_all_checks(REFERENCE._replace(v_loss=accumulated_in_half), torch.float16)


def test_noise_of_the_place_is_caught_by_the_belonging_check_alone():
    _, x0, _, key, *_ = arguments()
    for bug in (noise_of_the_place_in_the_batch, noise_of_the_memory_order):
        with pytest.raises(AssertionError):
            checks.check_noise_belongs_to_the_sample(REFERENCE._replace(add_keyed_noise=bug), x0, key, 0.0)
