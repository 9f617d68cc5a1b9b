"""What all samplers share: the state, the estimates and the step from σ = ∞ (N App. A.1, eq. 2, 9, 18).

A first step down from a huge finite level is taken as the step from ∞ is: at first order, without fresh noise, and
outside every sampler's history (`is_jump`).

The state between steps is variance-exploding, y = x0 + σ·n with σ = sigma_edm, and float64, whatever the
dtype of the caller or the network: rounding it once to bfloat16 at σ = 4096 has an rms error of 6.7, and
float16 overflows at 20000. The network is given the variance-preserving x = y/√(1 + σ²) in the caller's dtype.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal, philox4x32
from refimpl.diffusion.preconditioner import alpha_sigma
from refimpl.diffusion.v_prediction import add_noise, eps_from_v, x0_from_v
from refimpl.errors import InputError
from refimpl.sample.grid_checks import check_grid

PredictV = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...] VP, sigma_edm 0-dim float64) -> v [B, ...]
Callback = Callable[[int, Tensor], None]  # (step, x0 estimate [B, ...] float64)
Noise = Callable[[int, Tensor], Tensor]  # (step, like [B, ...]) -> unit normal noise [B, ...]

LARGEST_SIGMA = 1e100  # its square, and a latent's product with it, stay far inside float64
JUMP_RATIO = 10.0  # of the first two levels, from which on the first step is a jump: see `is_jump`


class Step(NamedTuple):
    """One step of a grid from a finite level: sigma_edm goes from sigma down to sigma_next."""

    number: int
    sigma: float
    sigma_next: float


@dataclass(frozen=True)
class Run:
    """A sampling run after the step from ∞ or another jump, if there was one: its first state and its other steps.

    y  [B, ...]  float64, variance-exploding at the level of the first of `steps`; x0 if there are none
    """

    y: Tensor
    steps: list[Step]
    predict_v: PredictV
    dtype: torch.dtype
    callback: Callback | None

    def estimate(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The network's estimates (x0, eps) [B, ...] float64 for the state y at a finite level: y = x0 + σ·eps."""
        alpha, _ = alpha_sigma(sigma)
        return _estimate(self.predict_v, float(alpha) * y, sigma, self.dtype)

    def begin_step(self, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """`estimate` at the start of a step; its x0 is passed to the callback."""
        x0, eps = self.estimate(y, step.sigma)
        if self.callback is not None:
            self.callback(step.number, x0)
        return x0, eps

    def finish(self, y: Tensor) -> Tensor:
        """The state at σ = 0 in the caller's dtype."""
        return y.to(self.dtype)


def is_jump(sigma: float, sigma_next: float) -> bool:
    """Whether the first step of a grid is taken as the step from ∞ is, at first order: always from ∞ itself.

    On a Gaussian of spread s, an Euler step from σ to σ' = σ/ρ keeps (s² + σσ')/√((s² + σ²)(s² + σ'²)) of the exact
    spread: never more than all of it, at least 2√ρ/(1 + ρ). Heun's step averages the slopes at both levels and
    multiplies them by all of σ: at s = σ' it is off by about 0.19·ρ times the spread, without limit (68 for the step
    from 20000 to 56 of N App. A.2, 215 for R's from 20000 to 17.8). Its error at the worst s exceeds 1, which no
    first-order step can be off by, from ρ = 8.7 on. JUMP_RATIO is above that, and above the first ratio of ordinary
    finite grids of four steps or more (5.0 for native on SDXL's schedule, 8.2 for Karras's from 80 to 0.002), on
    which samplers agree with k-diffusion's step for step. Here they deviate on purpose.
    """
    return sigma == math.inf or sigma >= JUMP_RATIO * sigma_next > 0


def begin(predict_v: PredictV, x: Tensor, sigmas: Tensor, callback: Callback | None) -> Run:
    """Check the arguments of a sampler and take the step from ∞, which enters no sampler's history (eq. 18).

    A jump from a huge finite level is taken likewise, by eq. 2.

    x       [B, ...]  variance-preserving at sigmas[0]: unit-variance noise if that is ∞
    sigmas  [n + 1]   a grid
    Raises InputError for an invalid grid, an x that is not floating-point or not finite, or a wrong shape from
    predict_v.
    """
    levels = check_grid(sigmas, "sigmas").tolist()
    if any(LARGEST_SIGMA < level < math.inf for level in levels[:2]):
        raise InputError(f"sigmas: a level is above {LARGEST_SIGMA:g}; use inf as the first level instead.")
    if not x.is_floating_point() or x.ndim == 0:
        raise InputError(f"x: {x.dtype} of shape {list(x.shape)}; give floating-point latents [B, C, H, W].")
    if not x.isfinite().all():
        raise InputError(
            "x holds NaN or inf; give it in variance-preserving form, unit-variance noise for sigma = inf."
        )
    steps = [Step(i, *levels[i : i + 2]) for i in range(len(levels) - 1)]
    state = x.detach().double()
    if is_jump(*levels[:2]):
        x0, n = _estimate(predict_v, state, levels[0], x.dtype)
        if callback is not None:
            callback(0, x0)
        # eq. 2 with (x − D)/σ = n; at ∞ eq. 9, 18: x₁ = σ₁·n + D(n; ∞) = σ₁·n − F(n; ∞), σd = 1
        return Run(levels[1] * n + x0, steps[1:], predict_v, x.dtype, callback)
    alpha, _ = alpha_sigma(levels[0])
    return Run(state / float(alpha), steps, predict_v, x.dtype, callback)


def noise_source(noise: Noise | None, key: Tensor | None, x: Tensor) -> Noise:
    """The noise of a stochastic sampler: the caller's function, or normals keyed by (key, step).

    Given neither, the key is derived from seed 0 and the sample's index in the batch: the same in every run.

    key  [B, 2]  int64 holding uint32, one per sample; step i draws under the first two Philox words of the
                 counter (i, 0, 0, 1), which no draw under the key itself uses. So the sample is the same in any
                 batch, and the same key may also have drawn the initial noise.
    Raises InputError when both are given, or the key's shape does not fit x.
    """
    if noise is not None and key is not None:
        raise InputError(
            "this sampler adds noise and got both noise= and key=. Pass either key=[B, 2] (Philox words, one pair "
            "per sample; see draw_key) or noise=lambda step, like: torch.randn_like(like)."
        )
    if noise is not None:
        return noise
    if key is None:
        key = draw_key(0, torch.arange(len(x)), 0, Purpose.INIT_NOISE)
    words = key.to(x.device)
    if words.shape != (x.shape[0], 2):
        raise InputError(
            f"key: shape {list(key.shape)} for x of shape {list(x.shape)}; give a key [B, 2], one pair per sample."
        )

    def keyed(step: int, like: Tensor) -> Tensor:
        counter = torch.tensor([step, 0, 0, 1], device=like.device)
        step_key = philox4x32(counter.expand(like.shape[0], 4), words)[:, :2]
        values = math.prod(like.shape[1:])  # drawn in contiguous order, so as [C, H, W] for any x [B, ...]
        return keyed_normal(step_key, (1, 1, values)).reshape(like.shape)

    return keyed


def check_eta(eta: float, most: float = math.inf) -> None:
    """Raises InputError unless eta, the fraction of a sampler's noise, is finite and in 0 … most."""
    if not (math.isfinite(eta) and 0 <= eta <= most):
        limit = f"0 to {most:g}" if math.isfinite(most) else "at least 0 and finite"
        raise InputError(f"eta is {eta}; give a number {limit}.")


def draw_noise(source: Noise, step: Step, like: Tensor) -> Tensor:
    """Noise for a step, [B, ...] in like's dtype. Raises InputError when the source returns another shape."""
    z = source(step.number, like)
    if z.shape != like.shape:
        raise InputError(
            f"noise at step {step.number}: shape {list(z.shape)}; the state is {list(like.shape)}."
        )
    return z.to(like)


def sdedit_start(x0: Tensor, noise: Tensor, sigma_edm: float) -> Tensor:
    """A clean latent noised to the level where image-to-image starts (Meng et al. 2022, SDEdit), in VP form.

    x0, noise  [B, ...]; noise has unit variance        sigma_edm  0 to ∞; at ∞ the result is the noise itself
    returns    [B, ...]  alpha·x0 + sigma·noise in x0's dtype: a sampler's x for a grid that starts at sigma_edm
    Raises InputError when the shapes differ or sigma_edm is negative or NaN.
    """
    return add_noise(x0, noise, *alpha_sigma(float(sigma_edm)))


def _estimate(predict_v: PredictV, x: Tensor, sigma_edm: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The estimates (x0, eps) for x, variance-preserving at sigma_edm; at ∞ exactly (−v, x)."""
    v = predict_v(x.to(dtype), torch.tensor(sigma_edm, dtype=torch.float64, device=x.device))
    if v.shape != x.shape:
        raise InputError(
            f"predict_v at sigma_edm {sigma_edm}: returned shape {list(v.shape)} for x of {list(x.shape)}."
        )
    alpha, sigma = alpha_sigma(sigma_edm)
    return x0_from_v(x, v, alpha, sigma), eps_from_v(x, v, alpha, sigma)
