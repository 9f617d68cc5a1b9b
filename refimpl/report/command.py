"""`refimpl figures`: the figures of N that need no trained network."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from refimpl.report.paper_figures import paper_figures


@dataclass(frozen=True)
class FiguresCommand:
    """Draws N Fig. 1, 5 and 8 from the same functions that training uses."""

    out: Path = Path("figures")
    """folder for the PNG files"""


def figures_command(arguments: list[str], program: str = "refimpl figures") -> None:
    """Writes the figures and prints their paths."""
    command = tyro.cli(FiguresCommand, args=arguments, prog=program)
    for path in paper_figures(command.out):
        print(path)
