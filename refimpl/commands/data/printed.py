"""How the commands show a survey of a data set: lines on the terminal, and one HTML page on request."""

from collections.abc import Callable, Iterable
from pathlib import Path

from refimpl.errors import InputError


def check_page(path: Path | None) -> None:
    """Raises InputError when the page to write is a folder, before the data are read."""
    if path is not None and path.is_dir():
        raise InputError(f"--html {path} is a folder; name a file in it")


def show(lines: Iterable[str], page: Callable[[], str], path: Path | None) -> None:
    """Prints the lines; writes the page to `path` unless that is None."""
    for line in lines:
        print(line)
    if path is not None:
        from refimpl.storage.atomic import replace_text

        replace_text(path, page())
        print(f"wrote {path}")
