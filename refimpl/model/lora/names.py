"""Fast search for the known names nearest to an unknown one, among thousands of numbered module names."""

import re
from collections.abc import Callable, Iterable

from refimpl.names import nearest

NEAREST = 3  # names offered
LONGEST = 200  # characters compared; a name from a file can have any length
MOST = 50  # unknown names that differ in more than their numbers; a file can hold any number

Numbers = tuple[str, ...]


def nearest_names(names: Iterable[str]) -> Callable[[str], list[str]]:
    """A function from an unknown name or pattern to the names whose last parts are most similar, best first.

    Names are compared with their numbers masked, and by as many of their last dotted parts as the unknown name has.
    Of names that differ only in numbers, the one with the unknown name's numbers is returned, else the first.
    """
    known = list(names)
    tails: dict[int, dict[str, dict[Numbers, str]]] = {}  # number of parts → masked tail → numbers → name
    answers: dict[str, list[str]] = {}  # masked unknown name → masked tails

    def nearest_to(unknown: str) -> list[str]:
        unknown = unknown.strip("*.")[:LONGEST]
        masked, parts = _masked(unknown), unknown.count(".") + 1
        if masked not in answers:
            if len(answers) == MOST:
                return []
            if parts not in tails:
                tails[parts] = _by_tail(known, parts)
            answers[masked] = nearest(masked, tails[parts], NEAREST)
        numbered = [tails[parts][form] for form in answers[masked]]
        return [names.get(_numbers(unknown)) or next(iter(names.values())) for names in numbered]

    return nearest_to


def _by_tail(known: Iterable[str], parts: int) -> dict[str, dict[Numbers, str]]:
    tails: dict[str, dict[Numbers, str]] = {}
    for name in known:
        tail = ".".join(name.split(".")[-parts:])
        tails.setdefault(_masked(tail), {}).setdefault(_numbers(tail), name)
    return tails


def _masked(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _numbers(name: str) -> Numbers:
    return tuple(re.findall(r"\d+", name))
