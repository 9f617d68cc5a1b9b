"""The questions that `refimpl init` asks on a terminal, five at most, each with an answer that Return gives."""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TextIO

from refimpl.errors import InputError
from refimpl.names import nearest

MOST = 5
DIGITS = 9  # of a whole number; no run has more steps


@dataclass
class Questions:
    """Asks, and counts; where nobody is to be asked, gives every default."""

    is_asking: bool
    """Whether somebody is there to answer."""
    answers: TextIO = field(default_factory=lambda: sys.stdin)
    """Where the answers come from."""
    asked: int = 0
    """Questions so far."""

    def ask(
        self, question: str, default: str, check: Callable[[str], str | None] = lambda answer: None
    ) -> str:
        """The answer to a question; the default for an empty one, and where nobody is asked.

        check  what is wrong with an answer, or None; after a wrong one the same question is asked again
        Raises InputError where the answers end before a right one.
        """
        if not self.is_asking:
            return default
        self.asked += 1
        assert self.asked <= MOST
        while True:
            print(f"{question} [{default}] " if default else f"{question} ", end="", flush=True)
            line = self.answers.readline()
            if not line:
                print()  # the prompt stands on the line
                raise InputError("no more answers: answer on a terminal, or take every default with --yes")
            answer = line.strip() or default
            problem = check(answer)
            if problem is None:
                return answer
            print(f"  {problem}")


def one_of(known: Iterable[str]) -> Callable[[str], str | None]:
    """Checks that an answer is one of these words."""
    words = list(known)

    def check(answer: str) -> str | None:
        if answer in words:
            return None
        return f"{answer!r} is none of {', '.join(words)}; the nearest is {nearest(answer, words)[0]!r}"

    return check


def whole_number(answer: str) -> str | None:
    """Checks that an answer is a whole number of at least 1, and none that a file could not hold."""
    if re.fullmatch(rf"0*[1-9][0-9]{{0,{DIGITS - 1}}}", answer):
        return None
    return f"{answer!r} is no whole number of at least 1, of at most {DIGITS} digits"
