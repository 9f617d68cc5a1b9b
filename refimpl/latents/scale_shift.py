"""Scale and shift of latents to zero mean and unit variance per channel (N App. B, Fig. 8)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refimpl.data.loading.transfer import onto
from refimpl.errors import InputError
from refimpl.latents.welford import Welford


@dataclass(frozen=True)
class ScaleShift:
    """The per-channel map between a VAE's latents z and the diffusion model's data x = (z − μ) / σ.

    mean  μ, one finite number per channel: a list, tuple, tensor or array [C]; kept as a tuple
    std   σ, likewise, above 0. It replaces the customary factor 0.13025 and is never
          multiplied by it.
    Raises InputError when the lengths differ, a mean is not finite, or a std is not finite and above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _floats(self.mean, "mean"))
        object.__setattr__(self, "std", _floats(self.std, "std"))
        if len(self.mean) != len(self.std):
            raise InputError(
                f"ScaleShift: {len(self.mean)} means but {len(self.std)} stds; give one per channel"
            )
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            if not math.isfinite(mean):
                raise InputError(f"ScaleShift: mean of channel {channel} is {mean}; it must be finite")
            if not (math.isfinite(std) and std > 0):
                raise InputError(
                    f"ScaleShift: std of channel {channel} is {std}; it must be finite and above 0 "
                    "(0 means that all measured latents were equal: measure on more images)"
                )

    @property
    def channels(self) -> int:
        return len(self.mean)

    def standardise(self, z: Tensor) -> Tensor:
        """x = (z − μ) / σ.

        z  [..., C, H, W]  latents as the VAE's encoder returns them
        returns  same shape and dtype, computed in float32 at least; approximately zero mean and unit variance
        Raises InputError on another channel count or a dtype that is not floating-point.
        """
        mean, std, wide = self._columns(z, "standardise")
        # N App. B.2
        return ((wide - mean) / std).to(z.dtype)

    def restore(self, x: Tensor) -> Tensor:
        """z = x·σ + μ, the inverse of `standardise`.

        x  [..., C, H, W]      returns  same shape and dtype, computed in float32 at least, for the decoder
        Raises InputError on another channel count or a dtype that is not floating-point.
        """
        mean, std, wide = self._columns(x, "restore")
        # N App. B.2
        return (wide * std + mean).to(x.dtype)

    def _columns(self, x: Tensor, place: str) -> tuple[Tensor, Tensor, Tensor]:
        if x.dim() < 3 or x.shape[-3] != self.channels:
            raise InputError(
                f"ScaleShift.{place}: expected [..., {self.channels}, H, W], got {list(x.shape)}; "
                "use the statistics measured with the VAE that made these latents"
            )
        if not x.is_floating_point():
            raise InputError(f"ScaleShift.{place}: expected a floating-point tensor, got {x.dtype}")
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean, std = onto(x.device, torch.tensor((self.mean, self.std), dtype=dtype)).view(2, -1, 1, 1)
        return mean, std, x.to(dtype)

    @classmethod
    def from_welford(cls, statistics: Welford) -> ScaleShift:
        """The map that standardises the latents accumulated in `statistics`.

        Raises InputError when it has fewer than two values per channel, or a channel was constant.
        """
        return cls(tuple(statistics.mean.tolist()), tuple(statistics.std.tolist()))

    @classmethod
    def from_factor(cls, factor: float, channels: int = 4) -> ScaleShift:
        """The customary map x = factor·z (N App. B.1): mean 0, std 1 / factor in every channel."""
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"ScaleShift: scaling factor is {factor}; it must be finite and above 0")
        return cls((0.0,) * channels, (1 / factor,) * channels)

    def to_json(self) -> str:
        """JSON text {"mean": [...], "std": [...]} that keeps every bit; read by `from_json`."""
        return json.dumps({"mean": list(self.mean), "std": list(self.std)})

    @classmethod
    def from_json(cls, text: str) -> ScaleShift:
        """Reads what `to_json` wrote, or `refimpl stats`, which adds the numbers' provenance under "measured".

        Raises InputError when the text is neither.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"ScaleShift: not JSON ({error})") from error
        if not isinstance(fields, dict) or set(fields) - {"measured"} != {"mean", "std"}:
            found = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise InputError(f'ScaleShift: expected a JSON object with "mean" and "std", got {found}')
        return cls(fields["mean"], fields["std"])

    def to_diffusers(self) -> dict[str, Any]:
        """The entries of a diffusers VAE config: latents_mean, latents_std, and scaling_factor 1."""
        return {"latents_mean": list(self.mean), "latents_std": list(self.std), "scaling_factor": 1.0}

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], channels: int = 4) -> ScaleShift:
        """The map that diffusers' pipelines apply: (z − latents_mean)·scaling_factor / latents_std.

        config  the VAE's; keys read: latents_mean, latents_std (both or neither; None counts as absent),
                scaling_factor (1 if only it is absent), shift_factor (must be absent or 0)
        channels  used when the config gives only scaling_factor
        Raises InputError when these contradict each other or define no scale.
        """
        mean, std = config.get("latents_mean"), config.get("latents_std")
        factor = config.get("scaling_factor")
        if config.get("shift_factor"):
            raise InputError(
                f"VAE config: shift_factor {config['shift_factor']} is not SDXL's; "
                "give latents_mean and latents_std"
            )
        if (mean is None) != (std is None):
            raise InputError("VAE config: latents_mean and latents_std must both be given, or neither")
        if mean is None or std is None:
            if factor is None:
                raise InputError(
                    "VAE config: neither scaling_factor nor latents_mean and latents_std are given"
                )
            return cls.from_factor(_floats([factor], "scaling_factor")[0], channels)
        plain = cls(mean, std)
        if factor is None or factor == 1:
            return plain
        scale = cls.from_factor(_floats([factor], "scaling_factor")[0], plain.channels)
        return cls(plain.mean, tuple(a * b for a, b in zip(plain.std, scale.std, strict=True)))


def _floats(values: Sequence[float] | Tensor | npt.NDArray[Any], name: str) -> tuple[float, ...]:
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or len(values) == 0:
        raise InputError(f"ScaleShift: {name} must be a list of numbers, one per channel, got {values!r}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"ScaleShift: {name} holds {value!r}; every entry must be a number")
    try:
        return tuple(float(value) for value in values)
    except OverflowError as error:
        raise InputError(f"ScaleShift: {name} holds a number beyond float64; it must be finite") from error


NOVELAI_ANIME = ScaleShift(
    mean=(4.8119, 0.1607, 1.3538, -1.7753),
    std=(9.9181, 6.2753, 7.5978, 5.9956),
)
"""N Fig. 8: 78,224 anime illustrations encoded by SDXL's VAE."""

SDXL_FACTOR = 0.13025
"""The factor that SDXL's latents are multiplied by (N App. B.1)."""

SDXL_DEFAULT = ScaleShift.from_factor(SDXL_FACTOR)
"""The map that SDXL was trained with (N App. B.1)."""
