"""Docstrings as they are written here, plain text with lines of shapes, as reStructuredText.

`docs/conf.py` connects `rewrite` to autodoc. A line of shapes, such as `x0, eps  [B, ...]        alpha  [B]`, and
what is indented are shown as they stand, wrapped where the page is narrow; everything else is prose.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

COLUMNS = re.compile(r"\S {2,}\S")  # two spaces within a line: it is laid out in columns
ITEM = re.compile(r"(?:[-*]|\d+\.) +")
CODE = re.compile(r"(`+[^`]+`+)")
SPECIAL = re.compile(r"([\\*_|`:<>])")


def rewrite(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replaces a docstring that autodoc has read, in place."""
    lines[:] = as_rst(lines)


def as_rst(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring, which has lost its indentation, as reStructuredText."""
    written: list[str] = []
    for kind, block in _blocks(lines):
        if kind == "shapes":
            written += [
                ".. code-block:: text",
                "   :class: shapes",
                "",
                *(f"   {line}" for line in _joined(block)),
            ]
        elif kind == "items":
            written += [_item(line) for line in block]
        else:
            written.append(_prose(" ".join(line.strip() for line in block)))
        written.append("")
    return written


def _blocks(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Neighbouring lines of one kind: shapes, items of a list, or prose. An empty line ends a block."""
    kind, block = "", list[str]()
    for line in [*lines, ""]:
        now = _kind(line, kind)
        if block and now != kind:
            yield kind, block
            block = []
        kind = now
        if now:
            block.append(line.rstrip())


def _kind(line: str, before: str) -> str:
    """What a line is, by itself and by the line before it; empty for an empty line."""
    if not line.strip():
        return ""
    is_indented = line.startswith(" ")
    if ITEM.match(line) or (before == "items" and is_indented):
        return "items"
    goes_on = before == "shapes" and line[0].islower()  # the sentence of the line above
    return "shapes" if is_indented or goes_on or COLUMNS.search(line) else "prose"


def _joined(block: list[str]) -> list[str]:
    """Lines of shapes, each with what goes on below it, so that a narrow page breaks it elsewhere."""
    joined = block[:1]
    for line in block[1:]:
        goes_on = not block[0].startswith(" ") and not COLUMNS.search(line.strip())
        if goes_on and (line.startswith(" ") or line[0].islower()):
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line)
    return joined


def _item(line: str) -> str:
    mark = ITEM.match(line)
    start = mark.group() if mark else "  "
    return start + _prose(line[len(start) :].strip())


def _prose(text: str) -> str:
    """Text whose only markup is code in backticks."""
    parts = CODE.split(text)
    return "".join(
        f"\\ ``{part.strip('`').strip()}``\\ " if place % 2 else SPECIAL.sub(r"\\\1", part)
        for place, part in enumerate(parts)
    ).strip()
