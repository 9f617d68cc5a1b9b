"""`refimpl claims`: the testable statements of the reports, computed, and the page that answers each."""

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from refimpl.errors import InputError


@dataclass(frozen=True)
class ClaimsCommand:
    """Answers the testable statements of the reports (docs/claims.md).

    Computed ones take less than a minute on one core and need the photographs of the demo.
    """

    computed: bool = False
    """Compute what needs no training, and print each number with its interval."""
    out: Path | None = None
    """File for the computed numbers, as JSON; without it they are only printed."""
    page: Path | None = None
    """Markdown file for the page of all claims, from the numbers that the package keeps."""


def claims_command(arguments: list[str], program: str = "refimpl claims") -> None:
    """Prints or writes what was asked for."""
    command = tyro.cli(ClaimsCommand, args=arguments, prog=program)
    if command.out is not None and not command.computed:
        raise InputError("--out is for the numbers of --computed; give both")
    if not command.computed and command.page is None:
        raise InputError("nothing was asked for; give --computed, --page FILE, or both")
    if command.computed:
        _compute(command.out)
    if command.page is not None:
        from refimpl.paper.claims_page import claims_page
        from refimpl.paper.claims_table import read_claims
        from refimpl.paper.results_file import kept_results
        from refimpl.storage.atomic import replace_text

        replace_text(command.page, claims_page(read_claims(), kept_results()))
        print(command.page)


def _compute(out: Path | None) -> None:
    """Computes every measure; prints the numbers as they come, and writes them if asked to."""
    from refimpl.paper.claims_page import interval
    from refimpl.paper.claims_table import COMPUTED_COMMAND
    from refimpl.paper.computed.measures import MEASURES
    from refimpl.paper.results_file import write_results

    measured = {}
    for name, measure in MEASURES.items():
        start = time.monotonic()
        measured[name] = measure()
        print(f"{name} ({time.monotonic() - start:.1f} s)")
        for quantity in measured[name]:
            print(f"  {quantity.name}: {interval(quantity)}")
    if out is not None:
        write_results(out, COMPUTED_COMMAND, measured)
        print(out)
