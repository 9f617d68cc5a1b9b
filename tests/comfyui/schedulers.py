"""ComfyUI's schedulers by what they do, written for these tests: levels [steps + 1] from a model-sampling object."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

RHO = 7.0
SHAPE = 0.6  # of the beta scheduler's distribution, both parameters
THRESHOLD = 0.025  # noise removed by the linear half of linear_quadratic


def _ended(levels: Any) -> Tensor:
    """The levels, float32, and the 0 that ends them."""
    return torch.tensor([*map(float, levels), 0.0])


def _ends(sampling: Any) -> tuple[float, float]:
    return float(sampling.sigma_max), float(sampling.sigma_min)


def _even_timesteps(sampling: Any, count: int) -> Tensor:
    high, low = (float(sampling.timestep(torch.tensor(end))) for end in _ends(sampling))
    return torch.linspace(high, low, count)


def simple(sampling: Any, steps: int) -> Tensor:
    """Every (T/steps)-th level of the table, counted from its last."""
    table = sampling.sigmas
    return _ended([table[-1 - int(i * len(table) / steps)] for i in range(steps)])


def normal(sampling: Any, steps: int) -> Tensor:
    """Levels at evenly spaced timesteps, both ends included."""
    return _ended([sampling.sigma(t) for t in _even_timesteps(sampling, steps)])


def sgm_uniform(sampling: Any, steps: int) -> Tensor:
    """Levels at evenly spaced timesteps without the first one."""
    return _ended([sampling.sigma(t) for t in _even_timesteps(sampling, steps + 1)[:-1]])


def ddim_uniform(sampling: Any, steps: int) -> Tensor:
    """Every (T//steps)-th level of the table, counted from its second."""
    stride = max(len(sampling.sigmas) // steps, 1)
    return _ended(sampling.sigmas[1::stride].flip(0))


def beta_quantiles(sampling: Any, steps: int) -> Tensor:
    """Levels of the table at quantiles of a beta distribution, each once."""
    last = len(sampling.sigmas) - 1
    indices = np.rint(beta.ppf(1 - np.arange(steps) / steps, SHAPE, SHAPE) * last).astype(int)
    return _ended([sampling.sigmas[i] for i in dict.fromkeys(indices.tolist())])


def kl_optimal(sampling: Any, steps: int) -> Tensor:
    """Even in the arctangent of the level, in float32."""
    high, low = map(math.atan, _ends(sampling))
    part = torch.arange(steps, dtype=torch.float32) / (steps - 1)
    return _ended((part * low + (1 - part) * high).tan())


def karras(sampling: Any, steps: int) -> Tensor:
    """Even in the seventh root of the level, in float32."""
    high, low = (end ** (1 / RHO) for end in _ends(sampling))
    return _ended((high + torch.linspace(0, 1, steps) * (low - high)) ** RHO)


def exponential(sampling: Any, steps: int) -> Tensor:
    """Even in the logarithm of the level, in float32."""
    high, low = map(math.log, _ends(sampling))
    return _ended(torch.linspace(high, low, steps).exp())


def linear_quadratic(sampling: Any, steps: int) -> Tensor:
    """Linear from 1 to 1 − THRESHOLD over half of the steps, then a parabola of equal slope down to 0."""
    half = steps // 2
    rest = steps - half
    slope = THRESHOLD / half
    i = np.arange(steps + 1, dtype=np.float64)
    past = np.maximum(i - half, 0)
    removed = slope * i + past**2 * (1 - THRESHOLD - slope * rest) / rest**2
    return torch.as_tensor((1 - removed) * _ends(sampling)[0]).float()


SCHEDULERS: dict[str, Callable[[Any, int], Tensor]] = {
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "karras": karras,
    "exponential": exponential,
    "ddim_uniform": ddim_uniform,
    "beta": beta_quantiles,
    "normal": normal,
    "linear_quadratic": linear_quadratic,
    "kl_optimal": kl_optimal,
}
