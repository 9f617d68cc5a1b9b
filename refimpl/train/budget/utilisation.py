"""How much of a card's peak arithmetic a run uses (Chowdhery et al. 2022, "PaLM", §4.1: model FLOPs utilisation)."""

from collections.abc import Callable

import torch

from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.train.budget.cards import peak_flops
from refimpl.train.budget.flops import bucket_flops


def utilisation(config: Config, world: World) -> Callable[[tuple[int, int], float], float | None]:
    """The share of the cards' peak that training at a bucket and a speed uses.

    returns  (bucket (width, height) in px, images per second of all ranks) → share, 0 to 1; None on the CPU, on
             cards whose peak is not known, and in fp32, which uses no tensor cores
    """
    on_gpu = world.device.type == "cuda"
    peak = peak_flops(torch.cuda.get_device_name(world.device), config.train.precision) if on_gpu else None

    def share(bucket: tuple[int, int], images_per_second: float) -> float | None:
        return None if peak is None else images_per_second / world.size * bucket_flops(config, bucket) / peak

    return share
