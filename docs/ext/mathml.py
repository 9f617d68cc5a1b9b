"""Equations as MathML, which browsers draw themselves: no script, no font and no server is needed."""

import html

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

LOG = logging.getLogger(__name__)


def as_mathml(node: nodes.math | nodes.math_block, as_block: bool) -> str:
    """The equation as MathML; one that can't be read is a warning, and stands as it was written."""
    try:
        return tex2mathml(node.astext().strip(), as_block=as_block)
    except MathError as error:
        LOG.warning("equation: %s", error, location=node)
        return html.escape(node.astext())


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Writes an equation within a line."""
    translator.body.append(as_mathml(node, as_block=False))
    raise nodes.SkipNode


def block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Writes a displayed equation into a box that scrolls by itself."""
    translator.body.append(f'<div class="equation">{as_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes MathML the renderer `mathml` of html_math_renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
