"""The one search for the known name nearest to a mistyped one."""

import difflib
from collections.abc import Iterable

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
