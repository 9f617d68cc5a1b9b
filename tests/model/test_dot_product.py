"""Every attention kernel that runs here against the softmax written out in float64; those that do not are refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

from refimpl.errors import InputError
from refimpl.model import dot_product as kernels
from refimpl.model.attention import Attention
from refimpl.model.config import ATTENTION_KERNELS, BFLOAT16_KERNELS, DETERMINISTIC_KERNELS
from refimpl.model.dot_product import (
    KERNELS,
    attention_choices,
    check_attention,
    dot_product,
    resolve_attention,
    torch_choice,
)
from tests.tolerances import ATTENTION_ROUNDINGS, BFLOAT16_ROUNDING, EAGER_ERRORS, FLOAT32_ROUNDING

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HERE = sorted(attention_choices(CPU, "tf32"))


def draw(seed: int, queries: int, keys: int, size: float, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the gradient of the output, [2, 3, n, 8] each."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (queries, keys, keys, queries)
    return [(size * torch.randn(2, 3, n, 8, generator=generator)).to(dtype) for n in sizes]


def written_out(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    logits = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return torch.softmax(logits, -1) @ v


def results(function, inputs: list[Tensor], scale: float | None) -> list[Tensor]:
    """The output and the gradients with respect to q, k and v."""
    *leaves, upstream = inputs
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = function(*leaves, scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def terms(q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, scale: float | None) -> list[Tensor]:
    """What the sums of `results` add up, in absolute value, and by how much rounded logits change it."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    logits = q @ k.transpose(-1, -2) * scale
    p = torch.softmax(logits, -1)
    by_p = (upstream @ v.transpose(-1, -2)).abs() + (upstream * (p @ v)).sum(-1, keepdim=True).abs()
    by_logits = scale * p * by_p  # p ∘ (∂p − Σ p ∂p), whose two parts cancel
    added = [p @ v.abs(), by_logits @ k.abs(), by_logits.mT @ q.abs(), p.mT @ upstream.abs()]
    return [(1 + logits.abs().max()) * sums for sums in added]


def relative_error(one: Tensor, exact: Tensor) -> float:
    return float((one.double() - exact).abs().max() / exact.abs().max())


def test_the_names_are_those_of_the_settings() -> None:
    assert tuple(KERNELS) == ATTENTION_KERNELS
    assert {"math", "flash"} <= set(HERE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HERE)
@given(
    seed=st.integers(0, 999),
    queries=st.integers(1, 40),
    keys=st.sampled_from((1, 2, 31, 77, 154)),
    size=st.sampled_from((0.0, 0.5, 3.0)),
    scale=st.sampled_from((None, 0.1)),
)
def test_a_kernel_errs_no_more_than_the_softmax_written_out_in_its_precision(
    name: str, dtype: torch.dtype, seed: int, queries: int, keys: int, size: float, scale: float | None
) -> None:
    inputs = draw(seed, queries, keys, size, dtype)
    exact = results(written_out, [x.double() for x in inputs], scale)
    low = torch.bfloat16 if name in BFLOAT16_KERNELS else dtype
    eps = torch.finfo(low).eps
    eager = results(written_out, [x.to(low) for x in inputs], scale)
    ours = results(KERNELS[name], inputs, scale)
    sums = terms(*(x.double() for x in inputs), scale)
    for result, plain, truth, added in zip(ours, eager, exact, sums, strict=True):
        assert result.dtype == dtype
        assert result.shape == truth.shape
        allowed = EAGER_ERRORS * (plain - truth).abs().max() + ATTENTION_ROUNDINGS * eps * added.max()
        assert (result - truth).abs().max() <= allowed


@pytest.mark.parametrize("name", sorted(set(HERE) & set(BFLOAT16_KERNELS)))
def test_a_bfloat16_kernel_rounds_float32_to_bfloat16(name: str) -> None:
    q, k, v, _ = draw(0, 16, 77, 1.0, torch.float32)
    out = KERNELS[name](q, k, v)
    assert out.dtype == torch.float32
    assert torch.equal(out, out.bfloat16().float())
    error = relative_error(out, written_out(q.double(), k.double(), v.double(), None))
    assert FLOAT32_ROUNDING < error <= 2 * BFLOAT16_ROUNDING


