"""`refimpl claims`: the testable statements of the reports, computed, and the page that answers each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from refimpl.checks import check_choice
from refimpl.commands.terminal import parsed
from refimpl.errors import InputError

if TYPE_CHECKING:
    from refimpl.paper.computed.quantity import Quantity

ALL = "all"


@dataclass(frozen=True)
class ClaimsCommand:
    """Answers the testable statements of the reports (docs/claims.md).

    Computed ones take less than a minute on one core and need the photographs of the demo; trained ones train
    small networks for up to 90 minutes on two cores; weights and numbers are kept as they come, so that a call that
    was stopped goes on.
    """

    computed: bool = False
    """Compute what needs no training, and print each number with its interval."""
    trained: bool = False
    """Train small networks, and print each effect with its interval over them."""
    experiment: str = ALL
    """Which experiment of --trained to run: all, or the name of one, such as factorial; a wrong one lists them."""
    jobs: int = 1
    """Processes that train networks side by side, each with one thread; the numbers are the same for any."""
    networks: Path = Path("networks")
    """Folder for the weights of --trained."""
    out: Path | None = None
    """File for the numbers of --computed or --trained, as JSON; without it they are only printed. Those of --trained
    join what the file holds, experiment after experiment."""
    page: Path | None = None
    """Markdown file for the page of all claims, from the numbers that the package keeps."""


def claims_command(arguments: list[str], program: str = "refimpl claims") -> None:
    """Prints or writes what was asked for."""
    command = parsed(ClaimsCommand, arguments, program)
    if command.computed and command.trained:
        raise InputError("--computed and --trained write two files of numbers; give one of them")
    if command.out is not None and not (command.computed or command.trained):
        raise InputError("--out is for the numbers of --computed or --trained; give one of them")
    if not (command.computed or command.trained) and command.page is None:
        raise InputError("nothing was asked for; give --computed, --trained or --page FILE")
    if command.computed:
        from refimpl.paper.computed.measures import MEASURES

        functions = {name: partial(_one, name, measure) for name, measure in MEASURES.items()}
        _measure(functions, "refimpl claims --computed", command.out)
    if command.trained:
        _train(command)
    if command.page is not None:
        from refimpl.paper.claims_page import claims_page
        from refimpl.paper.claims_table import read_claims
        from refimpl.paper.results_file import kept_results
        from refimpl.storage.atomic import replace_text

        replace_text(command.page, claims_page(read_claims(), kept_results()))
        print(command.page)


def _one(name: str, measure: Callable[[], list[Quantity]]) -> dict[str, list[Quantity]]:
    return {name: measure()}


def _train(command: ClaimsCommand) -> None:
    """Runs experiments one after another; prints each number, and of each effect whether its sign is the report's."""
    from refimpl.paper.claims_page import interval
    from refimpl.paper.results_file import read_results, write_results
    from refimpl.paper.trained.experiment import measured_experiments, verdict
    from refimpl.paper.trained.measures import EXPERIMENTS

    check_choice("--experiment", command.experiment, (ALL, *EXPERIMENTS))
    chosen = {name: EXPERIMENTS[name] for name in EXPERIMENTS if command.experiment in (ALL, name)}
    for name, found, seconds in measured_experiments(chosen, command.networks, command.jobs):
        for measure, quantities in found.items():
            print(measure)
            for quantity in quantities:
                is_effect = quantity.name in chosen[name].predicted
                said = f" ({verdict(quantity)})" if is_effect else ""
                print(f"  {quantity.name}: {interval(quantity)}{said}")
        print(f"  ({seconds:.0f} s of CPU time)", flush=True)
        if command.out is not None:
            write_results(command.out, "refimpl claims --trained", read_results(command.out) | found)
    if command.out is not None:
        print(command.out)


def _measure(
    functions: Mapping[str, Callable[[], dict[str, list[Quantity]]]], command: str, out: Path | None
) -> None:
    """Measures one after another; prints the numbers as they come, and writes them if asked to."""
    from refimpl.paper.claims_page import interval
    from refimpl.paper.results_file import write_results

    measured = {}
    for function in functions.values():
        start = time.monotonic()
        found = function()
        for name, quantities in found.items():
            print(name)
            for quantity in quantities:
                print(f"  {quantity.name}: {interval(quantity)}")
        print(f"  ({time.monotonic() - start:.1f} s)", flush=True)
        measured |= found
    if out is not None:
        write_results(out, command, measured)
        print(out)
