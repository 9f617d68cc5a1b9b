"""Attention of SDXL's UNet by kernel (`refimpl.model.dot_product`): time of both passes, and error against float64.

The shapes are those of one 1024² image's levels: 4096 tokens in 10 heads and 1024 in 20, to themselves and to 77 text
tokens. `bf16 in tf32` rows take and return float32, the conversions counted.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from refimpl.errors import InputError
from refimpl.model.dot_product import check_attention, dot_product

SHAPES = ((10, 4096, 4096), (20, 1024, 1024), (10, 4096, 77), (20, 1024, 77))
BATCH = 2
HEAD = 64
# name → (dtype that comes in, kernel); flex is last, as it compiles.
CHOICES = {
    "fp32 efficient": (torch.float32, "efficient"),
    "fp32 math": (torch.float32, "math"),
    "bf16 flash in tf32": (torch.float32, "flash"),
    "bf16 cudnn in tf32": (torch.float32, "cudnn"),
    "bf16 flash": (torch.bfloat16, "flash"),
    "bf16 cudnn": (torch.bfloat16, "cudnn"),
    "bf16 efficient": (torch.bfloat16, "efficient"),
    "tf32 flex": (torch.float32, "flex"),
    "bf16 flex": (torch.bfloat16, "flex"),
}


def attention_rows(device: str, small: bool) -> Iterator[dict[str, Any]]:
    """One row for each choice and shape; a choice that the device lacks says why."""
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, (dtype, kernel) in CHOICES.items():
        for heads, tokens, keys in ((10, 64, 64),) if small else SHAPES:
            row: dict[str, Any] = {
                "choice": name,
                "heads": heads,
                "tokens": tokens,
                "keys": keys,
                "batch": BATCH,
            }
            try:
                precision = "bf16" if dtype == torch.bfloat16 else "tf32"
                check_attention(kernel, torch.device(device), precision, HEAD)
                row |= _measured(heads, tokens, keys, dtype, kernel, device)
            except (InputError, RuntimeError, torch.OutOfMemoryError) as error:
                row["refused"] = str(error).splitlines()[0][:200]
            yield row


def _measured(
    heads: int, tokens: int, keys: int, dtype: torch.dtype, kernel: str, device: str
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(BATCH, heads, n, HEAD, generator=generator).to(device) for n in (tokens, keys, keys)
    )
    with sdpa_kernel(SDPBackend.MATH):
        first = [x[:1, :1].double() for x in (q, k, v)]
        exact = F.scaled_dot_product_attention(first[0], first[1], first[2])
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    attend = dot_product(kernel)

    def forward() -> Tensor:
        return attend(q, k, v)

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
