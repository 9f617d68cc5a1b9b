"""An adapter whose results are looked at before a check computes with them."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from refimpl.conformance.adapter import Batch, Size, offers
from refimpl.conformance.returned import (
    Fault,
    NotOffered,
    as_tensor,
    checked,
    kind_of,
    listed,
    ranks_of,
    size_of,
)
from refimpl.conformance.time_limit import Hung, time_limit

CALL_SECONDS = 10.0  # that one call of an adapter's method may take
LARGE = 1 << 16  # numbers in a tensor that is made for one call, and so is not copied for it
CHECK_SECONDS = 60.0  # that all calls of one check may take


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
            raise Fault(f"scalings returned {kind_of(found)}, not the three of c_skip, c_out, c_in")
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
        return [size_of("buckets", size) for size in listed("buckets", found)]

    def assign(self, sizes: Sequence[Size]) -> list[Size | None]:
        """The bucket of each image as Python integers; None where it is pruned."""
        found = listed("assign", self("assign", list(sizes)))
        if len(found) != len(sizes):
            raise Fault(f"assign returned {len(found)} buckets for {len(sizes)} images")
        return [None if size is None else size_of("assign", size) for size in found]

    def epoch(self, *arguments: Any) -> list[list[Batch]]:
        """The ranks' batches, as (shape, ids)."""
        return ranks_of("epoch", self("epoch", *arguments), arguments[2])

    def resume(self, *arguments: Any) -> list[list[Batch]]:
        """The ranks' remaining batches, as (shape, ids)."""
        return ranks_of("resume", self("resume", *arguments), arguments[2])

    def crop(self, image: Tensor, bucket: Size) -> tuple[Tensor, list[int]]:
        """The cropped image [3, h, w] in its own dtype and the six integers."""
        found = self("crop", image, bucket)
        if not isinstance(found, Sequence) or len(found) != 2:
            raise Fault(f"crop returned {kind_of(found)}, not an image and its integers")
        cropped = checked("crop", found[0], (3, bucket[1], bucket[0]), None)
        ints = as_tensor("crop's integers", found[1], (6,), None, True)
        return cropped, [int(value) for value in ints.round().tolist()]

    def chunks(self, ids: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """The rows for CLIP-L and for bigG, as Python integers."""
        found = self("chunks", list(ids))
        if not isinstance(found, Sequence) or len(found) != 2:
            raise Fault(f"chunks returned {kind_of(found)}, not the rows of two text encoders")
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
            raise Fault(f"markers returned {kind_of(found)}, not a name and a truth value")
        return found[0], bool(found[1])


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
