"""Building blocks of a self-contained HTML page; everything that comes from data is escaped here."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from refimpl.printable import printable

CSS = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5b6570; --page: #fbfbfa;
  --line: #dcdfe3; --good: #0a6b4b; --bad: #b3341a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a2abb5; --page: #16191d;
    --line: #363c44; --good: #4fc79a; --bad: #ff8f6b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1040px;
  background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; }
nav { font-size: .9rem; color: var(--soft); margin-top: 1rem; }
nav a { color: inherit; margin-right: .9rem; white-space: nowrap; display: inline-block; }
.table { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.2rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; overflow-wrap: normal; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0 1.5rem; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; margin-bottom: .4rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: 10px;
  border: 1px solid var(--line); border-radius: 8px; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  nav { display: none; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


class Markup(str):
    """HTML made by this module; a plain str is data, and is escaped wherever it is inserted."""


def text(value: object) -> Markup:
    """Data as HTML: escaped, including quotes and what is not printable, unless it is already Markup."""
    return value if isinstance(value, Markup) else Markup(escape(printable(str(value)), quote=True))


def paragraph(value: object) -> Markup:
    """A paragraph containing data."""
    return Markup(f"<p>{text(value)}</p>")


def verdict(passed: bool) -> Markup:
    """The word pass or FAIL, so that the result does not depend on colour alone."""
    return Markup('<span class="good">pass</span>' if passed else '<span class="bad">FAIL</span>')


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """A table of data, one header cell for each column."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return Markup(
        f'<div class="table"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def image(png: bytes, alt: object, caption: object = "", width: int | None = None) -> Markup:
    """A PNG embedded in the page (data URI), with alternative text and a caption above it.

    width  displayed width in CSS pixels, if it differs from the image's own
    """
    size = f' width="{int(width)}"' if width is not None else ""
    source = base64.b64encode(png).decode("ascii")
    above = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return Markup(
        f'<figure>{above}<img alt="{text(alt)}"{size} src="data:image/png;base64,{source}"></figure>'
    )  # fmt: skip


def page(title: str, sections: Sequence[tuple[str, Sequence[Markup]]], opening: Sequence[Markup] = ()) -> str:
    """A complete HTML page that needs no network and runs no scripts.

    sections  (heading, its parts) in order; the headings are linked at the top
    """
    links = "".join(f'<a href="#s{n}">{text(heading)}</a>' for n, (heading, _) in enumerate(sections))
    body = "\n".join(
        f'<section id="s{n}"><h2>{text(heading)}</h2>\n'
        + "\n".join(text(part) for part in parts)
        + "\n</section>"
        for n, (heading, parts) in enumerate(sections)
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{CSS}</style></head>\n<body>\n<h1>{text(title)}</h1>\n"
        + "\n".join(text(part) for part in opening)
        + f"\n<nav>{links}</nav>\n{body}\n</body></html>\n"
    )
