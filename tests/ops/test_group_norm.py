"""group_norm_silu of the compiled backend: values and gradients in both memory orders, what it keeps, its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.ops import load_ops
from tests.ops import network_checks
from tests.strategies import grouped_shapes, latents

KERNEL, REFERENCE = load_ops("kernel"), load_ops("reference")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ORDERS = pytest.mark.parametrize(
    "order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
# (shape, groups): one element per group, odd areas and widths, whole vectors, more channels than threads, many tiles.
SHAPES = [
    ((2, 4, 1, 1), 4),
    ((3, 6, 5, 7), 2),
    ((2, 32, 16, 16), 8),
    ((1, 320, 24, 20), 32),
    ((2, 2560, 2, 4), 32),
    ((1, 300, 3, 3), 30),
    ((1, 8, 130, 64), 2),
]
EPS = 1e-5


def example(shape, dtype, device, order=torch.contiguous_format):
    """x, weight, bias and incoming; each channel has a mean of its own, as large as its deviation."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, incoming = torch.randn(2, *shape, generator=generator, dtype=torch.float64).unbind()
    x = x + torch.randn(shape[1], 1, 1, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64).unbind()
    x, incoming = (t.to(device, dtype).contiguous(memory_format=order) for t in (x, incoming))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return x, weight.to(device, wide), bias.to(device, wide), incoming


@ORDERS
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_shapes_across_tiles(shape, groups, order, dtype, device):
    x, weight, bias, incoming = example(shape, dtype, device, order)
    network_checks.check_group_norm_silu(KERNEL, x, weight, bias, groups, EPS, incoming)
    assert KERNEL.group_norm_silu(x, weight, bias, groups, EPS).is_contiguous(memory_format=order)


@settings(max_examples=30)
@given(data=st.data())
def test_values_and_gradients(dtype, device, data):
    shape, groups = data.draw(grouped_shapes())
    x, incoming = (data.draw(latents(shape, dtype)).to(device) for _ in range(2))
    _, weight, bias, _ = example(shape, dtype, device)
    network_checks.check_group_norm_silu(KERNEL, x, weight, bias, groups, EPS, incoming)


@ORDERS
def test_a_small_deviation_on_a_large_mean(order, device):
    """Sums of squares in float32 would lose the deviation of 1 on a mean of 4096."""
    x, weight, bias, incoming = example((2, 8, 20, 20), torch.float32, device, order)
    network_checks.check_group_norm_silu(KERNEL, x + 4096, weight, bias, 2, EPS, incoming)


def test_gradcheck_in_float64():
    x, weight, bias, _ = example((2, 4, 3, 2), torch.float64, "cpu")
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: KERNEL.group_norm_silu(*t, 2, EPS), inputs)


def test_parameters_keep_their_dtype(device):
    x, weight, bias, incoming = example((2, 8, 4, 4), torch.bfloat16, device)
    parameters = [t.to(torch.bfloat16).requires_grad_() for t in (weight, bias)]
    x.requires_grad_()
    y = KERNEL.group_norm_silu(x, *parameters, 4, EPS)
    gradients = torch.autograd.grad(y, (x, *parameters), incoming)
    assert [t.dtype for t in (y, *gradients)] == [torch.bfloat16] * 4


def test_only_the_input_and_two_numbers_per_group_are_kept(device):
    x, weight, bias, _ = example((2, 8, 6, 6), torch.float32, device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        KERNEL.group_norm_silu(*leaves, 4, EPS)
    assert [t.data_ptr() for t in kept[:3]] == [t.data_ptr() for t in leaves]
    assert [t.shape for t in kept[3:]] == [(2, 4), (2, 4)]


@ORDERS
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_equal_bits_on_every_run_and_thread_count(dtype, order, device):
    x, weight, bias, incoming = example((3, 64, 24, 25), dtype, device, order)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(network_checks.norm_results(KERNEL, x, weight, bias, 16, EPS, incoming))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_second_derivative_is_refused(device):
    x, weight, bias, _ = example((2, 4, 3, 3), torch.float32, device)
    x.requires_grad_()
    y = KERNEL.group_norm_silu(x, weight, bias, 2, EPS)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once, not twice"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
def test_empty_tensors(shape, dtype, device):
    x, weight, bias, incoming = example(shape, dtype, device)
    results = network_checks.norm_results(KERNEL, x, weight, bias, 2, EPS, incoming)
    assert results[0].shape == results[1].shape == shape
    assert not results[2].any()
    assert not results[3].any()


def test_what_is_not_finite_stays_in_its_group(device):
    x, weight, bias, _ = example((2, 8, 4, 4), torch.float32, device)
    x[1, 5, 2, 2] = torch.nan
    finite = KERNEL.group_norm_silu(x, weight, bias, 4, EPS).isfinite().all(dim=(2, 3))
    assert finite.tolist() == [[True] * 8, [True] * 4 + [False] * 2 + [True] * 2]


X, ONE = torch.zeros(2, 8, 4, 4), torch.ones(8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], ONE, ONE, 4, EPS), r"x.*\[B, C, H, W\].*\[8, 4, 4\]"),
        ((X, ONE, ONE, 3, EPS), "3 .*8"),
        ((X, ONE[:4], ONE, 4, EPS), r"weight has shape \[4\]"),
        ((X, ONE, ONE[:, None], 4, EPS), r"bias has shape \[8, 1\]"),
    ],
    ids=["dimensions", "groups", "weight", "bias"],
)
@pytest.mark.parametrize("ops", [KERNEL, REFERENCE], ids=["kernel", "reference"])
def test_wrong_arguments_are_named(ops, arguments, message):
    if arguments[3] == 3 and ops is REFERENCE:
        message = r"3 groups.*\[2, 8, 4, 4\]"
    with pytest.raises(ValueError, match=message):
        ops.group_norm_silu(*arguments)
