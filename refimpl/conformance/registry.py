"""All checks, in the order of the groups; needs Hypothesis."""

from importlib import import_module
from importlib.util import find_spec

from refimpl.conformance.check import CHECKS, Check
from refimpl.errors import InputError
from refimpl.names import nearest

GROUPS = {
    "schedule": "noise", "noised": "noise", "target": "noise", "weight": "noise", "keyed": "noise",
    "scalings": "sampling", "sigma_to_t": "sampling", "first_step": "sampling", "grid": "sampling",
    "guide": "sampling",
    "buckets": "data", "assign": "data", "epoch": "data", "resume": "data", "crop": "data",
    "chunks": "conditioning", "pool": "conditioning", "size_ints": "conditioning", "markers": "conditioning",
}  # fmt: skip
INSTALL = 'pip install "refimpl[conformance]"'


def all_checks() -> dict[str, Check]:
    """Every check by its name. Raises InputError, with what to install, where Hypothesis is absent."""
    if find_spec("hypothesis") is None:
        raise InputError(
            f"the checks draw their arguments with Hypothesis, which is not installed: {INSTALL}"
        )
    for group, room in GROUPS.items():
        import_module(f"refimpl.conformance.checks.{room}.{group}")
    return {name: found for group in GROUPS for name, found in CHECKS.items() if found.group == group}


def chosen_checks(only: str = "") -> dict[str, Check]:
    """All checks, or those of one group, or one check by its name.

    Raises InputError for another name, naming the nearest, and as `all_checks` does.
    """
    checks = all_checks()
    chosen = {name: found for name, found in checks.items() if not only or only in (name, found.group)}
    if not chosen:
        near = nearest(only, [*GROUPS, *checks])
        raise InputError(f"{only!r} is no check and no group of checks; the nearest is {near[0]!r}")
    return chosen
