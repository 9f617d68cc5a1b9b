"""Evaluating checks on an adapter: many drawn arguments, the largest deviation, the simplest counterexample."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from refimpl.conformance.adapter import offers
from refimpl.conformance.check import Check, Measured, Outcome, Status
from refimpl.conformance.guarded import CALL_SECONDS, CHECK_SECONDS, Guarded
from refimpl.conformance.returned import Fault, NotOffered

SHRINKING = 300  # evaluations that may be spent on making a counterexample simpler


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    examples: int = 50
    """arguments drawn for each check that draws"""
    call_seconds: float = CALL_SECONDS
    """that one call of the adapter may take"""
    check_seconds: float = CHECK_SECONDS
    """that the calls of one check may take together"""


def run_checks(checks: Iterable[Check], adapter: object, effort: Effort | None = None) -> list[Outcome]:
    """The outcome of every check, in order."""
    return [run_check(check, adapter, effort) for check in checks]


def run_check(check: Check, adapter: object, effort: Effort | None = None) -> Outcome:
    """Evaluates one check. What the adapter does wrong, whatever it is, is in the outcome and raises nothing."""
    effort = effort or Effort()
    missing = [method for method in check.needs if not offers(adapter, method)]
    if missing:
        return Outcome(check.name, "not offered", text=", ".join(missing))
    peer = Guarded(adapter, effort.call_seconds, effort.check_seconds)
    search = _Search(check, peer)
    random_state = torch.get_rng_state()
    try:
        search.run(effort.examples)
    except NotOffered as refused:
        return Outcome(check.name, "not offered", text=str(refused), seconds=_passed(peer))
    finally:
        torch.set_rng_state(random_state)
    return search.outcome()


def _passed(peer: Guarded) -> float:
    return round(time.monotonic() - peer.started, 3)


@dataclass
class _Search:
    check: Check
    peer: Guarded
    worst: Measured | None = None
    example: dict[str, Any] | None = None
    fault: str = ""

    def run(self, examples: int) -> None:
        if not self.check.draws:
            self._deviates({})
            return
        from hypothesis import strategies as st

        arguments = st.fixed_dictionaries(self.check.draws)
        found = _find(arguments, lambda drawn: self._deviates(drawn) and False, examples)
        if found is None and self._is_finding():
            # the same draws again, this time made as simple as they can be
            self.example = _find(arguments, self._deviates, examples) or self.example

    def outcome(self) -> Outcome:
        check, worst = self.check, self.worst
        written = _written(self.example) if self.example else ""
        if worst is None or (self.fault and (check.kind == "choice" or check.holds(worst))):
            return Outcome(check.name, "deviates", None, self.fault, written, _passed(self.peer))
        text = "; ".join(part for part in (worst.text, self.fault) if part)
        status: Status = "deviates" if self._is_finding() else "conforms"
        if check.kind == "choice":
            status = "choice"
        shown = written if status == "deviates" else ""
        return Outcome(check.name, status, worst.deviation, text, shown, _passed(self.peer))

    def _is_finding(self) -> bool:
        return bool(self.fault) or (self.worst is not None and not self.check.holds(self.worst))

    def _deviates(self, drawn: dict[str, Any]) -> bool:
        """Evaluates once, and keeps the worst that was seen."""
        try:
            measured = self.check.evaluate(self.peer, drawn)
        except Fault as fault:
            self.fault = self.fault or str(fault)
            self.example = self.example or drawn
            return True
        if self.worst is None or measured.deviation > self.worst.deviation:
            self.worst = measured
            if not self.check.holds(measured):
                self.example = drawn
        return not self.check.holds(measured)


def _find(arguments: Any, is_one: Callable[[dict[str, Any]], bool], examples: int) -> dict[str, Any] | None:
    """Simplest drawn arguments for which `is_one`, or None where none of `examples` are; the same in every run.

    Where `is_one` says now this and now that of the same arguments, or making them simpler takes long, the last of
    which it was true.
    """
    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis.errors import Flaky, NoSuchExample

    found: list[dict[str, Any]] = []
    tries = 0

    def remember(drawn: dict[str, Any]) -> bool:
        nonlocal tries
        tries += bool(found)
        if tries <= SHRINKING and is_one(drawn):
            found[:] = [drawn]
            return True
        return False

    how = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
            HealthCheck.filter_too_much,
        ],
    )
    try:
        return find(arguments, remember, settings=how)
    except (NoSuchExample, Flaky):
        return found[0] if found else None


def _written(drawn: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {_value(value)}" for name, value in drawn.items())


def _value(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.tolist()!r:.200}"
    return f"{value!r:.200}"
