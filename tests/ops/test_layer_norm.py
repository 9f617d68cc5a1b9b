"""layer_norm of the compiled backend: values and gradients, what it keeps, its bits and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.ops import load_ops
from tests.ops import network_checks
from tests.ops.checks import arithmetic_eps, in_float64
from tests.strategies import latents, row_shapes
from tests.tolerances import KERNEL_ROUNDINGS

KERNEL, REFERENCE = load_ops("kernel"), load_ops("reference")
# One channel, odd ones, whole vectors, SDXL's own widths, the widest rows that a warp holds and wider ones, more rows
# than an item or a tile adds, no leading dimension.
SHAPES = [
    (5, 1),
    (3, 7, 33),
    (2, 64, 128),
    (130, 640),
    (2, 70, 1280),
    (20, 1288),
    (9, 1536),
    (3, 4100),
    (4099, 24),
    (300, 5),
    (48,),
]
EPS = 1e-5


def example(shape, dtype, device):
    """x, weight, bias and incoming; each row has a mean of its own, as large as its deviation."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, incoming = torch.randn(2, *shape, generator=generator, dtype=torch.float64).unbind()
    x = x + torch.randn(*shape[:-1], 1, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, shape[-1], generator=generator, dtype=torch.float64).unbind()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return x.to(device, dtype), weight.to(device, wide), bias.to(device, wide), incoming.to(device, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_across_vectors_and_rows(shape, dtype, device):
    x, weight, bias, incoming = example(shape, dtype, device)
    network_checks.check_layer_norm(KERNEL, x, weight, bias, EPS, incoming)


@settings(max_examples=40)
@given(data=st.data())
def test_values_and_gradients(dtype, device, data):
    shape = data.draw(row_shapes())
    x, incoming = (data.draw(latents(shape, dtype)).to(device) for _ in range(2))
    _, weight, bias, _ = example(shape, dtype, device)
    network_checks.check_layer_norm(KERNEL, x, weight, bias, EPS, incoming)
    assert KERNEL.layer_norm(x, weight, bias, EPS).is_contiguous()


@pytest.mark.parametrize("width", [640, 1280, 2000])
def test_a_small_deviation_on_a_large_mean(width, device):
    """Sums of squares in float32 would lose the deviation of 1 on a mean of 4096."""
    x, weight, bias, incoming = example((6, width), torch.float32, device)
    network_checks.check_layer_norm(KERNEL, x + 4096, weight, bias, EPS, incoming)


@pytest.mark.parametrize("width", [3, 640, 1280, 5000])
def test_a_constant_row_gives_the_bias(width, device):
    """Whatever rounding leaves of the sum: 1 / √eps would make 0.1 of the last digits of a mean of 1234."""
    one = torch.ones(width, device=device)
    y = KERNEL.layer_norm(1234.567 * one.expand(2, width), one, 3 * one, EPS)
    assert torch.equal(y, 3 * one.expand(2, width))


def test_the_deviation_is_the_biased_one_with_eps_under_the_root(device):
    """A row of ±2 has mean 0 and variance 4, with n − 1 in place of n another; eps is 12."""
    x = torch.tensor([[2.0, -2.0, 2.0, -2.0]], device=device)
    one = torch.ones(4, device=device)
    assert torch.equal(KERNEL.layer_norm(x, one, 0 * one, 12.0), x / 4)


@pytest.mark.parametrize("width", [33, 640, 2000])
def test_results_are_rounded_once(width, dtype, device):
    """Half a unit in the last place, and some float32 roundings; gradients by float32 parameters are float32's."""
    x, weight, bias, incoming = example((40, width), dtype, device)
    results = network_checks.row_results(KERNEL.layer_norm, x, weight, bias, EPS, incoming)
    tensors = in_float64(x, weight, bias, incoming)
    exact = network_checks.row_results(REFERENCE.layer_norm, *tensors[:3], EPS, tensors[3])
    terms = network_checks.row_terms(*tensors[:3], EPS, tensors[3])
    for result, wanted, size in zip(results, exact, terms, strict=True):
        rounding = (
            torch.finfo(result.dtype).eps / 2 * wanted.abs() + torch.finfo(result.dtype).smallest_normal
        )
        error = (result.double().cpu() - wanted).abs()
        assert bool((error <= rounding + KERNEL_ROUNDINGS * arithmetic_eps(dtype) * size).all())


@pytest.mark.parametrize("inputs", [(0, 1, 2), (0,), (1,), (2,)], ids=str)
def test_gradcheck_in_float64(inputs):
    x, weight, bias, _ = example((3, 2, 5), torch.float64, "cpu")
    leaves = [t.requires_grad_(k in inputs) for k, t in enumerate((x, weight, bias))]
    assert torch.autograd.gradcheck(lambda *t: KERNEL.layer_norm(*t, EPS), leaves)


def test_parameters_keep_their_dtype(device):
    x, weight, bias, incoming = example((5, 8), torch.bfloat16, device)
    parameters = [t.to(torch.bfloat16).requires_grad_() for t in (weight, bias)]
    x.requires_grad_()
    y = KERNEL.layer_norm(x, *parameters, EPS)
    gradients = torch.autograd.grad(y, (x, *parameters), incoming)
    assert [t.dtype for t in (y, *gradients)] == [torch.bfloat16] * 4


def test_autocast_leaves_its_dtypes(device):
    x, weight, bias, _ = example((5, 8), torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16):
        y = KERNEL.layer_norm(x, weight, bias, EPS)
    assert torch.equal(y, KERNEL.layer_norm(x, weight, bias, EPS))
    assert y.dtype == torch.bfloat16


def test_only_the_input_and_two_numbers_per_row_are_kept(device):
    x, weight, bias, _ = example((2, 6, 8), torch.bfloat16, device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        KERNEL.layer_norm(*leaves, EPS)
    assert [t.data_ptr() for t in kept[:3]] == [t.data_ptr() for t in leaves]
    assert [(t.shape, t.dtype) for t in kept[3:]] == [((2, 6), torch.float32)] * 2


@pytest.mark.parametrize("width", [640, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equal_bits_on_every_run_and_thread_count(dtype, width, device):
    x, weight, bias, incoming = example((1000, width), dtype, device)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(network_checks.row_results(KERNEL.layer_norm, x, weight, bias, EPS, incoming))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_have_the_same_bits_wherever_they_lie(dtype, device):
    """Unaligned, strided, or beside other rows."""
    x, weight, bias, incoming = example((6, 640), dtype, device)
    plain = network_checks.row_results(KERNEL.layer_norm, x, weight, bias, EPS, incoming)
    shifted = []
    for t in (x, incoming):
        storage = torch.zeros(t.numel() + 1, dtype=t.dtype, device=device)
        storage[1:] = t.flatten()
        shifted.append(storage[1:].view(t.shape))
    unaligned = network_checks.row_results(KERNEL.layer_norm, shifted[0], weight, bias, EPS, shifted[1])
    strided = network_checks.row_results(
        KERNEL.layer_norm, x.T.contiguous().T, weight, bias, EPS, incoming.T.contiguous().T
    )
    for other in (unaligned, strided):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    alone = network_checks.row_results(KERNEL.layer_norm, x[2:3], weight, bias, EPS, incoming[2:3])
    assert torch.equal(alone[0], plain[0][2:3])
    assert torch.equal(alone[1], plain[1][2:3])


def test_a_second_derivative_is_refused(device):
    x, weight, bias, _ = example((2, 8), torch.float32, device)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(KERNEL.layer_norm(x, weight, bias, EPS).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once, not twice"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (3, 0)], ids=str)
def test_empty_tensors(shape, dtype, device):
    x, weight, bias, incoming = example(shape, dtype, device)
    network_checks.check_layer_norm(KERNEL, x, weight, bias, EPS, incoming)


def test_what_is_not_finite_stays_in_its_row(device):
    x, weight, bias, _ = example((4, 640), torch.float32, device)
    x[2, 639] = torch.nan
    x[3, 0] = torch.inf
    finite = KERNEL.layer_norm(x, weight, bias, EPS).isfinite()
    assert finite.all(dim=1).tolist() == [True, True, False, False]
    assert not finite[2:].any()


def test_the_reference_is_torchs_layer():
    """With the bits of nn.LayerNorm, under autocast too."""
    layer = torch.nn.LayerNorm(48, eps=0.5)
    x, weight, bias, _ = example((5, 48), torch.float32, "cpu")
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert torch.equal(REFERENCE.layer_norm(x, weight, bias, 0.5), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        low = x.bfloat16()
        ours, theirs = REFERENCE.layer_norm(low, weight, bias, 0.5), layer(low)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


X, ONE = torch.zeros(2, 3, 8), torch.ones(8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0, 0, 0], ONE, ONE, EPS), r"x must .*\[\.\.\., C\].*\[\]"),
        ((X, ONE[:4], ONE, EPS), r"weight has shape \[4\]"),
        ((X, ONE, ONE[:, None], EPS), r"bias has shape \[8, 1\]"),
    ],
    ids=["scalar", "weight", "bias"],
)
@pytest.mark.parametrize("ops", [KERNEL, REFERENCE], ids=["kernel", "reference"])
def test_wrong_arguments_are_named(ops, arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.layer_norm(*arguments)


def test_other_dtypes_are_refused():
    for ops, error in ((KERNEL, TypeError), (REFERENCE, ValueError)):
        with pytest.raises(error, match="x must be"):
            ops.layer_norm(X.int(), ONE, ONE, EPS)
    with pytest.raises(TypeError, match="weight must be float32"):
        KERNEL.layer_norm(X, ONE.int(), ONE, EPS)


def test_devices_that_disagree_are_named(cuda):
    with pytest.raises(ValueError, match=r"weight has shape .* on cpu and x .* on cuda"):
        KERNEL.layer_norm(X.to(cuda), ONE, ONE.to(cuda), EPS)


def test_gradients_of_other_calls_are_refused():
    backward, statistics = torch.ops.refimpl.layer_norm_backward, (X[..., 0], X[..., 0])
    with pytest.raises(ValueError, match=r"grad has shape \[3, 8\] and x \[2, 3, 8\]"):
        backward(X[0], X, ONE, ONE, *statistics, EPS)
    with pytest.raises(ValueError, match="what layer_norm_forward returned"):
        backward(X, X, ONE, ONE, X[0, :, 0], X[..., 0], EPS)
