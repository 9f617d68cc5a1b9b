"""All checks, in the order of the groups; needs Hypothesis."""

from importlib import import_module
from importlib.util import find_spec

from refimpl.conformance.check import CHECKS, Check
from refimpl.errors import InputError
from refimpl.names import nearest
from refimpl.packages import install_line

GROUPS = {
    "schedule": "refimpl.conformance.checks.noise.schedule",
    "noised": "refimpl.conformance.checks.noise.noised",
    "target": "refimpl.conformance.checks.noise.target",
    "weight": "refimpl.conformance.checks.noise.weight",
    "keyed": "refimpl.conformance.checks.noise.keyed",
    "scalings": "refimpl.conformance.checks.sampling.scalings",
    "sigma_to_t": "refimpl.conformance.checks.sampling.sigma_to_t",
    "first_step": "refimpl.conformance.checks.sampling.first_step",
    "grid": "refimpl.conformance.checks.sampling.grid",
    "guide": "refimpl.conformance.checks.sampling.guide",
    "buckets": "refimpl.conformance.checks.data.buckets",
    "assign": "refimpl.conformance.checks.data.assign",
    "epoch": "refimpl.conformance.checks.data.epoch",
    "resume": "refimpl.conformance.checks.data.resume",
    "crop": "refimpl.conformance.checks.data.crop",
    "chunks": "refimpl.conformance.checks.conditioning.chunks",
    "pool": "refimpl.conformance.checks.conditioning.pool",
    "size_ints": "refimpl.conformance.checks.conditioning.size_ints",
    "markers": "refimpl.conformance.checks.conditioning.markers",
}
"""Groups of checks, each about one of the adapter's methods, and the module of each."""


def all_checks() -> dict[str, Check]:
    """Every check by its name. Raises InputError, with what to install, where Hypothesis is absent."""
    if find_spec("hypothesis") is None:
        raise InputError(
            f"the checks draw their arguments with Hypothesis, which is not installed: {install_line('hypothesis')}"
        )
    for module in GROUPS.values():
        import_module(module)
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
