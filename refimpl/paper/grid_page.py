"""The tables of docs/grids.md: R, covariance errors and orders of convergence of grids and samplers (N §2.3)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.paper.exact_posteriors import (
    BIMODAL,
    STDS,
    canvas_spread,
    gaussian_covariance,
    kept_by_exact_flow,
    kept_spread,
    mixture_covariance,
    order_of_convergence,
)
from refimpl.sample.grids import GRIDS, grid_by_name, with_terminal
from refimpl.sample.samplers import SAMPLERS

STEPS = 28  # N §2.3
CANVASES = {"512×512": (64, 64), "832×1216": (104, 152), "1024×1024": (128, 128), "2048×2048": (256, 256)}
SHOWN_CANVAS = "832×1216"  # whose table has all samplers
PROMISED = 0.95  # R of the grid `canvas`
MOST_EULER_STEPS = 200
LISTED_STEPS = {"community_trainer": 10}  # of the grid of a fixed length
NAMED = tuple(f"{name} {STEPS}" for name in ("native", "trailing", "karras", "exponential"))  # others' grids
WITHOUT_LAST = f"native {STEPS} without its last level"

Numbers = dict[str, Any]


def grid_numbers() -> Numbers:
    """All numbers of the page, computed by the samplers themselves; takes some seconds.

    returns  R: canvas → grid → first_level, exact_flow and each sampler; covariance: grid → sampler → posterior,
             over the data's; order: sampler → order of convergence; euler_steps: canvas → the fewest steps with
             which Euler keeps PROMISED of the spread on the grid `canvas`
    """
    kept = _kept_on_canvases()
    measured = _grids(CANVASES[SHOWN_CANVAS])
    native = measured[f"native {STEPS}"]
    measured[WITHOUT_LAST] = torch.cat([native[:-2], native[-1:]])
    return {
        "R": kept,
        "covariance": {
            grid: {sampler: _covariance(sampler, sigmas) for sampler in SAMPLERS}
            for grid, sigmas in measured.items()
        },
        "order": {sampler: order_of_convergence(sampler) for sampler in SAMPLERS},
        "euler_steps": {name: _fewest_steps("euler", *size) for name, size in CANVASES.items()},
    }


def worst_covariance(by_posterior: dict[str, float]) -> float:
    """The covariance ratio that is the farthest from 1."""
    return max(by_posterior.values(), key=lambda ratio: abs(ratio - 1))


def grid_tables(numbers: Numbers) -> dict[str, str]:
    """The tables of the page by name, as Markdown."""
    kept, covariance = numbers["R"], numbers["covariance"]
    shown = kept[SHOWN_CANVAS]
    grids = list(shown)
    posteriors = list(covariance[grids[0]]["euler"])
    euler, second = "euler", "dpmpp_2m"
    return {
        "R by sampler": _table(
            ("grid and steps", "σ₁", "exact flow", *SAMPLERS),
            grids,
            lambda grid: (
                [f"{shown[grid]['first_level']:.4g}"]
                + [f"{shown[grid][name]:.3f}" for name in ("exact_flow", *SAMPLERS)]
            ),
        ),
        "R by canvas": _table(
            ("grid and steps", *CANVASES),
            grids,
            lambda grid: [f"{kept[c][grid][euler]:.3f} / {kept[c][grid][second]:.3f}" for c in CANVASES],
        ),
        "Euler steps": _table(
            ("", *CANVASES), ["steps"], lambda _: [str(numbers["euler_steps"][c]) for c in CANVASES]
        ),
        "covariance by sampler": _table(
            ("grid and steps", *SAMPLERS),
            grids,
            lambda grid: [f"{worst_covariance(covariance[grid][name]):.2f}" for name in SAMPLERS],
        ),
        "covariance of canvas and of the best": _table(
            ("sampler", *posteriors), list(SAMPLERS), lambda name: _beside_the_best(covariance, name)
        ),
        "covariance of dpmpp_2m_sde": _table(
            ("grid and steps", *posteriors),
            [*grids, WITHOUT_LAST],
            lambda grid: [f"{value:.2f}" for value in covariance[grid]["dpmpp_2m_sde"].values()],
        ),
        "order": _table(("sampler", "order"), list(SAMPLERS), lambda name: [f"{numbers['order'][name]:.1f}"]),
    }


def _grids(size: tuple[int, int]) -> dict[str, Tensor]:
    """The grids of the page for a latent canvas, by name and steps."""
    schedule = zero_terminal_snr(sdxl_schedule())
    kinds = [(name, LISTED_STEPS.get(name, STEPS)) for name in GRIDS if name != "leading"]  # refused from ∞
    grids = {
        f"{name} {steps}": grid_by_name(name, schedule, steps, latent_size=size)
        for name, steps in [*kinds, ("native", 50), ("canvas", 50)]
    }
    return grids | {f"native {STEPS} from 20000": with_terminal(grids[f"native {STEPS}"], "20000")}


def _kept_on_canvases() -> dict[str, dict[str, dict[str, float]]]:
    """R by canvas, grid and sampler. A grid that is the same on every canvas is sampled once for all of them."""
    by_canvas = {name: _grids(size) for name, size in CANVASES.items()}
    kept: dict[str, dict[str, dict[str, float]]] = {name: {} for name in CANVASES}
    for grid, shown in by_canvas[SHOWN_CANVAS].items():
        is_shared = all(torch.equal(grids[grid], shown) for grids in by_canvas.values())
        together = [list(CANVASES)] if is_shared else [[name] for name in CANVASES]
        for names in together:
            sigmas, sizes = by_canvas[names[0]][grid], [CANVASES[name] for name in names]
            for name, size in zip(names, sizes, strict=True):
                ends = {"first_level": float(sigmas[1]), "exact_flow": kept_by_exact_flow(sigmas, *size)}
                kept[name][grid] = ends
            for sampler in SAMPLERS:
                variances = gaussian_covariance(
                    sampler, sigmas, [canvas_spread(*size) ** 2 for size in sizes]
                )
                for name, variance in zip(names, variances, strict=True):
                    kept[name][grid][sampler] = math.sqrt(variance)
    return kept


def _covariance(sampler: str, sigmas: Tensor) -> dict[str, float]:
    gaussians = gaussian_covariance(sampler, sigmas, [std**2 for std in STDS])
    names = [f"std {std:g}" for std in STDS]
    mixture = {f"mixture, ±{BIMODAL.offset:g}, std {BIMODAL.std:g}": mixture_covariance(sampler, sigmas)}
    return dict(zip(names, gaussians, strict=True)) | mixture


def _beside_the_best(covariance: Numbers, sampler: str) -> list[str]:
    """A sampler's covariance ratios on `canvas`, by posterior, and on the one of NAMED that is nearest to 1."""
    cells = []
    for posterior, ratio in covariance[f"canvas {STEPS}"][sampler].items():
        best = min((covariance[grid][sampler][posterior] for grid in NAMED), key=lambda each: abs(each - 1))
        cells.append(f"{ratio:.3f} / {best:.3f}")
    return cells


def _fewest_steps(sampler: str, height: int, width: int) -> int:
    """The fewest steps of the grid `canvas` with which R is at least PROMISED; R grows with the steps."""
    schedule = zero_terminal_snr(sdxl_schedule())
    low, high = 1, MOST_EULER_STEPS
    while high - low > 1:
        middle = (low + high) // 2
        sigmas = grid_by_name("canvas", schedule, middle, latent_size=(height, width))
        if kept_spread(sampler, sigmas, height, width) >= PROMISED:
            high = middle
        else:
            low = middle
    return high


def _table(head: Sequence[str], rows: Sequence[str], cells: Callable[[str], list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([row, *cells(row)] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
