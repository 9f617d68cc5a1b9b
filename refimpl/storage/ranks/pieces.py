"""What one rank holds of a tensor that the ranks share: a block of it, and where the block lies."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Piece:
    """A block of a tensor; all of it where the tensor is not shared out."""

    local: Tensor
    """The block; empty where this rank holds nothing of the tensor."""
    offsets: tuple[int, ...]
    """Where the block begins in the whole tensor, in each dimension."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""

    @property
    def is_whole(self) -> bool:
        """Whether this rank holds all of the tensor."""
        return tuple(self.local.shape) == self.shape

    @property
    def whole_bytes(self) -> int:
        """Size of the whole tensor."""
        return math.prod(self.shape) * self.local.element_size()

    def copied(self) -> "Piece":
        """The same piece in memory of its own on the CPU, which later steps of training don't change."""
        own = torch.empty(self.local.shape, dtype=self.local.dtype)
        return replace(self, local=own.copy_(self.local.detach()))

    def cut_from(self, whole: Tensor) -> Tensor:
        """This piece's block of a tensor with the whole's shape; a view."""
        lengths = self.local.shape
        return whole[tuple(slice(o, o + n) for o, n in zip(self.offsets, lengths, strict=True))]


State = Mapping[str, Tensor | Piece]
"""A state dict: tensors, DTensors, or what a rank holds of them."""


def piece_of(tensor: Tensor | Piece) -> Piece:
    """What this rank holds of a tensor: of a DTensor its local block, of any other tensor everything."""
    if isinstance(tensor, Piece):
        return tensor
    if not hasattr(tensor, "__create_chunk_list__"):
        return Piece(tensor.detach(), (0,) * tensor.ndim, tuple(tensor.shape))
    shared: Any = tensor
    (chunk,) = shared.__create_chunk_list__()
    return Piece(shared.to_local().detach(), tuple(chunk.offsets), tuple(shared.shape))


def pieces_of(state: State) -> dict[str, Piece]:
    """What this rank holds of every tensor of a state dict."""
    return {key: piece_of(value) for key, value in state.items()}
