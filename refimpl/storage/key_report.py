"""What differs between the tensors a network needs and those a file holds, with the nearest name for each."""

from bisect import bisect
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from refimpl.errors import InputError
from refimpl.names import nearest
from refimpl.printable import one_line

if TYPE_CHECKING:
    from torch import Tensor

COMPARED = (
    2000  # unknown names compared, more than SDXL has; a header can hold a million, at a millisecond each
)
NEIGHBOURS = 6  # names on either side, in each order, that are compared letter by letter

Shapes = Mapping[str, tuple[int, ...]]


CONFIGURATION = "Use the configuration the checkpoint was written with, or another checkpoint."


def shapes_of(state: Mapping[str, "Tensor"]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a state dict."""
    return {key: tuple(value.shape) for key, value in state.items()}


def check_state(
    expected: Shapes, state: Mapping[str, "Tensor"], source: str, integers: Container[str] = ()
) -> None:
    """Raises InputError listing every tensor that is missing, unknown, or of the wrong shape or dtype for a module.

    expected  names and shapes of the module's parameters        integers  names that must hold integers
    """
    problems = differences(expected, shapes_of(state))
    problems += [
        f"integers  {one_line(key)}: the file has {state[key].dtype}, weights are floating-point numbers"
        for key in expected
        if key in state and key not in integers and not state[key].is_floating_point()
    ]
    problems += [
        f"fractions {key}: the file has {state[key].dtype}, these codes are integers"
        for key in expected
        if key in state and key in integers and state[key].is_floating_point()
    ]
    refuse(problems, f"{source} does not fit this model", CONFIGURATION)


def refuse(problems: Sequence[str], what: str, remedy: str) -> None:
    """Raises InputError with all of the problems, if there are any; each is about one tensor."""
    if problems:
        listing = "\n  ".join(problems)
        raise InputError(f"{what}; {len(problems)} of its tensors differ:\n  {listing}\n{remedy}")


def differences(
    expected: Shapes, found: Shapes, similar: Callable[[str], Sequence[str]] | None = None
) -> list[str]:
    """One line per tensor that is missing, unknown or of another shape; empty if all fit.

    similar  finds the names most like an unknown one; by default the nearest missing name, or any if none is missing
    Only the first 2,000 unknown tensors are shown with similar names.
    """
    missing = [key for key in expected if key not in found]
    similar = similar or Nearest(missing or expected)
    lines = [f"missing   {key} {list(expected[key])}" for key in missing]
    for count, key in enumerate(key for key in found if key not in expected):
        near = similar(key) if count < COMPARED else ()
        verb = "is" if len(near) == 1 else "are"
        hint = f" (the nearest {verb} {', '.join(map(one_line, near))})" if near else ""
        lines.append(f"unknown   {one_line(key)} {list(found[key])}{hint}")
    lines += [
        f"misshapen {key}: the file has {list(found[key])}, the network needs {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    return lines


class Nearest:
    """Finds the most similar of many names, among those next to it in alphabetical order read either way.

    Two thousand unknown names against two thousand known ones take seconds this way; pair by pair they take minutes.
    """

    def __init__(self, names: Iterable[str]):
        self.forward = sorted(names)
        self.backward = sorted(name[::-1] for name in self.forward)

    def __call__(self, name: str) -> list[str]:
        """The most similar name; an empty list when there are no names at all."""
        candidates = _around(self.forward, name)
        candidates += [found[::-1] for found in _around(self.backward, name[::-1])]
        return nearest(name, candidates)


def _around(names: list[str], name: str) -> list[str]:
    place = bisect(names, name)
    return names[max(place - NEIGHBOURS, 0) : place + NEIGHBOURS]
