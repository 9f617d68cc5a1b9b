"""Types that others document, and type variables, in signatures: plain text from the start.

Sphinx would look for each of them among all names of the site, which took a sixth of a build.
"""

import builtins
import sys
from typing import TypeVar

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx


def is_ours(target: str) -> bool:
    """Whether a name in a signature may be one of this package's that has a place on the site."""
    if "." in target:
        return target.startswith("refimpl.") and not _is_type_variable(target)
    return not hasattr(builtins, target)


def _is_type_variable(target: str) -> bool:
    """Whether a name is a type variable of a module that has been read, which is documented nowhere."""
    module, _, name = target.rpartition(".")
    return isinstance(getattr(sys.modules.get(module), name, None), TypeVar)


def unlink(app: Sphinx, doctree: nodes.document) -> None:
    """Replaces every reference to a name that is not ours by its text."""
    for reference in list(doctree.findall(pending_xref)):
        if reference.get("refdomain") == "py" and not is_ours(reference["reftarget"]):
            reference.replace_self(reference.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Unlinks once a page is read."""
    app.connect("doctree-read", unlink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
