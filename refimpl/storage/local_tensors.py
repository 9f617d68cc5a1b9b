"""What this process holds of a tensor: a part of a DTensor, which is divided among ranks, and all of any other.

A DTensor is divided along its first dimension, as fully sharded data parallelism (FSDP2) divides weights: rank r of n
has the r-th of torch.chunk's pieces, which may be empty.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_divided(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Asked in a way that does not import torch.distributed.tensor, which takes a second."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, in the same memory; always the same object for the same tensor.

    `to_local` would make a new object for each call with a parameter, and an optimizer knows its state by the object.
    """
    return tensor._local_tensor if is_divided(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of the tensor on every rank. Every rank of its mesh has to call it; a tensor held whole is returned."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


@torch.no_grad()
def local_like(held: Tensor, value: Tensor) -> Tensor:
    """The part of `value` that belongs where `held` has its own.

    value  of the shape of `held`: whole, or divided as `held` is
    """
    if is_divided(value) or not is_divided(held):
        return local(value)
    mesh = _divided(held).device_mesh
    pieces = value.chunk(mesh.size(mesh.ndim - 1)) if value.ndim else (value,)
    rank = mesh.get_local_rank(mesh.ndim - 1)
    return pieces[rank] if rank < len(pieces) else value[:0]


def divided_like(held: Tensor, part: Tensor) -> Tensor:
    """This process's part as a tensor divided as `held` is; the part itself where `held` is whole."""
    if not is_divided(held):
        return part
    from torch.distributed.tensor import DTensor

    like = _divided(held)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=held.shape, stride=held.stride()
    )


@torch.no_grad()
def exchange(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Exchanges the values of two tensors, pair by pair; what each process holds of both is alike.

    Where the first is bfloat16 and the second float32, the first takes the second's values rounded to nearest, ties
    away from zero, and the second values that round to the first's: it keeps the bits that are cut off. A second
    exchange undoes the first, bit for bit.
    """
    for first, second in pairs:
        held, other = local(first), local(second)
        if held.dtype == torch.bfloat16 and other.dtype == torch.float32:
            _exchange_upper_halves(held, other)
        else:
            kept = held.clone()
            held.copy_(other)
            other.copy_(kept)


def _exchange_upper_halves(low: Tensor, wide: Tensor) -> None:
    """Exchanges bfloat16 values and the upper halves of float32 values, as bits; the lower halves stay."""
    bits, stored = wide.view(torch.int32), low.view(torch.int16)
    cut = bits & 0xFFFF
    carried = cut >> 15  # 1 where at least half of the last place is cut off: rounding goes up
    upper = (bits >> 16) + carried
    bits.copy_(((stored.int() - carried) << 16) | cut)
    stored.copy_(upper)


def _divided(tensor: Tensor) -> "DTensor":
    assert is_divided(tensor)
    return tensor  # pyright: ignore[reportReturnType]
