"""Cleaning of a prompt before its tokenisation, as OpenCLIP does it or not at all (mlfoundations/open_clip)."""

import html
import importlib.util

from refimpl.errors import InputError
from refimpl.packages import install_line

CLEANINGS = ("none", "openclip")


def cleaned(text: str, how: str) -> str:
    """A prompt as the tokenizer is given it.

    how      "none", or "openclip": OpenCLIP's default, which is ftfy's repairs (mojibake, curly quotes, ligatures,
             full-width letters, control characters, NFC), HTML entities, white space, lower case
    Raises InputError when "openclip" is asked for and ftfy is not installed.
    """
    if how == "none":
        return text
    check_cleaning(how)
    import ftfy

    # twice, for what was escaped twice
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def check_cleaning(how: str) -> None:
    """Raises InputError when a way of cleaning needs ftfy, which is not installed."""
    if how == "openclip" and importlib.util.find_spec("ftfy") is None:
        raise InputError(
            f"text.clean 'openclip' needs ftfy: {install_line('ftfy')}, or set text.clean = 'none'"
        )


def cleaning_identity(how: str) -> dict[str, str]:
    """What cached text states depend on through the cleaning: nothing for "none", else its name and ftfy's version.

    Raises InputError as `check_cleaning` does.
    """
    if how == "none":
        return {}
    check_cleaning(how)
    from importlib.metadata import version

    return {"clean": how, "ftfy": version("ftfy")}
