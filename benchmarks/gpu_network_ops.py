"""The network's own operations on the GPU: GEGLU, GroupNorm + SiLU, LayerNorm, beside eager torch and torch.compile.

The shapes are those of SDXL's UNet at 1024². Each row times the value alone, and the value with the gradients. Beside
bf16 rows, eager torch normalises layers in float32 between two copies, as autocast makes them.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_timing import ROTATED_BYTES, timed
from refimpl.ops import load_ops

BATCH = 4
# Rows of the projections (tokens of one image) and their half width, at the levels with transformers.
GEGLU_SHAPES = ((4096, 2560), (1024, 5120))
# Channels and side of the feature maps, at the levels of the UNet.
NORM_SHAPES = ((320, 128), (640, 64), (1280, 32))
# Tokens of one image and their channels, at the levels with transformers.
LAYER_SHAPES = ((4096, 640), (1024, 1280))
GROUPS, EPS = 32, 1e-5
REFERENCE, KERNEL = load_ops("reference"), load_ops("kernel")


class Row(NamedTuple):
    """One operation on one shape: how to make its inputs, how to call it, and the least bytes it must move."""

    operation: str
    shape: tuple[int, ...]
    make: Callable[[], tuple[Tensor, ...]]
    call: Callable[[Any, tuple[Tensor, ...]], Tensor]
    value_bytes: int
    both_bytes: int


def rows(device: str, small: bool, dtype: torch.dtype) -> Iterator[Row]:
    """Every operation and shape, in one dtype."""
    size = torch.finfo(dtype).bits // 8
    for tokens, width in ((16, 64),) if small else GEGLU_SHAPES:
        shape = (BATCH * tokens, 2 * width)
        elements = BATCH * tokens * width * size

        def make_packed(shape: tuple[int, int] = shape) -> tuple[Tensor, ...]:
            return (torch.randn(shape, device=device, dtype=dtype).requires_grad_(),)

        yield Row("geglu", shape, make_packed, lambda ops, x: ops.geglu(x[0]), 3 * elements, 8 * elements)
    for channels, side in ((64, 8),) if small else NORM_SHAPES:
        image = (BATCH, channels, side, side)
        elements = BATCH * channels * side**2 * size

        def make_image(image: tuple[int, ...] = image) -> tuple[Tensor, ...]:
            x = torch.randn(image, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
            weight, bias = torch.randn(2, image[1], device=device).unbind()
            return tuple(t.detach().requires_grad_() for t in (x, weight, bias))

        def norm(ops: Any, x: tuple[Tensor, ...]) -> Tensor:
            return ops.group_norm_silu(*x, GROUPS, EPS)

        yield Row("group_norm_silu", image, make_image, norm, 2 * elements, 5 * elements)
    for tokens, channels in ((16, 64),) if small else LAYER_SHAPES:
        shape = (BATCH * tokens, channels)
        elements = BATCH * tokens * channels * size

        def make_tokens(shape: tuple[int, int] = shape) -> tuple[Tensor, ...]:
            x = torch.randn(shape, device=device, dtype=dtype)
            weight, bias = torch.randn(2, shape[1], device=device).unbind()
            return tuple(t.detach().requires_grad_() for t in (x, weight, bias))

        yield Row("layer_norm", shape, make_tokens, layer_norm, 2 * elements, 5 * elements)


def layer_norm(ops: Any, x: tuple[Tensor, ...]) -> Tensor:
    """The operation, cast around torch's as autocast casts: on a GPU torch takes one dtype alone."""
    tokens, weight, bias = x
    if ops is KERNEL:
        return ops.layer_norm(tokens, weight, bias, EPS)
    return ops.layer_norm(tokens.to(weight.dtype), weight, bias, EPS).to(tokens.dtype)


def network_rows(device: str, small: bool, repeats: int) -> Iterator[dict[str, Any]]:
    """Timed rows, agreement asserted first, in float32 and bfloat16."""
    for dtype in (torch.bfloat16, torch.float32):
        for row in rows(device, small, dtype):
            yield _timed_row(row, dtype, device, repeats)


def _timed_row(row: Row, dtype: torch.dtype, device: str, repeats: int) -> dict[str, Any]:
    x = row.make()
    one = sum(t.numel() * t.element_size() for t in x)
    copies = min(8, max(1, ROTATED_BYTES // one)) if device == "cuda" else 1
    sets = [x, *(row.make() for _ in range(copies))]
    _assert_agreement(row, x)
    torch.compiler.reset()

    def reference(*tensors: Tensor) -> Tensor:
        return row.call(REFERENCE, tensors)

    fused = torch.compile(reference, fullgraph=True, dynamic=False)
    incoming = torch.randn_like(row.call(KERNEL, x))
    columns: dict[str, Callable[[tuple[Tensor, ...]], Tensor]] = {
        "kernel": lambda x: row.call(KERNEL, x),
        "eager": lambda x: row.call(REFERENCE, x),
        "compile": lambda x: fused(*x),
    }
    pairs = [(torch.empty_like(x[0]).detach(), torch.randn_like(x[0]).detach()) for _ in sets]
    copy = timed(lambda pair: pair[0].copy_(pair[1]), pairs, device, repeats)
    bytes_per_us = 2 * one / copy["median_us"]
    result: dict[str, Any] = {
        "operation": row.operation,
        "shape": row.shape,
        "dtype": str(dtype).removeprefix("torch."),
        "copy_gb_per_s": bytes_per_us / 1e3,
    }
    for column, call in columns.items():

        def both(x: tuple[Tensor, ...], call: Callable[[tuple[Tensor, ...]], Tensor] = call) -> object:
            return torch.autograd.grad(call(x), x, incoming)

        def value(x: tuple[Tensor, ...], call: Callable[[tuple[Tensor, ...]], Tensor] = call) -> Tensor:
            with torch.no_grad():
                return call(x)

        result[f"{column}_value"] = timed(value, sets, device, repeats)
        result[f"{column}_both"] = timed(both, sets, device, repeats)
    for kind, moved in (("value", row.value_bytes), ("both", row.both_bytes)):
        result[f"share_{kind}"] = moved / bytes_per_us / result[f"kernel_{kind}"]["median_us"]
    print(
        f"{row.operation:<16} {result['dtype']:<9} {row.shape!s:<24} "
        + ", ".join(
            f"{kind} {result[f'kernel_{kind}']['median_us']:.0f} us {result[f'share_{kind}']:.2f} of copy "
            f"(eager {result[f'eager_{kind}']['median_us'] / result[f'kernel_{kind}']['median_us']:.1f}x, "
            f"compile {result[f'compile_{kind}']['median_us'] / result[f'kernel_{kind}']['median_us']:.1f}x)"
            for kind in ("value", "both")
        ),
        flush=True,
    )
    return result


def _assert_agreement(row: Row, x: tuple[Tensor, ...]) -> None:
    """The kernel errs at most as much as rounding the reference's float64 result to the dtype, twice over."""
    exact = row.call(REFERENCE, tuple(t.detach().double() for t in x))
    eager = (row.call(REFERENCE, x).detach().double() - exact).abs().max()
    error = (row.call(KERNEL, x).detach().double() - exact).abs().max()
    rounding = torch.finfo(x[0].dtype).eps * exact.abs().max()
    assert bool(error <= 2 * eager + rounding), (
        f"{row.operation} {row.shape}: {float(error)} > {float(eager)}"
    )
