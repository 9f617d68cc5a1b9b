"""Known deviations: what an implementation is expected to get wrong, so that a change of either kind is noticed."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.conformance.check import Check, Outcome
from refimpl.conformance.returned import number
from refimpl.errors import InputError
from refimpl.tables import from_table

SHIPPED = Path(__file__).with_name("known_deviations.toml")


@dataclass(frozen=True)
class Known:
    """One deviation that is expected."""

    deviation: str
    """what was measured, as the reports print it: "1.9e-05"; "fault" where nothing could be measured"""
    chose: str
    """what the implementation does instead"""
    costs: str = ""
    """what that costs its users"""
    mend: str = ""
    """how it would be mended"""


def known_deviations(adapter: str, file: str = "") -> dict[str, Known]:
    """The known deviations of an adapter, by check.

    file  a TOML file of tables [check name]; empty for what is shipped of the adapter of that name, if anything
    Raises InputError when the file cannot be read or has other keys.
    """
    path = Path(file) if file else SHIPPED
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"known deviations {path}: {error}") from error
    entries = table if file else table.get(adapter, {})
    flat = {
        f"{group}.{name}": entry
        for group, names in entries.items() if isinstance(names, dict)
        for name, entry in names.items()
    }  # fmt: skip
    return {name: from_table(Known, entry, f"{path}, {name}") for name, entry in flat.items()}


def measured(outcome: Outcome) -> str:
    """The deviation of an outcome as it is written in the file: a count as it is, else two significant digits."""
    if outcome.deviation is None:
        return "fault"
    if outcome.deviation == round(outcome.deviation, 9) // 1:
        return number(outcome.deviation)
    return number(float(f"{outcome.deviation:.2g}"))


def judge(check: Check, outcome: Outcome, known: Known | None) -> str:
    """What is wrong with an outcome, given what was expected of it; empty if nothing.

    A deviation is right only if it is known, and as large as it is known to be.
    """
    if known is not None and outcome.status == "not offered":
        return f"{check.name}: a deviation of {known.deviation} is known, but the adapter does not offer it any more"
    if known is not None and outcome.status != "deviates":
        return (
            f"{check.name}: the known deviation ({known.deviation} {check.unit}) no longer occurs: "
            f"{outcome.text or 'it conforms'}; take it out of the known deviations"
        )
    if outcome.status != "deviates" or (known is not None and known.deviation == measured(outcome)):
        return ""
    expected = f"; known to be {known.deviation}" if known is not None else ""
    return "\n".join(
        part
        for part in (
            f"{check.name}: {check.statement}",
            f"deviates by {measured(outcome)} {check.unit} (at most {check.limit:g}){expected}",
            outcome.text,
            f"simplest case: {outcome.counterexample}" if outcome.counterexample else "",
            f"source: {check.cites}",
        )
        if part
    )
