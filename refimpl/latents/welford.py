"""Streaming per-channel mean and standard deviation of latents (N App. B; Welford 1962, Chan et al. 1979)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refimpl.errors import InputError


def merge_moments(
    count_a: int, mean_a: Tensor, m2_a: Tensor, count_b: int, mean_b: Tensor, m2_b: Tensor
) -> tuple[int, Tensor, Tensor]:
    """Moments of the union of two disjoint sets (Chan, Golub & LeVeque 1979, eq. 2.1).

    count_*  number of values per channel, not both 0
    mean_*, m2_*  [C]  mean, and sum of squared deviations from it      returns  (count, mean[C], m2[C])
    """
    count = count_a + count_b
    delta = mean_b - mean_a
    mean = mean_a + delta * (count_b / count)
    m2 = m2_a + m2_b + delta.square() * (count_a * (count_b / count))
    return count, mean, m2


class Welford:
    """Mean and standard deviation of each channel of a stream of latents, in float64 and constant memory.

    The result does not depend on how the stream was split over batches, workers or ranks. To keep that true to
    within rounding even if the mean is far larger than the spread (NIST's NumAcc4: 1e8 to 1), values are taken
    relative to the channel's first value, `shift`, and the mean is the unrounded pair shift + offset.

    `.std` is the sample value (divisor N − 1), which NIST certifies and torch.std returns. N App. B does not say
    which divisor it used; over whole data sets the two agree to all digits printed.
    `.variance(ddof=0)` is the population value.
    """

    def __init__(self, channels: int) -> None:
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise InputError(f"Welford: channels must be an integer of at least 1, got {channels!r}")
        self.channels = channels
        self._count = 0
        self._shift = torch.zeros(channels, dtype=torch.float64)
        self._offset = torch.zeros(channels, dtype=torch.float64)
        self._m2 = torch.zeros(channels, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add every value of a batch of latents.

        x  [B, C, H, W]  any real dtype and device; an empty batch changes nothing
        Raises InputError on another shape or channel count, on NaN or infinity, and where squares overflow
        float64. The statistics are then unchanged.
        """
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise InputError(
                f"Welford.update: expected [B, {self.channels}, H, W], got {list(x.shape)}; "
                "create the accumulator with the number of channels of these latents"
            )
        if x.is_complex() or x.dtype == torch.bool:
            raise InputError(f"Welford.update: expected real numbers, got {x.dtype}")
        if x.numel() == 0:
            return
        values = x.detach().to(device="cpu", dtype=torch.float64).transpose(0, 1).flatten(1)  # [C, N]
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            channel = int((~finite).nonzero()[0])
            bad = int((~values[channel].isfinite()).sum())
            raise InputError(
                f"Welford.update: channel {channel} holds {bad} NaN or infinite values; "
                "find the image that produced them (an fp16 encoder overflows) and leave it out"
            )
        shift = values[:, 0] if self._count == 0 else self._shift
        deviation = values - shift[:, None]
        offset = deviation.mean(dim=1)
        m2 = (deviation - offset[:, None]).square().sum(dim=1)
        self._add(values.shape[1], shift, offset, m2)

    def update_moments(self, count: int | Tensor, mean: Tensor, m2: Tensor) -> None:
        """Add a set of values known only by its moments, as `Ops.channel_moments` returns them.

        count  values per channel, 0 or more, a whole number of any type
        mean[C]; m2[C]  sum of squared deviations from the mean
        Raises InputError when a shape differs, a number is not finite, or count or m2 is negative.
        """
        mean = torch.as_tensor(mean, dtype=torch.float64, device="cpu").detach()
        m2 = torch.as_tensor(m2, dtype=torch.float64, device="cpu").detach()
        count = _whole_number(count, "Welford.update_moments: count")
        for name, value in (("mean", mean), ("m2", m2)):
            if value.shape != (self.channels,):
                raise InputError(
                    f"Welford.update_moments: {name} must be [{self.channels}], got {list(value.shape)}"
                )
        if count == 0:
            return
        if not (mean.isfinite().all() and m2.isfinite().all() and (m2 >= 0).all()):
            raise InputError(
                "Welford.update_moments: mean must be finite, m2 finite and not negative; "
                f"got mean {mean.tolist()}, m2 {m2.tolist()}"
            )
        self._add(count, mean.clone(), torch.zeros_like(mean), m2.clone())

    def merge(self, other: Welford) -> None:
        """Add everything that `other` has seen; `other` is unchanged.

        Raises InputError when the channel counts differ.
        """
        if other.channels != self.channels:
            raise InputError(
                f"Welford.merge: {other.channels} channels cannot be merged into {self.channels}; "
                "the two were measured on latents of different VAEs"
            )
        if other._count:
            self._add(other._count, other._shift, other._offset, other._m2)

    def _add(self, count: int, shift: Tensor, offset: Tensor, m2: Tensor) -> None:
        if self._count == 0:
            merged = count, offset, m2
        else:
            offset = offset + (shift - self._shift)  # the other set's mean, relative to this shift
            shift = self._shift
            merged = merge_moments(self._count, self._offset, self._m2, count, offset, m2)
        if not (merged[1].isfinite().all() and merged[2].isfinite().all()):
            raise InputError("Welford: the squared deviations exceed float64; these are not latents of a VAE")
        self._shift = shift
        self._count, self._offset, self._m2 = merged

    @property
    def count(self) -> int:
        """Values seen per channel (images × pixels of a latent)."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """The mean [C] float64. Raises InputError before the first value."""
        self._require(1)
        return self._shift + self._offset

    @property
    def std(self) -> Tensor:
        """The sample standard deviation [C] float64 (divisor N − 1). Raises InputError before the second value."""
        return self.variance().sqrt()

    def variance(self, ddof: int = 1) -> Tensor:
        """The variance m2 / (count − ddof) [C] float64; ddof = 0 for the population's, 1 for the sample's.

        Raises InputError unless more than ddof values have been seen.
        """
        self._require(ddof + 1)
        return self._m2 / (self._count - ddof)

    def _require(self, needed: int) -> None:
        if self._count < needed:
            raise InputError(
                f"Welford: {self._count} values seen per channel, at least {needed} needed; "
                "call update with latents first"
            )

    def state(self) -> dict[str, Any]:
        """The state as plain numbers for JSON, which preserves float64 exactly; read by `from_state`."""
        return {
            "count": self._count,
            "shift": self._shift.tolist(),
            "offset": self._offset.tolist(),
            "m2": self._m2.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Welford:
        """The accumulator that `state` describes, which can then be updated further.

        Raises InputError when a key is missing or unknown, lengths differ, or a number is invalid.
        """
        expected = {"count", "shift", "offset", "m2"}
        if not isinstance(state, Mapping) or set(state) != expected:
            raise InputError(f"Welford.from_state: expected the keys {sorted(expected)}, got {state!r:.200}")
        count = _whole_number(state["count"], "Welford.from_state: count")
        shift, offset, m2 = (_column(state[name], name) for name in ("shift", "offset", "m2"))
        if not len(shift) == len(offset) == len(m2):
            raise InputError(
                f"Welford.from_state: shift, offset and m2 have {len(shift)}, {len(offset)} and {len(m2)} "
                "entries; each needs one per channel"
            )
        if (m2 < 0).any() or (count == 0 and any(column.any() for column in (shift, offset, m2))):
            raise InputError(
                f"Welford.from_state: count {count} with m2 {m2.tolist()} is impossible; the state is damaged"
            )
        result = cls(len(m2))
        result._count, result._shift, result._offset, result._m2 = count, shift, offset, m2
        return result


def _column(values: object, name: str) -> Tensor:
    try:
        column = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"Welford.from_state: {name} is not a list of numbers: {values!r:.200}") from error
    if column.dim() != 1 or not column.isfinite().all():
        raise InputError(f"Welford.from_state: {name} must be a list of finite numbers, got {values!r:.200}")
    return column


def _whole_number(value: object, place: str) -> int:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, float) and value.is_integer():  # `Ops.channel_moments` counts in float64
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{place} must be a whole number of at least 0, got {value!r}")
    return value
