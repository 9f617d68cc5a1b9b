"""The one search for the known name nearest to a mistyped one, and for a file's or folder's."""

import difflib
import os
from collections.abc import Iterable

LIKE = 0.6  # similarity from which a name may have been meant
LONGEST = 199  # how many of the last characters are compared; a name from a file can have any length


def nearest(name: str, known: Iterable[str], count: int = 1, least: float = 0.0) -> list[str]:
    """The known names most similar to `name`, the best first.

    count  the most names to return
    least  similarity, from 0 (nothing in common) to 1 (equal), below which a name is not returned
    """
    ends: dict[str, str] = {}
    for candidate in known:
        ends.setdefault(candidate[-LONGEST:], candidate)
    return [ends[end] for end in difflib.get_close_matches(name[-LONGEST:], ends, count, least)]


def near_path(path: str | os.PathLike[str]) -> str:
    """What to add to a message about a path that is not there: the file or folder that was probably meant.

    returns  "; did you mean PATH?", the first wrong part of the path put right; empty where nothing near is there
    """
    whole = os.path.normpath(path)
    wrong, rest = whole, ""
    while (above := os.path.dirname(wrong)) and above != wrong and not os.path.exists(above):
        wrong, rest = above, os.path.join(os.path.basename(wrong), rest) if rest else os.path.basename(wrong)
    folder, name = os.path.split(wrong)
    try:
        there = [other for other in sorted(os.listdir(folder or ".")) if name[:1] == "." or other[:1] != "."]
    except OSError:
        return ""
    near = [other for other in nearest(name, there, least=LIKE) if _have_like_stems(name, other)]
    meant = os.path.join(folder, near[0], rest).rstrip(os.sep) if near else ""
    return f"; did you mean {meant}?" if meant and os.path.exists(meant) else ""


def _have_like_stems(name: str, other: str) -> bool:
    """Whether two file names are alike for more than their suffix."""
    (stem, suffix), (others, its) = os.path.splitext(name), os.path.splitext(other)
    return suffix != its or bool(nearest(stem, [others], least=LIKE))
