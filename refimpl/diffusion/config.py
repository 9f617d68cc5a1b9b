"""Settings of the diffusion process (N §2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refimpl.checks import check_at_least, check_choice, check_positive
from refimpl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from refimpl.diffusion.schedule import NoiseSchedule

PARAMETERISATIONS = ("v", "eps", "x0")
POLICIES = ("paper", "floor", "snr_plus_one", "none")


@dataclass(frozen=True)
class DiffusionConfig:
    """What the network predicts, on which schedule, and how its loss is weighted (N §2)."""

    parameterisation: str = "v"
    """What the network's output means: v, eps or x0 (N §2.1)."""
    zero_terminal_snr: bool = True
    """Rescale the schedule so that it ends in pure noise (N §2.2)."""
    loss_weight: str = "paper"
    """MinSNR weighting policy, in v units (N §2.4): paper, floor, snr_plus_one or none."""
    min_snr_gamma: float = 5.0
    """Threshold γ at which MinSNR clamps the SNR."""
    weight_floor: float = 0.0
    """Smallest loss weight under the policy floor; the policy paper gives t = 999 no weight at all."""
    offset_noise: float = 0.0
    """Strength s of offset noise, eps + s·z per sample and channel (S §2.5); 0 for none."""
    first_timestep: int = 0
    """Smallest timestep trained."""
    last_timestep: int = 999
    """Largest timestep trained; 199 for a refiner."""

    def __post_init__(self) -> None:
        check_choice("diffusion.loss_weight", self.loss_weight, POLICIES)
        check_positive("diffusion.min_snr_gamma", self.min_snr_gamma)
        check_at_least("diffusion.weight_floor", self.weight_floor, 0)
        if self.weight_floor and self.loss_weight != "floor":
            raise InputError(
                f"diffusion.weight_floor {self.weight_floor} is read only with diffusion.loss_weight 'floor', not "
                f"{self.loss_weight!r}: set that, or leave the floor out"
            )
        check_at_least("diffusion.offset_noise", self.offset_noise, 0)
        if not 0 <= self.first_timestep <= self.last_timestep <= 999:
            raise InputError(
                f"diffusion.first_timestep {self.first_timestep} and last_timestep {self.last_timestep} "
                "must satisfy 0 ≤ first ≤ last ≤ 999"
            )
        check_parameterisation(self.parameterisation, self.zero_terminal_snr)

    def schedule(self) -> NoiseSchedule:
        """The schedule that training and sampling share."""
        from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr

        return zero_terminal_snr(sdxl_schedule()) if self.zero_terminal_snr else sdxl_schedule()

    def loss_weights(self) -> Tensor:
        """Weight of the loss in v units by timestep.

        returns  [T]  float64. A squared error in eps units is alpha² times the one in v units, and in x0 units
        sigma² times; policy `none` has weight 1 in the parameterisation's own units, the MinSNR policies in any.
        """
        import torch

        from refimpl.diffusion.min_snr import min_snr_weight

        schedule = self.schedule()
        if self.loss_weight == "none":
            own = {"v": torch.ones_like(schedule.alpha), "eps": schedule.alpha**2, "x0": schedule.sigma**2}
            return own[self.parameterisation]
        return min_snr_weight(schedule.snr, self.min_snr_gamma, self.loss_weight, self.weight_floor)


def check_parameterisation(parameterisation: str, ends_in_zero_snr: bool = False) -> None:
    """Raises InputError for an unknown parameterisation, or eps-prediction on a schedule ending in zero SNR (N §2.1).

    The message says why.
    """
    if parameterisation not in PARAMETERISATIONS:
        raise InputError(
            f"unknown parameterisation {parameterisation!r}: choose one of {', '.join(PARAMETERISATIONS)}"
        )
    if parameterisation == "eps" and ends_in_zero_snr:
        raise InputError(
            "parameterisation 'eps' cannot be used with a zero-terminal-SNR schedule: at the last timestep "
            "the SNR is 0, so the noise to predict is the input itself and nothing is learned, and "
            "x0 = (x_t - sigma*eps) / alpha divides by alpha = 0. Use parameterisation 'v', or the schedule "
            "without zero_terminal_snr"
        )
