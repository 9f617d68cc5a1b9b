"""`refimpl figures`: N's figures that need no trained network, those of a run, and those of measured latents."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from refimpl.errors import InputError

if TYPE_CHECKING:
    from refimpl.paper.experiments import Experiment


@dataclass(frozen=True)
class FiguresCommand:
    """Draws N's figures with the functions that training and sampling use, or those of a run or of `refimpl stats`.

    Fig. 2, 3, 4, 6 and 7 need trained networks: five small ones are trained, which takes about two minutes each on
    one core, and kept for the next call. With the figures come their numbers, and grids.md and grids.json: what each
    grid and sampler makes of exactly known data.
    """

    out: Path = Path("figures")
    """Folder for the files."""
    run: Path | None = None
    """Run folder or checkpoint: draws N Fig. 2, 3, 4, 6 and 7 as experiments on it, instead of the paper's
    figures."""
    untrained: bool = False
    """Draw only the figures that need no trained network: N Fig. 1, 5 and 8, and the grids."""
    weights: str = "ema"
    """Weights of the run to use: ema (moving average) or unet (as trained)."""
    statistics: Path | None = None
    """Preset written by `refimpl stats`: draws its channels before and after standardising, as in N Fig. 8, and how
    the numbers settled, instead of the paper's figures."""


def figures_command(arguments: list[str], program: str = "refimpl figures") -> None:
    """Writes the figures and prints their paths."""
    command = tyro.cli(FiguresCommand, args=arguments, prog=program)
    if command.run and command.statistics:
        raise InputError("--run and --statistics name two kinds of figures; give one of them")
    from refimpl.report.measured_latents import measured_figures
    from refimpl.report.paper_figures import paper_figures

    if command.run:
        paths = run_figures(command.run, command.out, command.weights)
    elif command.statistics:
        paths = measured_figures(command.statistics, command.out)
    else:
        paths = [*paper_figures(command.out), *grid_files(command.out)]
        if not command.untrained:
            paths += small_figures(command.out)
    for path in paths:
        print(path)


def small_figures(folder: Path) -> list[Path]:
    """Draws N Fig. 2, 3, 4, 6 and 7 by small networks, which are kept below the folder; returns the paths."""
    from refimpl.paper.trained.small_figures import NETWORKS, small_experiments

    return _written(small_experiments(folder / NETWORKS), folder, "novelai_v3_figure")


def grid_files(folder: Path) -> list[Path]:
    """Writes the tables of docs/grids.md and their numbers into a folder, which exists; returns the paths."""
    from refimpl.paper.grid_page import grid_numbers, grid_tables
    from refimpl.storage.atomic import replace_text

    numbers = grid_numbers()
    page = "\n\n".join(f"## {name}\n\n{table}" for name, table in grid_tables(numbers).items())
    replace_text(folder / "grids.md", page + "\n")
    replace_text(folder / "grids.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    return [folder / "grids.md", folder / "grids.json"]


def run_figures(run: Path, folder: Path, weights: str = "ema") -> list[Path]:
    """Draws the five experiments of a run into a folder, and experiments.json with their numbers; returns the paths.

    Raises InputError as `run_experiments` does, and when the folder is a file.
    """
    from refimpl.paper.experiments import run_experiments

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the figures")
    return _written(run_experiments(run, weights), folder, "run_figure")


def _written(experiments: "dict[int, Experiment]", folder: Path, prefix: str) -> list[Path]:
    """Writes a picture of each experiment, and experiments.json with the numbers of all; returns the paths."""
    from refimpl.report.panels import panel_figure
    from refimpl.report.style import png_bytes
    from refimpl.storage.atomic import replace_text

    contents = {
        f"{prefix}_{number}.png": png_bytes(panel_figure(experiment.title, experiment.rows))
        for number, experiment in experiments.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    numbers = {
        f"figure {number}": {**experiment.numbers, "effects": experiment.measured_effects()}
        for number, experiment in experiments.items()
    }
    replace_text(folder / "experiments.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    return [*(folder / name for name in contents), folder / "experiments.json"]
