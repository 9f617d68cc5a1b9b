"""Samplers, one function each (N App. A.1; Karras et al. 2022, alg. 1–2; Song et al. 2021, eq. 12).

Each takes x in variance-preserving form at sigmas[0] (unit-variance noise at ∞) and returns the clean latent.
From ∞ the first step is N eq. 18 for every sampler, including stochastic ones: the paper switches to the
conventional sampler after it. The last step, to σ = 0, returns the denoised estimate itself.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from refimpl.diffusion.preconditioner import alpha_sigma
from refimpl.errors import InputError
from refimpl.names import nearest
from refimpl.sample.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from refimpl.sample.stepping import Callback, Noise, PredictV, begin, check_eta, draw_noise, noise_source


@torch.no_grad()
def euler(predict_v: PredictV, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """Euler steps of the probability-flow ODE in sigma_edm (N eq. 2; Karras et al. 2022, alg. 1).

    predict_v  (x [B, ...] VP in x's dtype, sigma_edm 0-dim float64) -> v [B, ...], any floating-point dtype
    x          [B, ...]  VP form at sigmas[0]: unit-variance noise at ∞, `sdedit_start` at a finite level
    sigmas     [n + 1]   a grid from `refimpl.sample.grids`
    callback   called with (step, x0 estimate [B, ...] float64) once per step
    returns    [B, ...]  clean latent x0 in x's dtype
    Raises InputError for an invalid grid or x, or a wrong shape from predict_v.
    """
    run = begin(predict_v, x, sigmas, callback)
    y = run.y
    for step in run.steps:
        x0, eps = run.begin_step(y, step)
        # eq. 2 with (x − D)/σ = eps and x = D + σ·eps: no cancellation at any σ, and exact at σ' = 0
        y = x0 + step.sigma_next * eps
    return run.finish(y)


@torch.no_grad()
def euler_ancestral(
    predict_v: PredictV,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    key: Tensor | None = None,
    eta: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Euler steps to below the next level, plus noise up to it (DDPM's ancestral variance, Ho et al. 2020).

    noise  (step, like [B, ...]) -> unit normal noise [B, ...]; or else
    key    [B, 2]  int64 holding uint32: keyed noise, which does not depend on the batch. If neither is given,
           a sample's key is its index in the batch: the same noise in every run
    eta    0 to 1: the fraction of the ancestral noise that is added; 0 is `euler` and draws none
    Other arguments, result and errors as in `euler`; also raises InputError when both noise and key are given.
    """
    check_eta(eta, most=1)
    run = begin(predict_v, x, sigmas, callback)
    source = noise_source(noise, key, x) if eta else None
    y = run.y
    for step in run.steps:
        x0, eps = run.begin_step(y, step)
        up = eta * step.sigma_next * math.sqrt(1 - (step.sigma_next / step.sigma) ** 2)
        down = math.sqrt(step.sigma_next**2 - up**2)
        y = x0 + down * eps
        if source is not None and up > 0:
            y = y + up * draw_noise(source, step, y)
    return run.finish(y)


@torch.no_grad()
def heun(predict_v: PredictV, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """Heun's second-order steps, two network calls each except for the last (Karras et al. 2022, alg. 1).

    Arguments, result and errors as in `euler`.
    """
    run = begin(predict_v, x, sigmas, callback)
    y = run.y
    for step in run.steps:
        x0, d = run.begin_step(y, step)  # alg. 1: d = (x − D)/σ, which is eps
        if step.sigma_next == 0:
            y = x0
            continue
        # alg. 1: the Euler step, then the step again with the mean of the slopes at its two ends
        _, d_next = run.estimate(x0 + step.sigma_next * d, step.sigma_next)
        y = y + (step.sigma_next - step.sigma) * (d + d_next) / 2
    return run.finish(y)


@torch.no_grad()
def ddim(
    predict_v: PredictV,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    key: Tensor | None = None,
    eta: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16), in its own variance-preserving form.

    In exact arithmetic it equals `euler` for eta = 0 and `euler_ancestral` for eta > 0.
    eta  0 to 1; above 0, noise is drawn from noise or key
    Other arguments, result and errors as in `euler_ancestral`.
    """
    check_eta(eta, most=1)
    run = begin(predict_v, x, sigmas, callback)
    source = noise_source(noise, key, x) if eta else None
    y = run.y
    for step in run.steps:
        x0, eps = run.begin_step(y, step)
        alpha, sigma = (float(part) for part in alpha_sigma(step.sigma))
        alpha_next, sigma_next = (float(part) for part in alpha_sigma(step.sigma_next))
        # eq. 16: the standard deviation of the fresh noise at the next level
        s = eta * sigma_next / sigma * math.sqrt(1 - (alpha / alpha_next) ** 2)
        # eq. 12: the predicted x0, the direction pointing to x_t, and the fresh noise
        x_next = alpha_next * x0 + math.sqrt(max(sigma_next**2 - s**2, 0.0)) * eps
        if source is not None and s > 0:
            x_next = x_next + s * draw_noise(source, step, y)
        y = x_next / alpha_next
    return run.finish(y)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}
STOCHASTIC = frozenset({"euler_ancestral", "dpmpp_2m_sde"})  # with their default eta


def sample_by_name(
    name: str,
    predict_v: PredictV,
    x: Tensor,
    sigmas: Tensor,
    key: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Runs the sampler of that name with its defaults, as configurations and the command line do.

    key  [B, 2]  for the samplers in STOCHASTIC; the others draw no noise and ignore it
    Raises InputError for an unknown name (naming the nearest); other arguments and errors as in `euler`.
    """
    if name not in SAMPLERS:
        raise InputError(
            f"sampler {name!r} is unknown; did you mean {nearest(name, SAMPLERS)[0]!r}? Known: {', '.join(SAMPLERS)}."
        )
    if name in STOCHASTIC:
        return SAMPLERS[name](predict_v, x, sigmas, key=key, callback=callback)
    return SAMPLERS[name](predict_v, x, sigmas, callback=callback)
