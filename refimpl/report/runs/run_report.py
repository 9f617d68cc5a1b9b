"""The page of any run: what matters first, its curves, its samples, its settings, its faults."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from refimpl.errors import InputError
from refimpl.report.headlines.run import run_headlines
from refimpl.report.page import SCRIPTS, Markup, charts, folded, page, paragraph, place, table, templates
from refimpl.report.runs.read_run import MOST_LISTED, Run, embedded_grids, embedded_series, read_run, shown
from refimpl.storage.atomic import replaced_file

MARK = "<!-- made by refimpl report -->"


def write_run_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of a run, by default as report.html in its folder; it appears whole or not at all.

    Raises InputError as `read_run` does, and where report.html is another page, such as the demo's, that no `out`
    was named for.
    """
    path = out or folder / "report.html"
    if out is None and path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path} is another report, such as the demo's; name a file for this one with --out")
    markup = run_report(read_run(folder)).encode("utf-8", "backslashreplace")
    with replaced_file(path, make_folder=True) as temporary:
        temporary.write_bytes(markup)
    return path


def run_report(run: Run) -> str:
    """The page of a run as HTML that needs no network."""
    series, grids = embedded_series(run), embedded_grids(run)
    sections: list[tuple[str, list[Markup]]] = []
    if series:
        sections.append(("Curves", [charts()]))
    if grids:
        sections.append(("Samples", [place("samples", _about_grids(run, len(grids)))]))
    if run.faults or run.quarantine:
        sections.append(("Faults and quarantine", _faults(run)))
    if run.settings:
        sections.append(("Settings", _settings(run)))
    opening = [Markup(MARK), paragraph(f"{run.folder}"), _facts(run)]
    data = {"name": run.folder.name, "series": series, "grids": grids}
    return page(f"Run {run.folder.resolve().name}", sections, opening, run_headlines(run), SCRIPTS, data)


def _about_grids(run: Run, count: int) -> str:
    few = f" {count} of {len(run.grids)} grids are in this page." if count < len(run.grids) else ""
    return f"A row for each prompt, a column for each seed. Move the slider to see other steps.{few}"


def _facts(run: Run) -> Markup:
    """The numbers that are asked for first, each with its unit."""
    written = run.rows.steps[-1] if len(run.rows) else 0
    facts = [("step", f"{written:,}", f"of {run.steps:,}" if run.steps else "")]
    for name, label, unit in (
        ("loss", "loss", ""),
        ("heldout_loss", "held-out loss", ""),
        ("images_per_second", "images per second", ""),
        ("mfu", "MFU", "%"),
        ("learning_rate", "learning rate", ""),
    ):
        last = run.last(name)
        if last is not None:
            facts.append((label, f"{last[1] * (100 if unit else 1):.4g}", unit))
    metrics = run.folder / "metrics.jsonl"
    if metrics.is_file():
        when = time.localtime(metrics.stat().st_mtime)
        facts.append((f"last row, {time.strftime('%Y-%m-%d', when)}", time.strftime("%H:%M", when), ""))
    return Markup(templates().get_template("run.html").module.facts(facts))  # type: ignore[attr-defined]


def _settings(run: Run) -> list[Markup]:
    """A table for each section of the settings, folded away but for the training's."""
    parts: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for name, value in run.settings.items():
        parts[name.partition(".")[0]].append((name, shown(value)))
    return [folded(part, [table(("setting", "value"), rows)]) for part, rows in parts.items()]


def _faults(run: Run) -> list[Markup]:
    parts: list[Markup] = []
    rows: list[tuple[Any, ...]] = []
    for row in run.faults[:MOST_LISTED]:
        images = row.get("images")
        for image in images if isinstance(images, list) else []:
            if isinstance(image, dict):
                rows.append(
                    (row.get("step"), row.get("not_finite"), *(_cell(image.get(name)) for name in IMAGE))
                )
    if rows:
        parts.append(folded(f"{len(run.faults)} skipped steps", [table(("step", "cause", *IMAGE), rows)]))
    if run.quarantine:
        header = ("path", "kind", "reason")
        bad = [tuple(_cell(row.get(name)) for name in header) for row in run.quarantine[:MOST_LISTED]]
        parts.append(folded(f"{len(run.quarantine)} images in quarantine", [table(header, bad)]))
    return parts


IMAGE = ("id", "rank", "timestep", "sigma", "loss")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
