"""What an implementation of the operations must satisfy; shared by the tests of the kernels and of planted bugs.

Each check takes the operations under test and arguments, and raises AssertionError. The truth is the reference in
float64; an implementation may err twice as much as the eager reference in the tensors' own precision, plus some
roundings of the terms that are added (never a tolerance that was chosen to pass).
"""

import math

import torch
from torch import Tensor

from refimpl.ops import Ops, load_ops
from tests.tolerances import EAGER_ERRORS, KERNEL_ROUNDINGS, KEYED_NORMAL_KERNEL_ULPS

REFERENCE = load_ops("reference")
LARGEST_RADIUS = math.sqrt(-2 * math.log(2.0**-33))  # of a keyed normal: u is at least 2^-33


def in_float64(*tensors: Tensor) -> list[Tensor]:
    """CPU copies in float64, for the truth."""
    return [t.detach().double().cpu().contiguous() for t in tensors]


def per_sample(x: Tensor) -> Tensor:
    return x[:, None, None, None]


def arithmetic_eps(dtype: torch.dtype) -> float:
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def assert_close(result: Tensor, eager: Tensor, exact: Tensor, terms: Tensor) -> None:
    """|result − exact| is within the eager error plus a few roundings of `terms`, the magnitude of the summands.

    Where exact overflows the result's dtype, the result must be what eager gives.
    """
    assert result.dtype == eager.dtype
    assert result.shape == eager.shape
    assert result.device == eager.device
    if result.numel() == 0:
        return
    dtype = result.dtype
    finfo = torch.finfo(dtype)
    result, eager = result.detach().double().cpu(), eager.detach().double().cpu()
    beyond = exact.abs() > finfo.max * (1 + finfo.eps)
    assert torch.equal(result[beyond], eager[beyond]), "beyond the dtype's range the eager result counts"
    fits = exact.abs() <= finfo.max * (1 - finfo.eps)
    if not fits.any():
        return
    assert bool(result[fits].isfinite().all())
    error, eager_error = (result - exact).abs(), (eager - exact).abs()[fits].max()
    eps = arithmetic_eps(dtype)
    subnormal = finfo.smallest_normal * finfo.eps
    limit = EAGER_ERRORS * eager_error + KERNEL_ROUNDINGS * eps * terms + subnormal
    worst = ((error - limit) * fits).argmax()
    assert bool((error <= limit)[fits].all()), (
        f"element {int(worst)}: got {result.flatten()[worst]}, exactly {exact.flatten()[worst]}, "
        f"eager {eager.flatten()[worst]}, limit {limit.expand_as(error).flatten()[worst]}"
    )


# ---- add_noise ------------------------------------------------------------------------------------------


