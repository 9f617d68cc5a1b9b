"""An adapter whose results are looked at before a check computes with them."""

import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.conformance.adapter import Batch, Size, offers
from refimpl.conformance.time_limit import Hung, time_limit

CALL_SECONDS = 10.0  # that one call of an adapter's method may take
LARGE = 1 << 16  # numbers in a tensor that is made for one call, and so is not copied for it
CHECK_SECONDS = 60.0  # that all calls of one check may take


class Fault(Exception):
    """The implementation did something that no value could be read from; the message says what."""


class NotOffered(Exception):
    """The adapter has no such method, or the method refuses this kind."""


@dataclass
class Guarded:
    """The methods of an adapter, with inputs copied, results checked, and a time limit.

    Each method has the arguments of `Adapter`'s, and raises Fault where the adapter raises, hangs, or returns the
    wrong type, shape, dtype or device. NaN and inf are let through where `finite` is False.
    """

    adapter: object
    call_seconds: float = CALL_SECONDS
    check_seconds: float = CHECK_SECONDS
    started: float = field(default_factory=time.monotonic)
    _hung: str = ""

    def __call__(self, method: str, *arguments: Any) -> Any:
        """What the adapter's method returns, unchecked. Raises Fault and NotOffered."""
        if not offers(self.adapter, method):
            raise NotOffered(method)
        left = self.check_seconds - (time.monotonic() - self.started)
        if self._hung or left <= 0:
            raise Fault(self._hung or f"took more than {self.check_seconds:g} s in all")
        copied = [_copied(argument) for argument in arguments]
        try:
            with time_limit(min(self.call_seconds, left)):
                return getattr(self.adapter, method)(*copied)
        except NotImplementedError as error:
            raise NotOffered(f"{method}: {error}") from error
        except Hung:
            self._hung = f"{method} did not return within {min(self.call_seconds, left):.3g} s"
            raise Fault(self._hung) from None
        except (KeyboardInterrupt, Fault):
            raise
        except BaseException as error:  # SystemExit and pytest's outcomes are findings as well
            raise Fault(f"{method} raised {_said(error)}") from error

    def tensor(
        self,
        method: str,
        *arguments: Any,
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
        finite: bool = True,
    ) -> Tensor:
        """The method's result as float64 of the given shape.

        dtype  that it must have; None for any
        """
        return as_tensor(method, self(method, *arguments), shape, dtype, finite)

    def schedule(self, zero_snr: bool) -> Tensor:
        """abar [1000] float64."""
        return self.tensor("schedule", zero_snr, shape=(1000,))

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t in float64."""
        return self.tensor("noised", x0, eps, t, shape=x0.shape, dtype=x0.dtype)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target in float64."""
        return self.tensor("target", x0, eps, t, shape=x0.shape)

    def weight(self, t: Tensor, gamma: float, finite: bool = True) -> Tensor:
        """The weights [B] in float64."""
        return self.tensor("weight", t, gamma, shape=t.shape, finite=finite)

    def keyed(self, seed: int, ids: Sequence[int], visit: int, shape: Sequence[int]) -> Tensor:
        """The noise [B, *shape] in float64."""
        return self.tensor("keyed", seed, list(ids), visit, tuple(shape), shape=(len(ids), *shape))

    def scalings(self, sigma_edm: Tensor) -> list[Tensor]:
        """c_skip, c_out and c_in [B] in float64; NaN and inf are let through."""
        found = self("scalings", sigma_edm)
        if not isinstance(found, Sequence) or len(found) != 3:
            raise Fault(f"scalings returned {_kind(found)}, not the three of c_skip, c_out, c_in")
        return [as_tensor("scalings", part, sigma_edm.shape, None, False) for part in found]

    def sigma_to_t(self, sigma_edm: Tensor) -> Tensor:
        """The timesteps [B] in float64; NaN and inf are let through."""
        return self.tensor("sigma_to_t", sigma_edm, shape=sigma_edm.shape, finite=False)

    def first_step(self, noise: Tensor, network: Callable[[Tensor], Tensor], sigma_next: float) -> Tensor:
        """The state after the first step in float64; NaN and inf are let through."""
        return self.tensor("first_step", noise, network, sigma_next, shape=noise.shape, finite=False)

    def grid(self, kind: str, n: int) -> Tensor:
        """The levels [k] in float64; NaN, inf and any length are let through."""
        return as_tensor(f"grid {kind!r}", self("grid", kind, n), (None,), None, False)

    def guide(
        self, cond: Tensor, uncond: Tensor, scale: float, rescale: float, finite: bool = True
    ) -> Tensor:
        """Guided v in float64."""
        return self.tensor("guide", cond, uncond, scale, rescale, shape=cond.shape, finite=finite)

    def buckets(self, max_area: int, max_side: int, min_side: int, step: int) -> list[Size]:
        """The (width, height) pairs as Python integers."""
        found = self("buckets", max_area, max_side, min_side, step)
        return [_size("buckets", size) for size in _listed("buckets", found)]

    def assign(self, sizes: Sequence[Size]) -> list[Size | None]:
        """The bucket of each image as Python integers; None where it is pruned."""
        found = _listed("assign", self("assign", list(sizes)))
        if len(found) != len(sizes):
            raise Fault(f"assign returned {len(found)} buckets for {len(sizes)} images")
        return [None if size is None else _size("assign", size) for size in found]

    def epoch(self, *arguments: Any) -> list[list[Batch]]:
        """The ranks' batches, as (shape, ids)."""
        return _ranks("epoch", self("epoch", *arguments), arguments[2])

    def resume(self, *arguments: Any) -> list[list[Batch]]:
        """The ranks' remaining batches, as (shape, ids)."""
        return _ranks("resume", self("resume", *arguments), arguments[2])

    def crop(self, image: Tensor, bucket: Size) -> tuple[Tensor, list[int]]:
        """The cropped image [3, h, w] in its own dtype and the six integers."""
        found = self("crop", image, bucket)
        if not isinstance(found, Sequence) or len(found) != 2:
            raise Fault(f"crop returned {_kind(found)}, not an image and its integers")
        cropped = checked("crop", found[0], (3, bucket[1], bucket[0]), None)
        ints = as_tensor("crop's integers", found[1], (6,), None, True)
        return cropped, [int(value) for value in ints.round().tolist()]

    def chunks(self, ids: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """The rows for CLIP-L and for bigG, as Python integers."""
        found = self("chunks", list(ids))
        if not isinstance(found, Sequence) or len(found) != 2:
            raise Fault(f"chunks returned {_kind(found)}, not the rows of two text encoders")
        rows = [as_tensor("chunks", part, (None, None), None, True) for part in found]
        first, second = ([[int(value) for value in row] for row in part.tolist()] for part in rows)
        return first, second

    def pool(self, states: Sequence[Tensor]) -> Tensor:
        """The pooled states [B, P] in float64."""
        return self.tensor("pool", list(states), shape=(len(states), states[0].shape[1]))

    def size_ints(self, original: Size, crop: tuple[int, int], target: Size) -> list[float]:
        """The six numbers."""
        found = self("size_ints", original, crop, target)
        return as_tensor("size_ints", found, (6,), None, True).tolist()

    def markers(self, keys: Sequence[str]) -> tuple[str, bool]:
        """The prediction and whether it ends in zero SNR."""
        found = self("markers", list(keys))
        if not isinstance(found, Sequence) or len(found) != 2 or not isinstance(found[0], str):
            raise Fault(f"markers returned {_kind(found)}, not a name and a truth value")
        return found[0], bool(found[1])


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
            raise Fault(f"{what} returned {_kind(value)}, which is no tensor: {error}") from error
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


def _copied(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.detach().clone() if argument.numel() < LARGE else argument
    if isinstance(argument, list):
        return [_copied(part) for part in argument]
    return argument


def _said(error: BaseException) -> str:
    """The error and the line of code that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", at {frames[-1].name} (line {frames[-1].lineno})" if len(frames) > 1 else ""
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text:.200}{where}"


def _kind(value: Any) -> str:
    length = f" of {len(value)}" if isinstance(value, Sequence) else ""
    return f"{type(value).__name__}{length}"


def _listed(what: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError as error:
        raise Fault(f"{what} returned {_kind(value)}, not a list") from error


def _size(what: str, value: Any) -> Size:
    try:
        width, height = (int(side) for side in value)
    except (TypeError, ValueError) as error:
        raise Fault(f"{what} returned {value!r:.60} where (width, height) is due") from error
    return width, height


def _ranks(what: str, value: Any, world_size: int) -> list[list[Batch]]:
    ranks = [_listed(what, rank) for rank in _listed(what, value)]
    if len(ranks) != world_size:
        raise Fault(f"{what} returned {len(ranks)} ranks of {world_size}")
    try:
        return [[(_hashable(shape), [int(i) for i in ids]) for shape, ids in rank] for rank in ranks]
    except (TypeError, ValueError) as error:
        raise Fault(f"{what} returned a batch that is not (shape, ids): {error}") from error


def _hashable(shape: Any) -> Any:
    return tuple(shape) if isinstance(shape, list) else shape
