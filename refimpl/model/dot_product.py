"""Which kernel computes softmax(s·q kᵀ) v, in what precision, and whether it can run here.

math       the n × m matrix written out, in the precision of matrix products
efficient  memory-efficient attention (Rabe & Staats 2021) on CUDA; in float32 every product is three of TF32
flash      FlashAttention-2 (Dao 2023) in bfloat16
cudnn      cuDNN's fused attention in bfloat16
flex       FlexAttention, compiled by Triton on CUDA; in float32 its products are TF32 where TF32 is allowed

flash and cudnn round float32 q, k and v to bfloat16, and what they return has float32's dtype but bfloat16's
precision. A choice either runs as stated or raises: torch never picks another one for it.
"""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from refimpl.errors import InputError
from refimpl.model.config import ATTENTION_KERNELS, BFLOAT16_KERNELS

TEXT_TOKENS = 77  # keys of a cross-attention to one chunk of text
HOPPER = (9, 0)  # compute capability
TOKENS = 64  # queries of a probe: one block of every kernel


class DotProduct(Protocol):
    """Scaled dot-product attention: q [B, heads, n, d], k and v [B, heads, m, d] → [B, heads, n, d] in q's dtype."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """scale  factor on q kᵀ; 1 / √d when left out"""
        ...


def torch_choice(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """The kernel that torch picks from the device, dtype and shapes; what sampling and the CPU use."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def math(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """The matrix of all logits written out: n·m values per head, stored for the backward pass."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def efficient(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Memory-efficient attention in the dtype given."""
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def flash(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """FlashAttention of q, k and v rounded to bfloat16."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _in_bfloat16(q, k, v, scale)


def cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """cuDNN's attention of q, k and v rounded to bfloat16."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _in_bfloat16(q, k, v, scale)


def flex(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """FlexAttention in the dtype given; compiled here unless the caller is being compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    function = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    return function(q, k, v, scale=scale)  # pyright: ignore[reportReturnType]


KERNELS: dict[str, DotProduct] = dict(
    zip(ATTENTION_KERNELS, (math, efficient, flash, cudnn, flex), strict=True)
)


def resolve_attention(choice: str, device: torch.device, precision: str, deterministic: bool = False) -> str:
    """The kernel that "auto" stands for, or the choice itself.

    precision  "tf32", "fp32" or "bf16"
    returns    a name of KERNELS, or "torch" on the CPU, where torch picks its own fused kernel
    """
    if choice != "auto":
        return choice
    if device.type == "cpu":
        return "torch"
    if precision != "bf16":
        return "efficient"
    return "cudnn" if not deterministic and _is_hopper_or_newer(device) else "flash"


def _is_hopper_or_newer(device: torch.device) -> bool:
    """Whether cuDNN's attention is the faster one: with 4096 tokens its two passes took 0.6 of FlashAttention-2's."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= HOPPER


def dot_product(kernel: str) -> DotProduct:
    """The attention function of a name that `resolve_attention` returned."""
    return torch_choice if kernel == "torch" else KERNELS[kernel]


def attention_choices(device: torch.device, precision: str, head_dim: int = 64) -> dict[str, DotProduct]:
    """Every kernel that runs on this device in this precision, forward and backward, by name.

    precision  "tf32" or "fp32", which call it with float32, or "bf16", which calls it with bfloat16
    """
    return {
        name: kernel for name, kernel in KERNELS.items() if not _obstacle(name, device, precision, head_dim)
    }


def check_attention(kernel: str, device: torch.device, precision: str, head_dim: int) -> None:
    """Raises InputError, saying why and naming what does run, unless the kernel runs on this device."""
    obstacle = "" if kernel == "torch" else _obstacle(kernel, device, precision, head_dim)
    if obstacle:
        others = attention_choices(device, precision, head_dim)
        raise InputError(
            f"train.attention {kernel!r} cannot run on {device} in {precision} with heads of {head_dim} channels: "
            f"{obstacle}; use {' or '.join(others)}"
        )


def _obstacle(kernel: str, device: torch.device, precision: str, head_dim: int) -> str:
    """Why a kernel cannot run; empty if it can, which one forward and backward pass of small tensors shows."""
    if kernel in BFLOAT16_KERNELS and precision == "fp32":
        return "it computes in bfloat16, and precision fp32 asks for float32 throughout"
    if kernel == "flex":
        if device.type != "cuda":
            return "it has a backward pass on CUDA only"
        return "" if importlib.util.find_spec("triton") else "it needs triton, which is not installed"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = ((1, 1, TOKENS, head_dim), (1, 1, TEXT_TOKENS, head_dim), (1, 1, TEXT_TOKENS, head_dim))
    q, k, v = (torch.zeros(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes)
    with warnings.catch_warnings(record=True) as reasons, torch.enable_grad():
        warnings.simplefilter("always")
        try:
            KERNELS[kernel](q, k, v).sum().backward()
        except RuntimeError as error:
            return " ".join([str(error).split("\n")[0].rstrip("."), *(f"({r.message})" for r in reasons)])
    return ""


def _in_bfloat16(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    low_q, low_k, low_v = (x.to(torch.bfloat16) for x in (q, k, v))
    return F.scaled_dot_product_attention(low_q, low_k, low_v, scale=scale).to(q.dtype)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=True)
