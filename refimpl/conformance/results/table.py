"""A run as JSON and as lines of text."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from refimpl.conformance.check import Check, Outcome
from refimpl.conformance.results.known import Known, judge, measured


@dataclass(frozen=True)
class Report:
    """What one adapter came out as."""

    adapter: str
    """the name it was called by"""
    title: str
    version: str
    links: dict[str, str]
    """addresses of the lines its methods call, by method"""
    outcomes: list[Outcome]


def complaints(tested: Report, checks: dict[str, Check], known: dict[str, Known]) -> list[str]:
    """Whatever is not as it should be: deviations that are not known, and known ones that are no more."""
    found = (judge(checks[o.check], o, known.get(o.check)) for o in tested.outcomes)
    return [text for text in found if text]


def summary(tested: Report) -> str:
    """How many checks came out how, in one line."""
    counts = Counter(outcome.status for outcome in tested.outcomes)
    parts = (f"{counts[status]} {word}" for status, word in WORDS.items() if counts[status])
    return f"{tested.title} {tested.version}: {', '.join(parts)}"


WORDS = {
    "conforms": "conform",
    "deviates": "deviate",
    "choice": "are choices",
    "not offered": "are not offered",
}


def lines(tested: Report, checks: dict[str, Check]) -> list[str]:
    """A line for each check that was run."""
    found = []
    for outcome in tested.outcomes:
        if outcome.status == "not offered":
            continue
        check = checks[outcome.check]
        size = (
            "" if outcome.deviation is None or check.kind == "choice" else f"{measured(outcome)} {check.unit}"
        )
        seen = "; ".join(part for part in (size, outcome.text) if part)
        found.append(f"{outcome.status:<9} {outcome.check:<36} {seen}")
        if outcome.counterexample:
            found.append(f"{'':<46} at {outcome.counterexample}")
    return found


def as_json(tested: Report, checks: dict[str, Check], known: dict[str, Known]) -> dict[str, Any]:
    """Everything about a run, as JSON takes it; times are left out, so that equal runs give equal files."""
    entries = []
    for outcome in tested.outcomes:
        check = checks[outcome.check]
        entry = {name: value for name, value in asdict(outcome).items() if name != "seconds"}
        entry["deviation"] = None if outcome.deviation is None else measured(outcome)
        link = next((tested.links[method] for method in check.needs if method in tested.links), "")
        expected = known.get(outcome.check)
        entries.append(entry | {"link": link, "known": asdict(expected) if expected else None})
    return {"adapter": tested.adapter, "title": tested.title, "version": tested.version, "outcomes": entries}


def checks_as_json(checks: dict[str, Check]) -> list[dict[str, Any]]:
    """What the checks are."""
    fields = ("name", "group", "statement", "cites", "unit", "kind", "limit")
    return [{name: getattr(check, name) for name in fields} for check in checks.values()]
