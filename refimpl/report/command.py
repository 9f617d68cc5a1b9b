"""`refimpl figures`: the figures of N that need no trained network, and those of measured latents."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from refimpl.report.measured_latents import measured_figures
from refimpl.report.paper_figures import paper_figures


@dataclass(frozen=True)
class FiguresCommand:
    """Draws N Fig. 1, 5 and 8 from the same functions that training uses; or what `refimpl stats` measured."""

    out: Path = Path("figures")
    """folder for the PNG files"""
    statistics: Path | None = None
    """preset of `refimpl stats`: draws its channels before and after standardising, as N Fig. 8, and how the numbers
    settled, instead of the paper's figures"""


def figures_command(arguments: list[str], program: str = "refimpl figures") -> None:
    """Writes the figures and prints their paths."""
    command = tyro.cli(FiguresCommand, args=arguments, prog=program)
    paths = (
        measured_figures(command.statistics, command.out)
        if command.statistics
        else paper_figures(command.out)
    )
    for path in paths:
        print(path)
