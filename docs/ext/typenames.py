"""Types that others document, in signatures: plain text from the start.

Sphinx would look for each of them among all names of the site, which took a sixth of a build.
"""

import builtins

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx


def is_ours(target: str) -> bool:
    """Whether a name in a signature may be one of this package's."""
    if "." in target:
        return target.startswith("refimpl.")
    return not hasattr(builtins, target)


def unlink(app: Sphinx, doctree: nodes.document) -> None:
    """Replaces every reference to a name that is not ours by its text."""
    for reference in list(doctree.findall(pending_xref)):
        if reference.get("refdomain") == "py" and not is_ours(reference["reftarget"]):
            reference.replace_self(reference.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Unlinks once a page is read."""
    app.connect("doctree-read", unlink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
