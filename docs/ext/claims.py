"""The directive `claims`: the rows of docs/claims.md that a page is about, named by their first column."""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.ext.claim_rows import named, table_of

PAGE = Path(__file__).parents[1] / "claims.md"


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
        page = PAGE.read_text(encoding="utf-8").replace("](#", "](/claims.md#")
        rows = table_of(page, names)
        if not rows:
            raise self.error(f"docs/claims.md has none of {self.arguments[0]}")
        shown = self.parse_text_to_nodes("\n".join(["## Claims", "", *rows]), allow_section_headings=True)
        for table in (table for node in shown for table in node.findall(nodes.table)):
            table["classes"].append("claims")  # of sentences, which site.css gives room
        return shown


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds the directive."""
    app.add_directive("claims", Claims)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
