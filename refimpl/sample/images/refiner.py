"""The refiner: a second network for the lowest noise levels (S §2.5), by SDEdit or for the last sampling steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refimpl.checks import check_choice
from refimpl.data.crop import SizeInts
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal
from refimpl.errors import InputError
from refimpl.model.pipeline import Model
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import grid_by_name, start_at
from refimpl.sample.images.guided_network import guided_network
from refimpl.sample.samplers import sample_by_name
from refimpl.sample.stepping import PredictV, sdedit_start

MODES = ("sdedit", "last")


@dataclass(frozen=True)
class Refiner:
    """A refiner and how it is applied.

    Raises InputError when it would start above the timesteps that it was trained on.
    """

    model: Model
    mode: str = "sdedit"
    """sdedit: the finished latents are noised and denoised again; last: it takes over the last steps of the grid"""
    share: float | None = None
    """fraction of the schedule's noise scales, from the lowest, that it works on: 0.2 is t < 200; None for all that
    it was trained on"""

    def __post_init__(self) -> None:
        check_choice("refiner mode", self.mode, MODES)
        last = self.model.diffusion.last_timestep
        if self.share is not None and not 0 < self.timestep <= last:
            raise InputError(
                f"the refiner cannot start at {self.share} of the noise scales, t = {self.timestep:g}: it was "
                f"trained up to t = {last}; give above 0.001 and up to {(last + 1) / 1000:g}"
            )

    @property
    def timestep(self) -> float:
        """The timestep from which it is applied, inclusive."""
        if self.share is None:
            return float(self.model.diffusion.last_timestep)
        return self.share * self.model.diffusion.schedule().timesteps - 1

    @property
    def sigma_edm(self) -> float:
        """The noise level at that timestep in the refiner's own schedule."""
        return float(self.model.diffusion.schedule().t_to_sigma_edm(self.timestep))


def check_same_latents(base: Model, refiner: Model) -> None:
    """Raises InputError unless both networks work in the same latents."""
    if base.scale_shift != refiner.scale_shift:
        raise InputError(
            f"the refiner's latents are scaled by {refiner.scale_shift}, the base's by {base.scale_shift}; a refiner "
            "works in the latents of its base: train both with one latents.scale_shift"
        )


def finished_by_refiner(base: PredictV, refiner: PredictV, sigma_edm: float) -> PredictV:
    """One network from two: the base above a noise level, the refiner at and below it (S §2.5; Balaji et al. 2022).

    Samplers need no change at the switch: both networks' outputs are read as v, so the history stays valid.
    """

    def predict_v(x: Tensor, level: Tensor) -> Tensor:
        return base(x, level) if float(level) > sigma_edm else refiner(x, level)

    return predict_v


@torch.no_grad()
def refined(
    refiner: Refiner,
    x0: Tensor,
    prompts: Sequence[str],
    ids: Tensor,
    numbers: Tensor,
    size: SizeInts,
    config: SampleConfig,
) -> Tensor:
    """Latents noised to the refiner's first noise level and denoised by it, with the same text (S §2.5, SDEdit).

    x0            [B, C, h, w]  the base's latents
    ids, numbers  [B]  sample id and number of each image, which key its noise
    returns       [B, C, h, w]
    """
    schedule = refiner.model.diffusion.schedule()
    height, width = x0.shape[-2:]
    grid = grid_by_name(config.grid, schedule, config.steps, latent_size=(height, width))
    sigmas = start_at(grid, refiner.sigma_edm)
    key = draw_key(config.seed, ids, numbers, Purpose.REFINER_NOISE)
    noise = keyed_normal(key, tuple(x0.shape[1:])).to(x0)
    predict_v = guided_network(refiner.model, prompts, size, config)
    return sample_by_name(
        config.sampler, predict_v, sdedit_start(x0, noise, float(sigmas[0])), sigmas, key=key
    )
