"""What a check is, how it is declared, and what comes out of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Class = Literal["must", "choice"]
Status = Literal["conforms", "deviates", "choice", "not offered"]


@dataclass(frozen=True)
class Measured:
    """What one evaluation of a check has seen.

    deviation  in the check's unit; NaN counts as infinite
    text       the value that was seen, as people would write it; of a choice, what was chosen
    """

    deviation: float
    text: str = ""


@dataclass(frozen=True)
class Check:
    """One statement about an implementation, and how far it may be from true."""

    name: str
    """group.function"""
    group: str
    """what it is about, one of the adapter's methods"""
    statement: str
    """the statement, one sentence"""
    cites: str
    """where it comes from: paper and equation, or the mathematics"""
    unit: str
    """what the deviation is measured in"""
    kind: Class
    """must: mathematics, or what the paper says; choice: the paper is silent, and the value is recorded"""
    limit: float
    """largest deviation that conforms"""
    needs: tuple[str, ...]
    """methods of the adapter that it calls"""
    measure: Callable[..., Any] = field(repr=False)
    """(peer, **drawn) → Measured or the deviation alone"""
    draws: dict[str, Any] = field(repr=False, default_factory=dict)
    """Hypothesis strategies of the arguments; none for a check that is evaluated once"""

    def holds(self, measured: Measured) -> bool:
        """Whether a measurement is within the limit."""
        return measured.deviation <= self.limit

    def evaluate(self, peer: Any, drawn: dict[str, Any]) -> Measured:
        """One evaluation; a NaN becomes an infinite deviation."""
        value = self.measure(peer, **drawn)
        measured = value if isinstance(value, Measured) else Measured(float(value))
        if math.isnan(measured.deviation):
            return Measured(math.inf, measured.text or "NaN")
        return measured


@dataclass(frozen=True)
class Outcome:
    """What a check has found about one adapter."""

    check: str
    """name of the check"""
    status: Status
    """deviates includes what raised, hung, or returned something of the wrong form"""
    deviation: float | None = None
    """largest one seen, in the check's unit; None where nothing could be measured"""
    text: str = ""
    """the value seen at that deviation, or what went wrong"""
    counterexample: str = ""
    """the simplest arguments that deviate, as Python would write them"""
    seconds: float = 0.0
    """how long it took"""


CHECKS: dict[str, Check] = {}
"""Every declared check by its name, in the order of declaration; `registry.all_checks` fills it."""


def check(
    *, cites: str, unit: str, kind: Class = "must", limit: float = 0.0, needs: str = "", **draws: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares a function as a check; the function's module names its group, its docstring states it.

    needs  the adapter's methods, separated by spaces; the group's own if empty        draws  Hypothesis strategies
    """

    def declare(measure: Callable[..., Any]) -> Callable[..., Any]:
        group = measure.__module__.rpartition(".")[2]
        name = f"{group}.{measure.__name__}"
        statement = " ".join((measure.__doc__ or "").split())
        if name in CHECKS and CHECKS[name].measure is not measure:
            raise ValueError(f"two checks are named {name}")
        methods = tuple(needs.split()) or (group,)
        CHECKS[name] = Check(name, group, statement, cites, unit, kind, limit, methods, measure, draws)
        return measure

    return declare