def check_add_noise(ops: Ops, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> None:
    """x_t agrees with the reference, and is exactly eps where alpha is 0."""
    result = ops.add_noise(x0, eps, alpha, sigma)
    x0_64, eps_64, alpha_64, sigma_64 = in_float64(x0, eps, alpha, sigma)
    exact = REFERENCE.add_noise(x0_64, eps_64, alpha_64, sigma_64)
    terms = per_sample(alpha_64).abs() * x0_64.abs() + per_sample(sigma_64).abs() * eps_64.abs()
    assert_close(result, REFERENCE.add_noise(x0, eps, alpha, sigma), exact, terms)
    pure = (alpha_64 == 0) & (sigma_64 == 1)
    assert torch.equal(result.cpu()[pure], eps.to(x0.dtype).cpu()[pure]), "pure noise must be eps itself"


def check_add_keyed_noise(
    ops: Ops, x0: Tensor, key: Tensor, alpha: Tensor, sigma: Tensor, offset: float
) -> None:
    """The same with the noise of a key."""
    result = ops.add_keyed_noise(x0, key, alpha, sigma, offset)
    x0_64, alpha_64, sigma_64 = in_float64(x0, alpha, sigma)
    exact = REFERENCE.add_keyed_noise(x0_64, key.cpu(), alpha_64, sigma_64, offset)
    terms = per_sample(alpha_64).abs() * x0_64.abs() + per_sample(sigma_64).abs() * largest_noise(offset)
    if x0.dtype == torch.float64:  # the noise itself is float32 in both, drawn in other arithmetic
        terms = terms * (torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps)
    assert_close(result, REFERENCE.add_keyed_noise(x0, key, alpha, sigma, offset), exact, terms)


def largest_noise(offset: float) -> float:
    return LARGEST_RADIUS * (1 + abs(offset))


# ---- v_loss ---------------------------------------------------------------------------------------------


def loss_and_gradient(v_loss, prediction: Tensor, *arguments, incoming: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient with respect to prediction for the loss's incoming gradient `incoming`."""
    leaf = prediction.detach().requires_grad_()
    loss = v_loss(leaf, *arguments)
    (gradient,) = torch.autograd.grad(loss, leaf, incoming.to(loss.dtype))
    return loss, gradient


def check_v_loss(
    ops: Ops,
    prediction: Tensor,
    x0: Tensor,
    eps: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    weight: Tensor,
    incoming: Tensor,
) -> None:
    """Loss and gradient agree with the reference, whether or not a gradient is requested."""
    arguments = (x0, eps, alpha, sigma, weight)
    exact_arguments = in_float64(*arguments)
    noise = exact_arguments[1].abs()
    _check_loss(
        ops.v_loss,
        REFERENCE.v_loss,
        prediction,
        arguments,
        exact_arguments,
        noise,
        alpha,
        sigma,
        weight,
        incoming,
    )


def check_keyed_v_loss(
    ops: Ops,
    prediction: Tensor,
    x0: Tensor,
    key: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    weight: Tensor,
    offset: float,
    incoming: Tensor,
) -> None:
    """The same with the noise of a key."""
    arguments = (x0, key, alpha, sigma, weight, offset)
    x0_64, alpha_64, sigma_64, weight_64 = in_float64(x0, alpha, sigma, weight)
    exact_arguments = (x0_64, key.cpu(), alpha_64, sigma_64, weight_64, offset)
    noise = torch.full_like(x0_64, largest_noise(offset))
    if prediction.dtype == torch.float64:
        noise = noise * (torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps)
    _check_loss(
        ops.keyed_v_loss,
        REFERENCE.keyed_v_loss,
        prediction,
        arguments,
        exact_arguments,
        noise,
        alpha,
        sigma,
        weight,
        incoming,
    )


def _check_loss(
    v_loss, reference, prediction, arguments, exact_arguments, noise, alpha, sigma, weight, incoming
) -> None:
    loss, gradient = loss_and_gradient(v_loss, prediction, *arguments, incoming=incoming)
    eager_loss, eager_gradient = loss_and_gradient(reference, prediction, *arguments, incoming=incoming)
    prediction_64, incoming_64 = in_float64(prediction, incoming)
    exact_loss, exact_gradient = loss_and_gradient(
        reference, prediction_64, *exact_arguments, incoming=incoming_64
    )
    alpha_64, sigma_64, weight_64 = in_float64(alpha, sigma, weight)
    n = max(1, prediction[0].numel() if len(prediction) else 1)
    residual = (
        prediction_64.abs()
        + per_sample(alpha_64).abs() * noise
        + per_sample(sigma_64).abs() * exact_arguments[0].abs()
    )
    assert_close(loss, eager_loss, exact_loss, weight_64.abs() * residual.square().sum((1, 2, 3)) / n)
    slope = (2 * weight_64 * incoming_64 / n).abs()
    assert_close(gradient, eager_gradient, exact_gradient, per_sample(slope) * residual)
    with torch.no_grad():
        assert torch.equal(v_loss(prediction, *arguments), loss), "the loss must not depend on the gradient"


# ---- keyed noise ----------------------------------------------------------------------------------------


def check_keyed_normal(ops: Ops, key: Tensor, shape: tuple[int, int, int], offset: float) -> None:
    """A key's normals are within ulps of their radius of the float64 definition, with equal bits in any batch."""
    result = ops.keyed_normal(key, shape, offset)
    expected = REFERENCE.keyed_normal(key.cpu(), shape, offset).double()
    assert result.dtype == torch.float32
    assert result.shape == expected.shape
    error = (result.cpu().double() - expected).abs()
    limit = KEYED_NORMAL_KERNEL_ULPS * (radius_ulps(key.cpu(), shape) + abs(offset) * ulp(LARGEST_RADIUS))
    if offset:
        limit = limit + ulp(largest_noise(offset))  # of the sum
    assert bool((error <= limit).all()), f"off by {float((error / limit).max())} of the limit"


def radius_ulps(key: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The float32 ulp of each normal's radius: √(even lane² + odd lane²) of its pair."""
    channels, height, width = shape
    n = channels * height * width
    pairs = REFERENCE.keyed_normal(key, (1, 1, n + n % 2)).double().view(len(key), (n + 1) // 2, 2)
    radius = pairs.square().sum(-1, keepdim=True).sqrt().expand_as(pairs).flatten(1)[:, :n]
    return ulp_of(radius).view(len(key), channels, height, width)


def ulp_of(x: Tensor) -> Tensor:
    """The spacing of the float32 values around x."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x)[1] - 24)


def ulp(x: float) -> float:
    return float(ulp_of(torch.tensor(x, dtype=torch.float64)))


def check_noise_belongs_to_the_sample(ops: Ops, x0: Tensor, key: Tensor, offset: float) -> None:
    """A sample's noise is the same in any batch, at any place in it, and in any memory order."""
    batch = len(key)
    alpha, sigma = x0.new_zeros(batch), x0.new_ones(batch)
    x_t = ops.add_keyed_noise(x0, key, alpha, sigma, offset)
    noise = ops.keyed_normal(key, tuple(x0.shape[1:]), offset)
    assert torch.equal(x_t, noise.to(x0.dtype)), "add_keyed_noise and keyed_normal must draw the same"
    order = torch.arange(batch - 1, -1, -1)
    assert torch.equal(ops.keyed_normal(key[order], tuple(x0.shape[1:]), offset), noise[order])
    for b in range(batch):
        alone = ops.keyed_normal(key[b : b + 1], tuple(x0.shape[1:]), offset)
        assert torch.equal(alone[0], noise[b]), f"sample {b} drew other noise alone than in its batch"
    last = x0.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.add_keyed_noise(last, key, alpha, sigma, offset), x_t)


# ---- determinism ------------------------------------------------------------------------------------------


def results_of(ops: Ops, prediction, x0, eps, key, alpha, sigma, weight) -> list[Tensor]:
    """Everything the operations return on these arguments."""
    incoming = torch.ones_like(weight)
    results = [
        ops.add_noise(x0, eps, alpha, sigma),
        ops.add_keyed_noise(x0, key, alpha, sigma, 0.05),
        ops.keyed_normal(key, tuple(x0.shape[1:]), 0.05),
        *loss_and_gradient(ops.v_loss, prediction, x0, eps, alpha, sigma, weight, incoming=incoming),
        *loss_and_gradient(
            ops.keyed_v_loss, prediction, x0, key, alpha, sigma, weight, 0.05, incoming=incoming
        ),
        ops.geglu(torch.cat([x0, eps], dim=-1)),
        ops.group_norm_silu(x0, *torch.ones(2, x0.shape[1], device=x0.device).unbind(), 1, 1e-5),
        ops.layer_norm(x0, *torch.ones(2, x0.shape[3], device=x0.device).unbind(), 1e-5),
        *ops.channel_moments(x0),
    ]
    return [result.detach() for result in results]


def check_repeatable(ops: Ops, *arguments: Tensor, repeats: int = 3) -> None:
    """Equal bits on every run."""
    first = results_of(ops, *arguments)
    for _ in range(repeats):
        for a, b in zip(first, results_of(ops, *arguments), strict=True):
            assert torch.equal(a, b), "two runs differ"


def check_batch_split(ops: Ops, *arguments: Tensor) -> None:
    """Samples computed one by one have the bits they have in a batch (all results but the moments)."""
    whole = results_of(ops, *arguments)[:-3]
    alone = [results_of(ops, *(a[b : b + 1] for a in arguments))[:-3] for b in range(len(arguments[0]))]
    for k, result in enumerate(whole):
        assert torch.equal(result, torch.cat([parts[k] for parts in alone])), (
            f"result {k} depends on the batch"
        )


# ---- moments ------------------------------------------------------------------------------------------------


def check_channel_moments(ops: Ops, x: Tensor) -> None:
    """The count is exact; mean and M2 are within float64 rounding of the two-pass values."""
    count, mean, m2 = ops.channel_moments(x)
    expected_count, expected_mean, expected_m2 = REFERENCE.channel_moments(x.cpu())
    assert (count.dtype, mean.dtype, m2.dtype) == (torch.float64,) * 3
    assert (count.device, mean.device, m2.device) == (x.device,) * 3
    assert torch.equal(count.cpu(), expected_count)
    if x.numel() == 0:
        assert torch.equal(mean.cpu(), expected_mean)
        assert torch.equal(m2.cpu(), expected_m2)
        return
    eps = torch.finfo(torch.float64).eps
    size = x.double().abs().amax(dim=(0, 2, 3)).cpu()  # what is added, per channel
    roundings = KERNEL_ROUNDINGS * eps
    assert bool(((mean.cpu() - expected_mean).abs() <= roundings * size).all())
    deviation = x.double().sub(x.double().mean((0, 2, 3), keepdim=True)).abs().amax(dim=(0, 2, 3)).cpu()
    limit = roundings * (expected_m2 + expected_count * deviation * size)
    assert bool(((m2.cpu() - expected_m2).abs() <= limit + roundings**2 * expected_count * size**2).all())
