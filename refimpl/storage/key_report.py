"""What differs between the tensors a network needs and those a file holds, with the nearest name for each."""

import difflib
from bisect import bisect
from collections.abc import Iterable, Mapping

COMPARED = 2000  # unknown names, more than SDXL has; a header can hold a million, at a millisecond each
NEIGHBOURS = 6  # on either side in each order, compared letter by letter

Shapes = Mapping[str, tuple[int, ...]]


def differences(expected: Shapes, found: Shapes) -> list[str]:
    """One line per tensor that is missing, unknown or of another shape; empty where all fit.

    An unknown tensor is shown with the nearest name among those missing, or among all when none is; so are the
    first 2,000 of them.
    """
    missing = [key for key in expected if key not in found]
    nearest = Nearest(missing or expected)
    lines = [f"missing   {key} {list(expected[key])}" for key in missing]
    for count, key in enumerate(key for key in found if key not in expected):
        near = nearest(key) if count < COMPARED else None
        lines.append(f"unknown   {key} {list(found[key])}" + (f" (the nearest is {near})" if near else ""))
    lines += [
        f"misshapen {key}: the file has {list(found[key])}, the network needs {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    return lines


class Nearest:
    """Finds the most similar of many names, among those next to it in alphabetical order read either way.

    Two thousand unknown names against two thousand known ones take seconds so, and minutes pair by pair.
    """

    def __init__(self, names: Iterable[str]):
        self.forward = sorted(names)
        self.backward = sorted(name[::-1] for name in self.forward)

    def __call__(self, name: str) -> str | None:
        """The most similar name; None when there is none at all."""
        candidates = _around(self.forward, name)
        candidates += [found[::-1] for found in _around(self.backward, name[::-1])]
        return max(candidates, key=lambda known: _likeness(name, known), default=None)


def _around(names: list[str], name: str) -> list[str]:
    place = bisect(names, name)
    return names[max(place - NEIGHBOURS, 0) : place + NEIGHBOURS]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one[-200:], other[-200:], autojunk=False).ratio()
