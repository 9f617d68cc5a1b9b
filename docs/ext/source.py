"""The directives `shown` and `pinned`: functions of the package and of its tests, read from the files themselves.

    ```{shown} refimpl.diffusion.schedule:zero_terminal_snr
    ```
    ```{pinned} tests/diffusion/test_schedule.py:test_first_timestep_is_unchanged
    ```
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FENCE = "``````"


class Shown(SphinxDirective):
    """A function or class of the package under its path."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, name = self.arguments[0].split(":")
        return self.parse_text_to_nodes(included(f"{module.replace('.', '/')}.py", name))


class Pinned(SphinxDirective):
    """A test, folded under its name, with the command that runs it."""

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
    """A file's function as Markdown for a page anywhere under docs."""
    return "\n".join(
        [f"{FENCE}{{literalinclude}} /../{path}", f":pyobject: {name}", f":caption: '{path}: {name}'", FENCE]
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds both directives."""
    app.add_directive("shown", Shown)
    app.add_directive("pinned", Pinned)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
