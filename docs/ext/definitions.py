"""Where a function stands in its file, and the Markdown that includes it from there."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = "``````"


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
