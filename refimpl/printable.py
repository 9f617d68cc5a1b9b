"""Text from files on its way to a terminal or a page: what is not printable is spelled out, here and nowhere else.

A terminal obeys escape sequences, and both it and a page reorder text at U+202E: a tensor's name, a caption or a key
could say something other than what is there.
"""

import io
import re
from itertools import zip_longest
from typing import TextIO

LAYOUT = "\n\t"
STYLE = re.compile(r"\x1b\[[0-9;]*m")  # colours and weights, and nothing that moves, clears or names
LONGEST_NAME = 200  # characters of a name that a message shows


def printable(text: str, kept: str = LAYOUT) -> str:
    """The text with every character that `str.isprintable` refuses as Python spells it (`\\x1b`, `\\u202e`).

    kept  characters that stay as they are: line feed and tab
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def one_line(name: str) -> str:
    """A name from a file for a message: on one line, and cut where it is longer than any name."""
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
    return printable(shown, kept="")


class PrintableStream(io.TextIOBase):
    """A terminal's or a pipe's text stream that is given `printable` text alone; it takes no styles."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str, /) -> int:
        """Writes the text, and says that all of it was written."""
        self.stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self.stream.flush()

    def close(self) -> None:
        """Leaves the stream open: it is others' too, and may be a pipe that nobody reads any more."""

    def fileno(self) -> int:
        """The stream's file descriptor."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """Always."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return self.stream.encoding


class StyledStream(PrintableStream):
    """The same for text whose every style is this program's own: the caller knows that no data in it holds an escape.

    is_styled  whether the styles are written, which a terminal shows; if not, they are left out
    """

    def __init__(self, stream: TextIO, is_styled: bool) -> None:
        super().__init__(stream)
        self.is_styled = is_styled

    def isatty(self) -> bool:
        """Whether styles are welcome."""
        return self.is_styled

    def write(self, text: str, /) -> int:
        """Writes the text, with its styles or without."""
        styles = STYLE.findall(text) if self.is_styled else []
        for plain, style in zip_longest(STYLE.split(text), styles, fillvalue=""):
            self.stream.write(printable(plain) + style)
        return len(text)
