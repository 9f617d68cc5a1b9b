"""Overlapping, blended tiles: applies a network to a picture too large for one pass (not from a paper)."""

from collections.abc import Callable

import torch
from torch import Tensor


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """The starts of the tiles along one axis: evenly spaced whole tiles, neighbours sharing at least `overlap`.

    A single tile, at 0, if it covers the axis. 0 ≤ overlap < tile.
    """
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))  # the least that covers the axis
    return [(length - tile) * i // (count - 1) for i in range(count)]


def tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    cell_in: int,
    cell_out: int,
) -> Tensor:
    """`function` applied to overlapping tiles of x, blended linearly where they overlap.

    x         [B, C, h · cell_in, w · cell_in]
    function  [B, C, a · cell_in, b · cell_in] → [B, D, a · cell_out, b · cell_out]
    tile, overlap                in cells
    returns   [B, D, h · cell_out, w · cell_out]

    Exactly function(x) when one tile covers x.
    """
    height, width = x.shape[2] // cell_in, x.shape[3] // cell_in
    if height <= tile and width <= tile:
        return function(x)
    spans = [
        (top, min(top + tile, height), left, min(left + tile, width))
        for top in tile_starts(height, tile, overlap)
        for left in tile_starts(width, tile, overlap)
    ]
    total = weights = None
    dtype = x.dtype
    for top, bottom, left, right in spans:
        part = function(x[:, :, top * cell_in : bottom * cell_in, left * cell_in : right * cell_in])
        if total is None or weights is None:  # the channels and the dtype are the function's to choose
            dtype = part.dtype
            size = (height * cell_out, width * cell_out)
            total = part.new_zeros((*part.shape[:2], *size), dtype=torch.promote_types(dtype, torch.float32))
            weights = total.new_zeros(size)
        rows, columns = slice(top * cell_out, bottom * cell_out), slice(left * cell_out, right * cell_out)
        down = _ramp(top, bottom, height, overlap, cell_out).to(total)
        across = _ramp(left, right, width, overlap, cell_out).to(total)
        weight = down[:, None] * across
        total[:, :, rows, columns] += part * weight
        weights[rows, columns] += weight
    assert total is not None  # there is at least one tile
    assert weights is not None
    return (total / weights).to(dtype)


def _ramp(start: int, end: int, length: int, overlap: int, cell: int) -> Tensor:
    """The float64 weights [(end − start) · cell] of one tile along one axis: 1, decreasing over the overlap with
    a neighbour, but never to 0."""
    distance = torch.arange((end - start) * cell, dtype=torch.float64) + 0.5
    weight = torch.ones_like(distance)
    reach = max(overlap * cell, 1)
    if start > 0:
        weight = torch.minimum(weight, distance / reach)
    if end < length:
        weight = torch.minimum(weight, distance.flip(0) / reach)
    return weight
