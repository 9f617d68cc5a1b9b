"""The one search for the known name that a mistyped one is most like."""

import difflib
from collections.abc import Iterable

LONGEST = 199  # characters compared, the last ones; a name from a file can have any length


def nearest(name: str, known: Iterable[str], count: int = 1, least: float = 0.0) -> list[str]:
    """The known names most similar to `name`, the best first.

    count  names given at most
    least  similarity from 0 (nothing in common) to 1 (equal) below which a name is not given
    """
    ends: dict[str, str] = {}
    for candidate in known:
        ends.setdefault(candidate[-LONGEST:], candidate)
    return [ends[end] for end in difflib.get_close_matches(name[-LONGEST:], ends, count, least)]
