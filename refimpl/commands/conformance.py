"""`refimpl conformance ADAPTER`: what an implementation conforms to, where it deviates, and what it chooses."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.errors import InputError


@dataclass(frozen=True)
class ConformanceCommand:
    """Runs the property tests of this project on an implementation, through its adapter.

    Ends with 0 when everything that must hold does, or deviates exactly as is known of it; with 1 otherwise.
    """

    adapter: Annotated[str, tyro.conf.Positional] = ""
    """package.module:Adapter (see refimpl.conformance.Adapter), or one that is shipped: refimpl, diffusers,
    k-diffusion; and, from checkouts in the folder REFIMPL_PEERS, sd-scripts, onetrainer, simpletuner, comfyui,
    generative-models, naifu, novelai-bucketing."""
    html: Path | None = None
    """File for the result as a page."""
    json: Path | None = None
    """File for the result as JSON."""
    known: Path | None = None
    """TOML of deviations that are known: each must occur as it says. By default those shipped for the adapter."""
    only: str = ""
    """Name of one check or one group of checks."""
    examples: int = 50
    """Arguments drawn for each check that draws."""
    seconds: float = 60.0
    """Time limit of a check."""


def conformance_command(arguments: list[str], program: str = "refimpl conformance") -> None:
    """Runs the checks, prints what they found, and writes the files asked for."""
    command = tyro.cli(ConformanceCommand, args=arguments, prog=program)
    if not command.adapter:
        raise InputError(f"{program}: name an adapter: package.module:Adapter, or refimpl (see --help)")
    if command.examples < 1 or not command.seconds > 0:
        raise InputError(
            f"--examples {command.examples} and --seconds {command.seconds}: both must be positive"
        )
    from refimpl.conformance.evaluate import Effort
    from refimpl.conformance.registry import chosen_checks
    from refimpl.conformance.results.known import known_deviations
    from refimpl.conformance.results.table import Report, as_json, checks_as_json, complaints, lines, summary
    from refimpl.conformance.worker import Worker
    from refimpl.storage.atomic import replace_text

    checks = chosen_checks(command.only)
    known = known_deviations(command.adapter, str(command.known or ""))
    effort = Effort(command.examples, check_seconds=command.seconds)
    with Worker(command.adapter, effort) as worker:
        outcomes = [worker.run(name) for name in checks]
        tested = Report(command.adapter, worker.title, worker.version, worker.links, outcomes)
    print(*lines(tested, checks), "", summary(tested), sep="\n")
    if command.json:
        content = {"checks": checks_as_json(checks), "peers": [as_json(tested, checks, known)]}
        replace_text(command.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if command.html:
        from refimpl.commands.pages.conformance_page import conformance_page

        replace_text(command.html, conformance_page(tested, checks, known))
    wrong = complaints(tested, checks, known)
    if wrong:
        print("", *wrong, sep="\n\n")
        raise SystemExit(1)
