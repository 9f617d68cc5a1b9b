"""`refimpl figures`: N's figures that need no trained network, those of a run, and those of measured latents."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from refimpl.errors import InputError


@dataclass(frozen=True)
class FiguresCommand:
    """Draws N Fig. 1, 5 and 8 from the same functions that training uses; or what a run or `refimpl stats` shows."""

    out: Path = Path("figures")
    """folder for the PNG files"""
    run: Path | None = None
    """run folder or checkpoint: draws N Fig. 2, 3, 4, 6 and 7 as experiments on it, instead of the paper's figures"""
    weights: str = "ema"
    """of the run: ema (moving average) or unet (as trained)"""
    statistics: Path | None = None
    """preset of `refimpl stats`: draws its channels before and after standardising, as N Fig. 8, and how the numbers
    settled, instead of the paper's figures"""


def figures_command(arguments: list[str], program: str = "refimpl figures") -> None:
    """Writes the figures and prints their paths."""
    command = tyro.cli(FiguresCommand, args=arguments, prog=program)
    if command.run and command.statistics:
        raise InputError("--run and --statistics name two kinds of figures; give one of them")
    from refimpl.paper.experiments import run_figures
    from refimpl.report.measured_latents import measured_figures
    from refimpl.report.paper_figures import paper_figures

    if command.run:
        paths = run_figures(command.run, command.out, command.weights)
    elif command.statistics:
        paths = measured_figures(command.statistics, command.out)
    else:
        paths = paper_figures(command.out)
    for path in paths:
        print(path)
