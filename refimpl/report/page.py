"""Self-contained HTML pages from templates; everything that comes from data is escaped here."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from refimpl.printable import printable

HERE = Path(__file__).parent
SCRIPTS = ("uplot.min.js", "charts.js", "report.js")  # of a page with charts or samples by step
Severity = Literal["bad", "warning", "good", "note"]
SEVERITIES: dict[Severity, str] = {"bad": "Problem", "warning": "Warning", "good": "Good", "note": "Note"}


@dataclass(frozen=True)
class Headline:
    """One of the things that matter most about what a page shows: it stands at the top, the worst first."""

    severity: Severity
    text: str
    """One sentence with its numbers."""
    next: str = ""
    """What to do about it."""
    listed: Sequence[str] = ()
    """What the sentence counts, as far as it is named; folded away."""


def text(value: object) -> Markup:
    """Data as HTML: escaped, including quotes and what is not printable, unless it is already Markup."""
    return value if isinstance(value, Markup) else escape(printable(str(value)))


def phrase(words: str, *data: object) -> Markup:
    """A sentence as HTML with data in it, each isolated, so that right-to-left letters reorder nothing beside them.

    words  this program's own HTML, with a {} for each of the data
    """
    return Markup(words).format(*(Markup("<bdi>{}</bdi>").format(text(each)) for each in data))


def with_code(words: str) -> Markup:
    """A sentence as HTML, what stands between backticks as code."""
    parts = [text(part) for part in words.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts)
    )


@cache
def templates() -> Environment:
    """The templates of every page; whatever they insert passes through `text`."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["with_code"] = with_code
    return made


def static(name: str) -> str:
    """A file of the page's style or scripts."""
    return (HERE / "static" / name).read_text(encoding="utf-8")


def _part(name: str, *values: Any, **named: Any) -> Markup:
    return Markup(getattr(templates().get_template("parts.html").module, name)(*values, **named))


def paragraph(value: object) -> Markup:
    """A paragraph containing data."""
    return _part("paragraph", value)


def verdict(passed: bool) -> Markup:
    """The word pass or FAIL, so that the result does not depend on colour alone."""
    return _part("verdict", passed)


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """A table of data, one header cell for each column; columns of numbers alone are set flush right."""
    cells = [list(row) for row in rows]
    numeric = [
        bool(cells) and all(len(row) > place and _is_number(row[place]) for row in cells)
        for place in range(len(header))
    ]
    return _part("table", header, cells, numeric)


def _is_number(cell: object) -> bool:
    if isinstance(cell, Markup):
        return False
    shown = str(cell).replace(",", "").removesuffix("%").removesuffix(" dB").strip()
    return shown.replace(".", "", 1).replace("-", "", 1).isdecimal()


def image(
    content: bytes, alt: object, caption: object = "", width: int | None = None, kind: str = "png"
) -> Markup:
    """A picture embedded in the page (data URI), with alternative text and a caption above it.

    width  displayed width in CSS pixels, if it differs from the image's own
    kind   png, jpeg, or svg+xml; the last is a figure, as wide as the page
    """
    return _part("image", data_uri(content, kind), alt, caption, width, kind == "svg+xml")


def image_grid(pictures: Sequence[tuple[bytes, object]], caption: object, columns: int) -> Markup:
    """Pictures in rows, in their order, each with its label below.

    pictures  (PNG, label) of each
    columns   cells of a row where the page is wide enough
    """
    cells = [(data_uri(content, "png"), label) for content, label in pictures]
    return _part("image_grid", cells, caption, columns)


def place(name: Literal["charts", "samples"], about: str) -> Markup:
    """Where a page's scripts draw the charts of its series, or its samples by step, below a line about them.

    The page needs SCRIPTS, and data with `series` as `refimpl.report.runs.read_run.embedded_series` gives them, and
    `grids` as `embedded_grids` does.
    """
    return _part("place", name, about)


def charts() -> Markup:
    """Where the charts of the page's series are drawn."""
    return place("charts", "Drag over a chart to zoom, double-click to see all again.")


def folded(summary: object, inside: Sequence[Markup]) -> Markup:
    """Parts that are shown when the reader opens them."""
    return _part("folded", summary, inside)


def data_uri(content: bytes, kind: str) -> str:
    """A picture as the address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def page(
    title: str,
    sections: Sequence[tuple[str, Sequence[Markup]]],
    opening: Sequence[Markup] = (),
    headlines: Sequence[Headline] = (),
    scripts: Sequence[str] = (),
    data: Any = None,
) -> str:
    """A complete HTML page that needs no network and runs no scripts but those given.

    sections   (heading, its parts) in order; the headings are linked at the top
    headlines  shown first, the most severe of them first
    scripts    names of files of static/, which the page's policy allows by their hashes
    data       what the scripts read, as JSON
    """
    order = get_args(Severity)
    sources = [static(name) for name in scripts]
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode("ascii") for each in sources]
    return templates().get_template("page.html").render(
        title=title,
        sections=sections,
        opening=opening,
        headlines=sorted(headlines, key=lambda each: order.index(each.severity)),
        severities=SEVERITIES,
        style=Markup((static("uplot.min.css") if scripts else "") + static("style.css")),
        scripts=[Markup(source) for source in sources],
        script_policy=Markup(" ".join(f"'sha256-{each}'" for each in hashes)),
        data=data,
    )  # fmt: skip
