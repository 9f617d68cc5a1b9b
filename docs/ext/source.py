"""The directives `shown` and `pinned`: functions of the package and of its tests, read from the files themselves.

    ```{shown} refimpl.diffusion.schedule:zero_terminal_snr
    ```
    ```{pinned} tests/diffusion/test_schedule.py:test_rescaled_schedule_is_pinned
    ```
"""

import ast
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
FENCE = "``````"


class Shown(SphinxDirective):
    """A function, method or class of the package under its path."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, name = self.arguments[0].split(":")
        return self.parse_text_to_nodes(included(f"{module.replace('.', '/')}.py", name))


class Pinned(SphinxDirective):
    """A test, folded under its name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path, name = self.arguments[0].split(":")
        opening = f"<details class='pinned'><summary>Pinned by <code>{path}::{name}</code></summary>"
        return [
            nodes.raw("", opening, format="html"),
            *self.parse_text_to_nodes(included(path, name)),
            nodes.raw("", "</details>", format="html"),
        ]


def included(path: str, name: str) -> str:
    """A file's function as Markdown for a page anywhere under docs.

    path, name  from the root of the repository; `function`, or `Class.method`
    Raises ValueError when the file has no such definition.
    """
    first, last = lines_of((ROOT / path).read_text(encoding="utf-8"), name)
    options = [f":lines: {first}-{last}", ":dedent:", f":caption: '{path}: {name}'"]
    return "\n".join([f"{FENCE}{{literalinclude}} /../{path}", *options, FENCE])


def lines_of(source: str, name: str) -> tuple[int, int]:
    """The first line of a definition, its decorators among them, and its last, counted from 1.

    Sphinx's own `:pyobject:` can't read files with `**` in a decorator's arguments.
    Raises ValueError when there is none of this name.
    """
    within: ast.Module | ast.ClassDef | ast.FunctionDef = ast.parse(source)
    for part in name.split("."):
        found = [
            node
            for node in within.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
        ]
        if not found:
            raise ValueError(f"there is no {name}")
        (within,) = found
    assert not isinstance(within, ast.Module)
    assert within.end_lineno is not None
    return min([within.lineno, *(decorator.lineno for decorator in within.decorator_list)]), within.end_lineno


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds both directives."""
    app.add_directive("shown", Shown)
    app.add_directive("pinned", Pinned)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
