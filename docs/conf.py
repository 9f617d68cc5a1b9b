"""The documentation site: `nox -s docs` builds it into docs/_build/html, offline and with warnings as errors."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # of docs.ext, and of refimpl as it is here

import refimpl  # noqa: E402
from docs.ext import docstrings  # noqa: E402

project = "refimpl"
author = "the refimpl authors"
release = version = refimpl.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "docs.ext.mathml",
    "docs.ext.generated",
    "docs.ext.source",
    "docs.ext.claims",
    "docs.ext.typenames",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
add_module_names = False

# Every reference within the site must have its target.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!refimpl\.).*"),  # what others document
    ("py:class", r"refimpl\..*\._\w+"),  # private
]

html_theme = "furo"
html_title = f"refimpl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
copybutton_selector = "div:not(.shapes) > div.highlight > pre"
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: Sphinx) -> None:
    """Has autodoc read docstrings as they are written here."""
    app.connect("autodoc-process-docstring", docstrings.rewrite)