def test_torchs_own_kernel_is_the_function_itself() -> None:
    q, k, v, _ = draw(1, 16, 16, 1.0, torch.float32)
    assert torch.equal(torch_choice(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert dot_product("torch") is torch_choice
    assert all(dot_product(name) is KERNELS[name] for name in KERNELS)


@pytest.mark.parametrize(
    ("name", "backend"),
    [("math", "MATH"), ("efficient", "EFFICIENT_ATTENTION"), ("flash", "FLASH_ATTENTION"),
     ("cudnn", "CUDNN_ATTENTION")],
)  # fmt: skip
def test_a_kernel_is_the_only_one_that_torch_may_pick(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SDPBackend] = []
    monkeypatch.setattr(kernels, "sdpa_kernel", lambda only: seen.append(only) or torch.enable_grad())
    KERNELS[name](*draw(0, 3, 3, 1.0, torch.float32)[:3])
    assert seen == [getattr(SDPBackend, backend)]


def test_flex_attention_is_the_softmax_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch defines it; the compiled kernel needs a GPU."""
    monkeypatch.setattr(kernels, "_compiled_flex", lambda: flex_attention)
    q, k, v, _ = (x.double() for x in draw(2, 16, 77, 1.0, torch.float32))
    for scale in (None, 0.1):
        assert (
            relative_error(KERNELS["flex"](q, k, v, scale), written_out(q, k, v, scale)) <= FLOAT32_ROUNDING
        )


@pytest.mark.parametrize(
    ("choice", "device", "precision", "kernel"),
    [
        ("auto", CPU, "tf32", "torch"),
        ("auto", CPU, "bf16", "torch"),
        ("auto", GPU, "tf32", "efficient"),
        ("auto", GPU, "fp32", "efficient"),
        ("auto", GPU, "bf16", "flash"),
        ("math", CPU, "tf32", "math"),
        ("cudnn", GPU, "tf32", "cudnn"),
    ],
)
def test_what_auto_stands_for(choice: str, device: torch.device, precision: str, kernel: str) -> None:
    assert resolve_attention(choice, device, precision) == kernel


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_auto_is_deterministic_where_its_backward_pass_can_be(precision: str) -> None:
    assert resolve_attention("auto", GPU, precision, deterministic=True) in DETERMINISTIC_KERNELS


@pytest.mark.parametrize(
    ("capability", "kernel"), [((8, 0), "flash"), ((8, 9), "flash"), ((9, 0), "cudnn"), ((10, 0), "cudnn")]
)
def test_auto_takes_cudnn_from_hopper_on(
    capability: tuple[int, int], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_attention("auto", GPU, "bf16") == kernel
    assert resolve_attention("auto", GPU, "bf16", deterministic=True) == "flash"
    assert resolve_attention("auto", GPU, "tf32") == "efficient"


@pytest.mark.parametrize(
    ("kernel", "precision", "why"),
    [
        ("efficient", "tf32", "No viable backend"),
        ("cudnn", "bf16", "No viable backend"),
        ("flex", "tf32", "backward pass on CUDA only"),
        ("flash", "fp32", "precision fp32 asks for float32 throughout"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_and_others_are_named(
    kernel: str, precision: str, why: str
) -> None:
    with pytest.raises(
        InputError, match=rf"train.attention '{kernel}' cannot run on cpu in {precision}"
    ) as e:
        check_attention(kernel, CPU, precision, 64)
    assert why in str(e.value)
    assert "; use math" in str(e.value)
    assert f"or {kernel}" not in str(e.value)
    assert kernel not in attention_choices(CPU, precision)


@pytest.mark.parametrize("precision", ["tf32", "fp32", "bf16"])
def test_what_runs_is_not_refused(precision: str) -> None:
    for kernel in ("torch", *attention_choices(CPU, precision)):
        check_attention(kernel, CPU, precision, 32)


def test_the_module_uses_the_kernel_it_is_given() -> None:
    attention = Attention(16, 16, 8)
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    plain = attention(tokens)
    attention.dot_product = lambda q, k, v, scale=None: torch.zeros_like(q)
    assert torch.equal(attention(tokens), attention.to_out[0].bias.expand_as(plain))
    attention.dot_product = KERNELS["math"]
    assert relative_error(attention(tokens), plain.double()) <= FLOAT32_ROUNDING
    assert list(attention.state_dict()) == list(Attention(16, 16, 8).state_dict())
