"""geglu of the compiled backend: values and gradients, what it keeps, and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.ops import load_ops
from tests.ops import network_checks
from tests.strategies import latents, packed_shapes
from tests.tolerances import KERNEL_ROUNDINGS

KERNEL, REFERENCE = load_ops("kernel"), load_ops("reference")
# Odd widths, one element, whole vectors, a row per block and several, SDXL's own widths, more than one CPU item.
SHAPES = [
    (7, 2),
    (3, 5, 2 * 33),
    (2, 64, 2 * 128),
    (5, 2 * 2048),
    (3, 2 * 2560),
    (1, 2 * 5120),
    (700, 2 * 24),
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(shape, dtype, device):
    """packed and incoming of a shape; b reaches both tails of the normal distribution."""
    packed = normal(*shape)
    packed[..., shape[-1] // 2 :] *= 4
    incoming = normal(*shape[:-1], shape[-1] // 2, seed=1)
    return packed.to(device, dtype), incoming.to(device, dtype)


@settings(max_examples=40)
@given(data=st.data())
def test_values_and_gradients(dtype, device, data):
    shape = data.draw(packed_shapes())
    packed = data.draw(latents(shape, dtype)).to(device)
    incoming = data.draw(latents((*shape[:-1], shape[-1] // 2), dtype)).to(device)
    network_checks.check_geglu(KERNEL, packed, incoming)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_across_vectors_and_rows(shape, dtype, device):
    network_checks.check_geglu(KERNEL, *example(shape, dtype, device))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_rounded_once(shape, dtype, device):
    """Half a unit in the last place, and some float32 roundings of the products: less than eager's own steps err."""
    packed, incoming = example(shape, dtype, device)
    results = network_checks.value_and_gradient(KERNEL.geglu, packed, incoming)
    packed, incoming = packed.double().cpu(), incoming.double().cpu()
    exact = network_checks.value_and_gradient(REFERENCE.geglu, packed, incoming)
    a, b = packed.abs().chunk(2, dim=-1)
    terms = a * b, torch.cat([incoming.abs() * b, incoming.abs() * a], dim=-1)
    arithmetic = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for result, wanted, size in zip(results, exact, terms, strict=True):
        rounding = torch.finfo(dtype).eps / 2 * wanted.abs() + torch.finfo(dtype).smallest_normal
        error = (result.double().cpu() - wanted).abs()
        assert bool((error <= rounding + KERNEL_ROUNDINGS * arithmetic * size).all())


def test_gradcheck_in_float64():
    packed = normal(3, 4, 10).requires_grad_()
    assert torch.autograd.gradcheck(KERNEL.geglu, packed)


def test_only_the_input_is_kept(device):
    packed = normal(4, 6, 16).float().to(device).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        KERNEL.geglu(packed)
    assert kept == [packed.data_ptr()]


def test_a_second_derivative_is_refused(device):
    packed = normal(2, 8).float().to(device).requires_grad_()
    (gradient,) = torch.autograd.grad(KERNEL.geglu(packed).sum(), packed, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once, not twice"):
        gradient.square().sum().backward()


def test_limits_and_signs(device):
    """Far out GELU is b or 0; what is not finite stays so."""
    inf, nan = torch.inf, torch.nan
    b = torch.tensor([0.0, -0.0, 1e-30, 14.0, 1e30, inf, -14.0, -1e30, nan], device=device)
    value = KERNEL.geglu(torch.cat([torch.ones_like(b), b]))
    assert torch.equal(value[:6], torch.tensor([0.0, -0.0, 5e-31, 14.0, 1e30, inf], device=device))
    assert value[6:8].tolist() == [0, 0]
    assert value[8].isnan()
    assert KERNEL.geglu(torch.tensor([nan, 1.0], device=device)).isnan().all()
    assert KERNEL.geglu(torch.tensor([inf, 1.0], device=device)).tolist() == [inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unaligned_rows_have_the_same_bits(dtype, device):
    packed, incoming = example((3, 2 * 64), dtype, device)
    shifted = []
    for t in (packed, incoming):
        storage = torch.zeros(t.numel() + 1, dtype=t.dtype, device=device)
        storage[1:] = t.flatten()
        shifted.append(storage[1:].view(t.shape))
    plain = network_checks.value_and_gradient(KERNEL.geglu, packed, incoming)
    for a, b in zip(plain, network_checks.value_and_gradient(KERNEL.geglu, *shifted), strict=True):
        assert torch.equal(a, b)


def test_the_gpu_computes_the_bits_of_the_cpu(cuda):
    packed, incoming = example((300, 2 * 40), torch.float32, "cpu")
    here = network_checks.value_and_gradient(KERNEL.geglu, packed, incoming)
    there = network_checks.value_and_gradient(KERNEL.geglu, packed.to(cuda), incoming.to(cuda))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a, b.cpu())


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (3, 0)], ids=str)
def test_empty_tensors(shape, dtype, device):
    packed = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
    value = KERNEL.geglu(packed)
    assert value.shape == (*shape[:-1], shape[-1] // 2)
    value.sum().backward()
    assert packed.grad is not None
    assert packed.grad.shape == shape


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (torch.zeros(2, 7), r"packed must have shape \[\.\.\., 2·n\], got \[2, 7\]"),
        (torch.zeros(()), r"packed must have shape \[\.\.\., 2·n\]"),
        (torch.zeros(2, 8, dtype=torch.int32), "packed must be float32"),
    ],
    ids=["odd", "scalar", "integers"],
)
def test_wrong_arguments_are_named(packed, message):
    with pytest.raises((ValueError, TypeError), match=message):
        KERNEL.geglu(packed)


def test_a_gradient_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"grad has shape \[3, 2\].*packed \[3, 8\]"):
        torch.ops.refimpl.geglu_backward(torch.zeros(3, 2), torch.zeros(3, 8))
