"""The result of a conformance run as one HTML page."""

from refimpl.conformance.check import Check
from refimpl.conformance.results.known import Known, measured
from refimpl.conformance.results.table import Report, summary
from refimpl.report.page import Markup, page, paragraph, table, text

HEADER = ("check", "statement", "result", "deviation", "seen", "simplest case", "source")


def conformance_page(tested: Report, checks: dict[str, Check], known: dict[str, Known]) -> str:
    """A page with the deviations first, then every group of checks that the adapter offers."""
    groups: dict[str, list[tuple[object, ...]]] = {}
    deviations: list[Markup] = []
    for outcome in tested.outcomes:
        check = checks[outcome.check]
        if outcome.status == "not offered":
            continue
        size = (
            "" if outcome.deviation is None or check.kind == "choice" else f"{measured(outcome)} {check.unit}"
        )
        colour = {"conforms": "good", "deviates": "bad"}.get(outcome.status, "")
        status = Markup(f'<span class="{colour}">{text(outcome.status)}</span>')
        row = (check.name, check.statement, status, size, outcome.text, outcome.counterexample, check.cites)
        groups.setdefault(check.group, []).append(row)
        expected = known.get(outcome.check)
        if outcome.status == "deviates" and expected:
            deviations.append(paragraph(f"{check.name}: {expected.chose} {expected.costs} {expected.mend}"))
    missing = sorted(
        {checks[o.check].group for o in tested.outcomes if o.status == "not offered"} - set(groups)
    )
    sections = [("Known deviations", deviations)] if deviations else []
    sections += [(group, [table(HEADER, rows)]) for group, rows in groups.items()]
    if missing:
        sections.append(("Not offered", [paragraph(", ".join(missing))]))
    return page(f"Conformance of {tested.title} {tested.version}", sections, [paragraph(summary(tested))])
