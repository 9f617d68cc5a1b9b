"""`refimpl claims`: the testable statements of the reports, computed, and the page that answers each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from refimpl.errors import InputError

if TYPE_CHECKING:
    from refimpl.paper.computed.quantity import Quantity


@dataclass(frozen=True)
class ClaimsCommand:
    """Answers the testable statements of the reports (docs/claims.md).

    Computed ones take less than a minute on one core and need the photographs of the demo; trained ones take about
    ten minutes for five small networks, whose weights are kept, so that a call that was stopped goes on.
    """

    computed: bool = False
    """Compute what needs no training, and print each number with its interval."""
    trained: bool = False
    """Train small networks, and print each effect with its interval over them."""
    networks: Path = Path("networks")
    """Folder for the weights of --trained."""
    out: Path | None = None
    """File for the numbers of --computed or --trained, as JSON; without it they are only printed."""
    page: Path | None = None
    """Markdown file for the page of all claims, from the numbers that the package keeps."""


def claims_command(arguments: list[str], program: str = "refimpl claims") -> None:
    """Prints or writes what was asked for."""
    command = tyro.cli(ClaimsCommand, args=arguments, prog=program)
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
        from refimpl.paper.trained.measures import EXPERIMENTS

        functions = {name: partial(run, command.networks) for name, run in EXPERIMENTS.items()}
        _measure(functions, "refimpl claims --trained", command.out)
    if command.page is not None:
        from refimpl.paper.claims_page import claims_page
        from refimpl.paper.claims_table import read_claims
        from refimpl.paper.results_file import kept_results
        from refimpl.storage.atomic import replace_text

        replace_text(command.page, claims_page(read_claims(), kept_results()))
        print(command.page)


def _one(name: str, measure: Callable[[], list[Quantity]]) -> dict[str, list[Quantity]]:
    return {name: measure()}


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
