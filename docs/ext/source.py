"""The directives `shown` and `pinned`: functions of the package and of its tests, read from the files themselves.

```{shown} refimpl.diffusion.schedule:zero_terminal_snr
```
```{pinned} tests/diffusion/test_schedule.py:test_rescaled_schedule_is_pinned
```
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.ext.definitions import included


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


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds both directives."""
    app.add_directive("shown", Shown)
    app.add_directive("pinned", Pinned)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
