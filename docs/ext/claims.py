"""The directive `claims`: the rows of docs/claims.md that a page is about, named by their first column."""

import re
from collections.abc import Collection
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PAGE = Path(__file__).parents[1] / "claims.md"
ROW = re.compile(r"\|\s*\**`?([NSR]\d\d)`?\**\s*\|")


def named(words: str) -> list[str]:
    """The claims that `N01 N06-N08` names, one by one. Raises ValueError for anything else."""
    names = []
    for word in words.split():
        match = re.fullmatch(r"([NSR])(\d\d)(?:-\1(\d\d))?", word)
        if not match:
            raise ValueError(f"{word!r} names no claim: write N01, or N06-N08")
        first, last = int(match[2]), int(match[3] or match[2])
        names += [f"{match[1]}{number:02}" for number in range(first, last + 1)]
    return names


def table_of(page: str, names: Collection[str]) -> list[str]:
    """The rows with these names, under the head of the table that they are in; empty where there are none."""
    lines: list[str] = []
    head: list[str] = []
    last_head: list[str] = []
    before = ""
    for line in page.splitlines():
        if re.fullmatch(r"\|[\s:|-]+\|", line):
            head = [before, line]
        match = ROW.match(line)
        if match and match[1] in names:
            lines += [line] if head == last_head else ["", *head, line]
            last_head = head
        before = line
    return lines[1:]


class Claims(SphinxDirective):
    """Shows the rows under a heading of their own; nothing where there is no such page."""

    has_content = False
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        names = named(self.arguments[0])
        if not PAGE.is_file():
            return []
        self.env.note_dependency(str(PAGE))
        rows = table_of(PAGE.read_text(encoding="utf-8"), names)
        if not rows:
            raise self.error(f"docs/claims.md has none of {self.arguments[0]}")
        return self.parse_text_to_nodes("\n".join(["## Claims", "", *rows]), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds the directive."""
    app.add_directive("claims", Claims)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
