"""Reading what an adapter returned, and saying what it is where nothing can be read from it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.conformance.adapter import Batch, Size


class Fault(Exception):
    """The implementation did something that no value could be read from; the message says what."""


class NotOffered(Exception):
    """The adapter has no such method, or the method refuses this kind."""


def as_tensor(
    what: str, value: Any, shape: Sequence[int | None], dtype: torch.dtype | None, finite: bool
) -> Tensor:
    """The value as float64, where `checked` finds nothing wrong. Raises Fault as that does, and on NaN and inf."""
    wide = checked(what, value, shape, dtype).double()
    if finite and not bool(torch.isfinite(wide).all()):
        bad = wide[~torch.isfinite(wide)].flatten()
        raise Fault(f"{what} returned {float(bad[0])} in {bad.numel()} of {wide.numel()} places")
    return wide


def checked(what: str, value: Any, shape: Sequence[int | None], dtype: torch.dtype | None) -> Tensor:
    """The value as a tensor on the CPU. Raises Fault unless it is a tensor, array or list of the form asked for.

    shape  None for any length of a dimension
    """
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise Fault(f"{what} returned {kind_of(value)}, which is no tensor: {error}") from error
    if value.device.type != "cpu":
        raise Fault(f"{what} returned a tensor on {value.device} for arguments on the CPU")
    if value.is_complex():
        raise Fault(f"{what} returned {value.dtype}")
    wanted = tuple(shape)
    same = len(wanted) == value.ndim and all(a in (None, b) for a, b in zip(wanted, value.shape, strict=True))
    if not same:
        asked = ", ".join("any" if size is None else str(size) for size in wanted)
        raise Fault(f"{what} returned shape {list(value.shape)}, not [{asked}]")
    if dtype is not None and value.dtype != dtype:
        raise Fault(f"{what} returned {value.dtype} for arguments of {dtype}")
    return value.detach()


def number(value: float) -> str:
    """A value as the reports print it: two significant digits of what is small or huge, else four."""
    if not math.isfinite(value) or (value == int(value) and abs(value) < 1e6):
        return f"{value:g}"
    return f"{value:.2g}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    length = f" of {len(value)}" if isinstance(value, Sequence) else ""
    return f"{type(value).__name__}{length}"


def listed(what: str, value: Any) -> list[Any]:
    """The value as a list. Raises Fault where it is none."""
    try:
        return list(value)
    except TypeError as error:
        raise Fault(f"{what} returned {kind_of(value)}, not a list") from error


def size_of(what: str, value: Any) -> Size:
    """The value as (width, height). Raises Fault where it is none."""
    try:
        width, height = (int(side) for side in value)
    except (TypeError, ValueError) as error:
        raise Fault(f"{what} returned {value!r:.60} where (width, height) is due") from error
    return width, height


def ranks_of(what: str, value: Any, world_size: int) -> list[list[Batch]]:
    """The value as the batches of each rank. Raises Fault where it is not that."""
    ranks = [listed(what, rank) for rank in listed(what, value)]
    if len(ranks) != world_size:
        raise Fault(f"{what} returned {len(ranks)} ranks of {world_size}")
    try:
        return [[(_hashable(shape), [int(i) for i in ids]) for shape, ids in rank] for rank in ranks]
    except (TypeError, ValueError) as error:
        raise Fault(f"{what} returned a batch that is not (shape, ids): {error}") from error


def _hashable(shape: Any) -> Any:
    return tuple(shape) if isinstance(shape, list) else shape
