"""The pages and pictures that a build makes before it reads any page. None of them is committed."""

from pathlib import Path

from sphinx.application import Sphinx

from docs.ext.api_pages import api_pages
from docs.ext.drawn import DRAWN
from docs.ext.settings_page import settings_page

DOCS = Path(__file__).parents[1]
FOLDERS = ("api", "drawn")  # of which every file is made here


def write_all(app: Sphinx) -> None:
    """Writes the API reference, the settings reference and the figures into the folder of the pages."""
    contents = {f"api/{name}": text.encode() for name, text in api_pages().items()}
    contents["settings.md"] = settings_page().encode()
    contents |= {f"drawn/{name}.png": draw() for name, draw in DRAWN.items()}
    for path in (path for folder in FOLDERS for path in (DOCS / folder).glob("*")):
        if path.relative_to(DOCS).as_posix() not in contents:
            path.unlink()
    for name, content in contents.items():
        path = DOCS / name
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:  # an unchanged page is not read again
            path.write_bytes(content)


def setup(app: Sphinx) -> dict[str, bool]:
    """Writes the files at the start of a build."""
    app.connect("builder-inited", write_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
