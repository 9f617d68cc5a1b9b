"""Attention of SDXL's UNet by implementation: time of forward and backward, and error against float64.

The shapes are those of one 1024² image's levels: 4096 tokens in 10 heads and 1024 in 20, to themselves and to 77 text
tokens. `bf16 in tf32` rows take and return float32, the conversions counted.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = ((10, 4096, 4096), (20, 1024, 1024), (10, 4096, 77), (20, 1024, 77))
BATCH = 2
HEAD = 64
BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
# name → (dtype that comes in, dtype that is computed in, backend)
CHOICES = {
    "fp32 efficient": (torch.float32, torch.float32, "efficient"),
    "fp32 math": (torch.float32, torch.float32, "math"),
    "bf16 flash in tf32": (torch.float32, torch.bfloat16, "flash"),
    "bf16 cudnn in tf32": (torch.float32, torch.bfloat16, "cudnn"),
    "bf16 flash": (torch.bfloat16, torch.bfloat16, "flash"),
    "bf16 cudnn": (torch.bfloat16, torch.bfloat16, "cudnn"),
    "bf16 efficient": (torch.bfloat16, torch.bfloat16, "efficient"),
}


def attention_rows(device: str, small: bool) -> Iterator[dict[str, Any]]:
    """One row for each choice and shape; a choice that the device lacks says why."""
    for heads, tokens, keys in SHAPES[:1] if small else SHAPES:
        if small:
            tokens, keys = 64, 64
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(BATCH, heads, n, HEAD, generator=generator).to(device) for n in (tokens, keys, keys)
        )
        with sdpa_kernel(SDPBackend.MATH):
            first = [x[:1, :1].double() for x in (q, k, v)]
            exact = F.scaled_dot_product_attention(first[0], first[1], first[2])
        for name, (dtype, inside, backend) in CHOICES.items():
            row: dict[str, Any] = {
                "choice": name,
                "heads": heads,
                "tokens": tokens,
                "keys": keys,
                "batch": BATCH,
            }
            torch.backends.cuda.matmul.allow_tf32 = True
            try:
                with sdpa_kernel(BACKENDS[backend]) if device == "cuda" else nullcontext():
                    row |= _measured(q.to(dtype), k.to(dtype), v.to(dtype), inside, exact, device)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                row["refused"] = str(error).splitlines()[0][:200]
            yield row


def _measured(
    q: Tensor, k: Tensor, v: Tensor, inside: torch.dtype, exact: Tensor, device: str
) -> dict[str, float]:
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(q.to(inside), k.to(inside), v.to(inside)).to(q.dtype)

    out = forward()
    incoming = torch.randn_like(out)
    difference = out[:1, :1].detach().double() - exact
    error = float(difference.norm() / exact.norm())
    both = _milliseconds(lambda: torch.autograd.grad(forward(), (q, k, v), incoming), device)
    alone = _milliseconds(forward, device)
    return {"forward_ms": alone, "forward_backward_ms": both, "relative_error": error}


def _milliseconds(call: Callable[[], object], device: str) -> float:
    """Median of ten calls."""
    for _ in range(3):
        call()
    if device == "cpu":
        return 0.0
    times = []
    for _ in range(10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
