"""The known names most like one that is unknown, quickly, for thousands of numbered module names."""

import difflib
import re
from collections.abc import Callable, Iterable

NEAREST = 3  # names offered
LONGEST = 200  # characters compared; a name from a file can have any length
MOST = 50  # unknown names that differ in more than their numbers; a file can hold any number


def nearest_names(names: Iterable[str]) -> Callable[[str], list[str]]:
    """A function from an unknown name or pattern to the names whose last parts are most similar, best first.

    Names are compared with their numbers masked, and by as many of their dotted parts as the unknown name has. Of
    names that differ in numbers alone, the one with the wanted numbers is given, or the first.
    """
    known = list(names)
    answers: dict[str, list[str]] = {}

    def nearest(unknown: str) -> list[str]:
        unknown = unknown.strip("*.")[:LONGEST]
        masked = _masked(unknown)
        parts = unknown.count(".") + 1
        if masked not in answers:
            if len(answers) == MOST:
                return []
            tails = dict.fromkeys(_masked(_tail(name, parts)) for name in known)
            answers[masked] = difflib.get_close_matches(masked, tails, NEAREST, 0.0)
        numbers = re.findall(r"\d+", unknown)
        found = []
        for form in answers[masked]:
            alike = [name for name in known if _masked(_tail(name, parts)) == form]
            found.append(next((n for n in alike if re.findall(r"\d+", _tail(n, parts)) == numbers), alike[0]))
        return found

    return nearest


def _masked(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _tail(name: str, parts: int) -> str:
    return ".".join(name.split(".")[-parts:])
