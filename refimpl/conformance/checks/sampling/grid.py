"""The noise levels of sampling (N §2.3, Fig. 5; Lin et al. 2023, §3.3; Karras et al. 2022, eq. 5)."""

import math

import torch
from hypothesis import strategies as st

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import NATIVE_SECOND, ratio_error
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import NotOffered, number

KINDS = ("native", "trailing", "leading", "karras", "exponential", "laplace")
kinds = st.sampled_from(KINDS)
LIN = "N §2.3; Lin et al. 2023, §3.3"
STEPS = 28  # N §2.3
LOWEST = 0.029167158151720367  # sigma_edm of t = 0 in float64


def _offered(peer: Guarded, kind: str, n: int) -> torch.Tensor | None:
    try:
        return peer.grid(kind, n)
    except NotOffered:
        return None


def _all(peer: Guarded, n: int) -> dict[str, torch.Tensor]:
    grids = {kind: grid for kind in KINDS if (grid := _offered(peer, kind, n)) is not None}
    if not grids:
        raise NotOffered("grid of any kind")
    return grids


def _lengths(peer: Guarded, kind: str, last: int) -> Measured:
    wrong = [n for n in range(1, last + 1) if len(peer.grid(kind, n)) != n + 1]
    shown = f"{len(wrong)} of {last} n" + (f", the first {wrong[0]}" if wrong else "")
    return Measured(len(wrong), shown)


@check(cites=LIN, unit="of 1000 n", limit=0)
def trailing_length(peer: Guarded) -> Measured:
    """Trailing spacing gives n levels and the final 0 for every n of 1 … 1000."""
    return _lengths(peer, "trailing", 1000)


@check(cites="n steps asked for are n steps", unit="entries", limit=0, n=draws.step_counts)
def length(peer: Guarded, n: int) -> Measured:
    """Every grid has n levels and the final 0."""
    errors = {kind: abs(len(grid) - n - 1) for kind, grid in _all(peer, n).items()}
    kind = max(errors, key=lambda name: errors[name])
    return Measured(
        errors[kind], f"{kind}: {len(peer.grid(kind, n)) - 1} steps for n = {n}" if errors[kind] else ""
    )


@check(cites="N §2.3: a grid ends in the clean image", unit="sigma_edm", limit=0, n=draws.step_counts)
def ends_in_zero(peer: Guarded, n: int) -> Measured:
    """Every grid ends in 0."""
    ends = {kind: float(grid[-1]) if len(grid) else math.nan for kind, grid in _all(peer, n).items()}
    kind = max(ends, key=lambda name: ends[name])
    return Measured(ends[kind], f"{kind} ends in {number(ends[kind])}" if ends[kind] else "")


@check(cites="a step that removes no noise is none", unit="entries", limit=0, n=st.integers(2, 60))
def decreases(peer: Guarded, n: int) -> Measured:
    """Every grid decreases strictly, up to 60 steps."""
    stalls = {kind: int((~(grid[1:] < grid[:-1])).sum()) for kind, grid in _all(peer, n).items()}
    kind = max(stalls, key=lambda name: stalls[name])
    return Measured(stalls[kind], f"{kind}: {stalls[kind]} of {n} steps" if stalls[kind] else "")


def _start(peer: Guarded, kind: str) -> Measured:
    grid = peer.grid(kind, STEPS)
    first = float(grid[0]) if len(grid) else math.nan
    # how far the noise that sampling starts from is taken for a noisy image: alpha at its level
    share = math.nan if math.isnan(first) else 1 / math.hypot(1, first)
    steps = f", {len(grid) - 1} steps" if len(grid) != STEPS + 1 else ""
    return Measured(
        share, f"starts at sigma_edm {number(round(first, 1)) if first < 1000 else f'{first:.8g}'}{steps}"
    )


@check(cites=LIN, unit="alpha of the first level", limit=0)
def native_start(peer: Guarded) -> Measured:
    """28 native steps start at pure noise, as the schedule ends there."""
    return _start(peer, "native")


@check(cites=LIN, unit="alpha of the first level", limit=0)
def trailing_start(peer: Guarded) -> Measured:
    """28 trailing steps start at pure noise, as the schedule ends there."""
    return _start(peer, "trailing")


@check(cites="Lin et al. 2023, §3.3, Tab. 2", unit="alpha of the first level", limit=0)
def leading_start(peer: Guarded) -> Measured:
    """28 leading steps start at pure noise; leading spacing skips it, so it fits no zero-SNR schedule."""
    return _start(peer, "leading")


@check(cites="N §2.3, Fig. 4", unit="relative", limit=1e-3)
def native_second(peer: Guarded) -> Measured:
    """The second of 28 native levels is the σ = 56 of N Fig. 4: uniform spacing of timesteps from 999 to 0."""
    second = peer.grid("native", STEPS)[1:2]
    return Measured(
        ratio_error(second, torch.tensor([NATIVE_SECOND], dtype=torch.float64)), f"{number(float(second))}"
    )


def _spacing(peer: Guarded, kind: str, n: int, power: float) -> float:
    """Largest deviation of the levels' spacing from uniform, in σ^power, or in log σ for 0; between their ends."""
    grid = peer.grid(kind, n)[:-1]
    levels = grid[1:] if len(grid) and math.isinf(float(grid[0])) else grid
    if len(levels) < 3:
        return 0.0
    ramp = levels.log() if power == 0 else levels**power
    even = torch.linspace(0, 1, len(ramp), dtype=torch.float64) * (ramp[-1] - ramp[0]) + ramp[0]
    exact = even.exp() if power == 0 else even ** (1 / power)
    return ratio_error(levels, exact)


@check(cites="Karras et al. 2022, eq. 5", unit="relative", limit=1e-4, n=draws.step_counts)
def karras_spacing(peer: Guarded, n: int) -> float:
    """Karras's finite levels are evenly spaced in σ^(1/7)."""
    return _spacing(peer, "karras", n, 1 / 7)


@check(cites="Karras et al. 2022, eq. 5 for ρ → ∞", unit="relative", limit=1e-4, n=draws.step_counts)
def exponential_spacing(peer: Guarded, n: int) -> float:
    """Exponential's finite levels are evenly spaced in log σ."""
    return _spacing(peer, "exponential", n, 0)


@check(cites="S §2.5", unit="relative", kind="choice")
def lowest_level(peer: Guarded) -> Measured:
    """The last level before 0, of 28 native steps: the schedule's first, 0.0292, or another."""
    grid = peer.grid("native", STEPS)
    level = grid[-2:-1] if len(grid) > 1 else grid[:0]
    return Measured(ratio_error(level, torch.full_like(level, LOWEST)), number(float(level)))
