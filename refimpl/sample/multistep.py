"""Multistep samplers: DPM-Solver++ (Lu et al. 2023) and UniPC (Zhao et al. 2023).

Written for the variance-exploding state, in which the papers' x_t/α_t is y and λ = −ln σ. The step from ∞
stays out of the history (N App. A.1): its step size is infinite, so its weight would be 0. All of them
extrapolate by the ratio of neighbouring step sizes, so a grid with two nearly equal levels amplifies whatever the
network, or fresh noise, changed between them.
"""

import math

import torch
from torch import Tensor

from refimpl.sample.stepping import Callback, Noise, PredictV, begin, check_eta, draw_noise, noise_source


@torch.no_grad()
def dpmpp_2m(predict_v: PredictV, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M): second order from the last two estimates (Lu et al. 2023, alg. 2).

    The first step and the step to σ = 0 are first order. Arguments, result and errors as in `euler`.
    """
    run = begin(predict_v, x, sigmas, callback)
    y, x0_last, h_last = run.y, None, math.nan
    for step in run.steps:
        x0, _ = run.begin_step(y, step)
        if step.sigma_next == 0:
            y = x0
            continue
        h = math.log(step.sigma / step.sigma_next)
        x0_ahead = x0
        if x0_last is not None:
            r = h_last / h
            # alg. 2: D = (1 + 1/2r)·x0_i − 1/2r·x0_{i−1}
            x0_ahead = x0 + (x0 - x0_last) / (2 * r)
        # alg. 2: x = (σ'/σ)·x − (e^−h − 1)·D
        y = step.sigma_next / step.sigma * y - math.expm1(-h) * x0_ahead
        x0_last, h_last = x0, h
    return run.finish(y)


@torch.no_grad()
def dpmpp_2m_sde(
    predict_v: PredictV,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    key: Tensor | None = None,
    eta: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M), midpoint form (Lu et al. 2023, §5 and App. B.3), with k-diffusion's eta.

    eta  at least 0: 1 is the paper's SDE; 0 is `dpmpp_2m` and draws no noise
    Other arguments, result and errors as in `euler_ancestral`.
    """
    check_eta(eta)
    run = begin(predict_v, x, sigmas, callback)
    source = noise_source(noise, key, x) if eta else None
    y, x0_last, h_last = run.y, None, math.nan
    for step in run.steps:
        x0, _ = run.begin_step(y, step)
        if step.sigma_next == 0:
            y = x0
            continue
        h = math.log(step.sigma / step.sigma_next)
        gain = -math.expm1(-h - eta * h)  # 1 − e^(−(1 + η)h); the paper's 1 − e^−2h at η = 1
        y = step.sigma_next / step.sigma * math.exp(-eta * h) * y + gain * x0
        if x0_last is not None:
            y = y + gain * h / (2 * h_last) * (x0 - x0_last)
        if source is not None:
            z = draw_noise(source, step, y)
            y = y + step.sigma_next * math.sqrt(-math.expm1(-2 * eta * h)) * z
        x0_last, h_last = x0, h
    return run.finish(y)


@torch.no_grad()
def unipc(predict_v: PredictV, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """UniPC-2 for data prediction, B(h) = e^h − 1 (Zhao et al. 2023, alg. 1–2 and App. of B_2).

    Each estimate first corrects the step that led to it (UniC), then predicts the next one (UniP), with one
    network call per step. Arguments, result and errors as in `euler`.
    """
    run = begin(predict_v, x, sigmas, callback)
    y = run.y
    y_last, taken = run.y, []  # the state that the last step left, and (−ln σ, x0) of the steps so far
    order = 0  # of the last prediction
    for step in run.steps:
        m, _ = run.begin_step(y, step)
        lam = -math.log(step.sigma)
        if order:
            y = _unic(y_last, taken, lam, m, order)
        taken = [*taken[-1:], (lam, m)]
        if step.sigma_next == 0:
            y = m
            continue
        order = min(len(taken), 2)
        y_last = y
        y = _unip(y_last, taken, -math.log(step.sigma_next), order)
    return run.finish(y)


def _unip(y: Tensor, taken: list[tuple[float, Tensor]], lam_next: float, order: int) -> Tensor:
    """UniP of order 1 or 2, from y at the last entry of `taken` to −ln σ = lam_next."""
    lam, m = taken[-1]
    h = lam_next - lam
    b = math.expm1(-h)
    first_order = math.exp(-h) * y - b * m
    if order == 1:
        return first_order
    lam_last, m_last = taken[-2]
    r = (lam_last - lam) / h
    return first_order - b * (m_last - m) / (2 * r)


def _unic(
    y: Tensor, taken: list[tuple[float, Tensor]], lam_next: float, m_next: Tensor, order: int
) -> Tensor:
    """UniC of order 1 or 2: the step from y at the last entry of `taken`, using the estimate m_next at its end."""
    lam, m = taken[-1]
    h = lam_next - lam
    b = math.expm1(-h)
    first_order = math.exp(-h) * y - b * m
    if order == 1:
        return first_order - b * (m_next - m) / 2
    lam_last, m_last = taken[-2]
    r = (lam_last - lam) / h
    # R·ρ = g with R = [[1, 1], [r, 1]]
    phi_2 = b / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    g_1, g_2 = phi_2 / b, 2 * phi_3 / b
    rho_1 = (g_1 - g_2) / (1 - r)
    rho_2 = g_1 - rho_1
    return first_order - b * (rho_1 * (m_last - m) / r + rho_2 * (m_next - m))
