"""Derivatives of the compiled operations: gradcheck, repeated and second backward passes, expectations."""

import pytest
import torch

from refimpl.ops import load_ops
from tests.ops import checks
from tests.ops.test_kernel import example

KERNEL = load_ops("kernel")
REFERENCE = load_ops("reference")


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_gradcheck_in_float64(order):
    prediction, x0, eps, key, alpha, sigma, weight = example((3, 2, 3, 3), torch.float64, "cpu", order)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: KERNEL.v_loss(p, x0, eps, alpha, sigma, weight), prediction)
    assert torch.autograd.gradcheck(
        lambda p: KERNEL.keyed_v_loss(p, x0, key, alpha, sigma, weight, 0.05), prediction
    )
    x0.requires_grad_(), eps.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, e: KERNEL.add_noise(x, e, alpha, sigma), (x0, eps))
    assert torch.autograd.gradgradcheck(lambda x, e: KERNEL.add_noise(x, e, alpha, sigma), (x0, eps))
    assert torch.autograd.gradcheck(lambda x: KERNEL.add_keyed_noise(x, key, alpha, sigma, 0.05), x0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_add_noise_derivatives_equal_the_reference(dtype, device):
    _, x0, eps, key, alpha, sigma, _ = example((3, 4, 5, 7), dtype, device)
    grad = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)

    def derivatives(ops):
        x, e = x0.detach().requires_grad_(), eps.detach().requires_grad_()
        plain = torch.autograd.grad(ops.add_noise(x, e, alpha, sigma), (x, e), grad)
        return *plain, *torch.autograd.grad(ops.add_keyed_noise(x, key, alpha, sigma, 0.05), x, grad)

    for ours, expected in zip(derivatives(KERNEL), derivatives(REFERENCE), strict=True):
        assert torch.equal(ours, expected)  # one product, rounded once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_expected_gradient_changes_the_time_only(dtype, device):
    prediction, x0, eps, key, alpha, sigma, weight = example((3, 4, 9, 9), dtype, device)
    incoming = torch.tensor([1 / 3, 0.0, 65536.0], device=device)
    gradients = []
    for expected in (None, 1.0, 65536.0, 0.0, float("nan")):
        for operation, noise in ((KERNEL.v_loss, (eps,)), (KERNEL.keyed_v_loss, (key,))):
            leaf = prediction.detach().requires_grad_()
            loss = operation(leaf, x0, *noise, alpha, sigma, weight, expected=expected)
            gradients.append(torch.autograd.grad(loss, leaf, incoming)[0])
    for plain, keyed in zip(gradients[2::2], gradients[3::2], strict=True):
        assert torch.equal(plain, gradients[0])
        assert torch.equal(keyed, gradients[1])


def test_a_graph_may_be_walked_more_than_once(device):
    prediction, x0, eps, _, alpha, sigma, weight = example((3, 4, 9, 9), torch.float32, device)
    prediction.requires_grad_()
    loss = KERNEL.v_loss(prediction, x0, eps, alpha, sigma, weight)
    (mean,) = torch.autograd.grad(loss.mean(), prediction, retain_graph=True)
    kept = mean.clone()
    (double,) = torch.autograd.grad(2 * loss.mean(), prediction, retain_graph=True)
    (again,) = torch.autograd.grad(loss.mean(), prediction)
    assert torch.equal(mean, kept), "a later backward pass changed an earlier result"
    assert torch.equal(double, 2 * kept)
    assert torch.equal(again, kept)


def test_a_changed_input_is_noticed():
    prediction, x0, eps, _, alpha, sigma, weight = example((2, 4, 5, 5), torch.float32, "cpu")
    prediction.requires_grad_()
    loss = KERNEL.v_loss(prediction, x0, eps, alpha, sigma, weight)
    x0.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_a_second_derivative_is_refused(device):
    prediction, x0, eps, key, alpha, sigma, weight = example((2, 4, 5, 5), torch.float32, device)
    prediction.requires_grad_()
    for loss in (
        KERNEL.v_loss(prediction, x0, eps, alpha, sigma, weight),
        KERNEL.keyed_v_loss(prediction, x0, key, alpha, sigma, weight),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), prediction, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiated once, not twice"):
            gradient.square().sum().backward()


def test_only_the_prediction_gets_a_gradient(device):
    tensors = example((2, 4, 5, 5), torch.float32, device)
    prediction, x0, eps, _, alpha, sigma, weight = tensors
    leaves = [t.detach().requires_grad_() for t in (x0, eps, alpha, sigma, weight)]
    assert not KERNEL.v_loss(prediction, *leaves).requires_grad
    loss = KERNEL.v_loss(prediction.requires_grad_(), *leaves)
    loss.sum().backward()
    assert prediction.grad is not None
    assert all(leaf.grad is None for leaf in leaves)
    with pytest.raises(ValueError, match="no derivative by alpha"):
        KERNEL.add_noise(x0, eps, leaves[2], sigma)


def test_moments_are_no_part_of_a_graph(device):
    x = torch.randn(2, 4, 5, 5).to(device).requires_grad_()
    assert not any(result.requires_grad for result in KERNEL.channel_moments(x))


def test_autocast_leaves_the_operations_alone(device):
    prediction, x0, eps, key, alpha, sigma, weight = example(
        (3, 4, 9, 9), torch.bfloat16, device, latent_dtype=torch.float32
    )
    plain = checks.results_of(KERNEL, prediction, x0, eps, key, alpha, sigma, weight)
    with torch.autocast(device, torch.bfloat16):
        under = checks.results_of(KERNEL, prediction, x0, eps, key, alpha, sigma, weight)
    for a, b in zip(plain, under, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
