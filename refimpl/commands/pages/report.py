"""`refimpl report`: the page of any run, finished, running or stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.errors import InputError


@dataclass(frozen=True)
class ReportCommand:
    """Writes a run's page: what matters first, curves, samples by step, settings, faults.

    The page is one file that needs no network. It shows the run as it is now; write it again to see it later.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of `refimpl train` or `refimpl train-decoder`."""
    out: Path | None = None
    """File to write; when left out, report.html in the run folder."""


def report_command(arguments: list[str], program: str = "refimpl report") -> None:
    """Writes the page and prints its path."""
    command = tyro.cli(ReportCommand, args=arguments, prog=program)
    if command.out is not None and command.out.is_dir():
        raise InputError(f"--out {command.out} is a folder; name a file in it")
    from refimpl.report.runs.run_report import write_run_report

    print(write_run_report(command.run, command.out))
