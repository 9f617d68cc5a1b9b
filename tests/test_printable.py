"""What a terminal and a page are given: nothing that is not printable, and everything that is, as it was."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.printable import LAYOUT, LONGEST_NAME, PrintableStream, StyledStream, one_line, printable


@given(st.text())
def test_the_result_is_printable_and_printable_text_is_left_alone(text: str) -> None:
    shown = printable(text)
    assert all(letter.isprintable() or letter in LAYOUT for letter in shown)
    assert printable(shown) == shown
    kept = "".join(letter for letter in text if letter.isprintable())
    assert printable(kept) == kept


@given(st.text(max_size=LONGEST_NAME))
def test_a_name_is_one_line_from_which_it_can_be_read(name: str) -> None:
    shown = one_line(name)
    assert shown.isprintable()
    if "\\" not in name:
        assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == name


def test_every_control_and_direction_is_spelled_out() -> None:
    for code in (
        *range(32),
        *range(127, 160),
        0x200E,
        0x200F,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        0xFEFF,
    ):
        letter = chr(code)
        assert unicodedata.category(letter) in ("Cc", "Cf")
        assert one_line(letter).startswith("\\")
        assert printable(letter) == (letter if letter in LAYOUT else one_line(letter))
    assert printable("\udc80") == "\\udc80"  # from a file name that is not UTF-8


def test_a_long_name_is_cut() -> None:
    assert one_line("n" * 10**6) == "n" * LONGEST_NAME + "…"
    assert one_line("n" * LONGEST_NAME) == "n" * LONGEST_NAME


def test_a_stream_writes_what_is_printable() -> None:
    below = io.StringIO()
    stream = PrintableStream(below)
    assert stream.writable()
    assert not stream.isatty()  # so that nobody sends it colours
    assert stream.write("\x1b[31mred\n") == len("\x1b[31mred\n")
    stream.flush()
    stream.close()
    del stream
    assert below.getvalue() == "\\x1b[31mred\n"


@pytest.mark.parametrize("is_styled", [True, False])
def test_a_styled_stream_lets_styles_through_and_nothing_else(is_styled: bool) -> None:
    """Or leaves them out; what moves the cursor, clears or names the window is no style."""
    below = io.StringIO()
    stream = StyledStream(below, is_styled)
    assert stream.isatty() == is_styled
    others = "\x1b[2J\x1b]0;title\x07\x1b[1A\u202e\x1b[0;31mred\x1b[m\x9b31m"
    assert stream.write("\x1b[1mbold\x1b[0m" + others) == len("\x1b[1mbold\x1b[0m" + others)
    red, plain = ("\x1b[0;31mred\x1b[m", "\x1b[1mbold\x1b[0m") if is_styled else ("red", "bold")
    assert below.getvalue() == f"{plain}\\x1b[2J\\x1b]0;title\\x07\\x1b[1A\\u202e{red}\\x9b31m"
