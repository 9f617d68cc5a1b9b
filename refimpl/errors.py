"""The error class for bad input, whose message is all the user sees, and the phrases for a full disk or memory."""

import errno
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# Exit codes of the commands, beside 0 and Python's own 1 for an error in this program (docs/faults.md).
BAD_INPUT = 2
LOST_PROCESS = 69  # EX_UNAVAILABLE of sysexits.h: what the run was working with has gone
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: all is saved, call again
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class InputError(ValueError):
    """Bad input from the user: names the value, the place, and what to do about it.

    Library callers may catch it as ValueError; the command line prints the message and exits with 2.
    """


class Problem(NamedTuple):
    """Something that is wrong with a table of settings."""

    text: str
    """What is wrong, and where in the table."""
    is_whole: bool = False
    """Whether it says so much that no source is needed before it."""


class WrongSettings(InputError):
    """Settings that are wrong, all in one message."""

    def __init__(
        self, source: str, problems: Sequence[Problem], closest: Any, open_names: Sequence[str] = ()
    ) -> None:
        """What is wrong with settings from one place.

        source      the file that they came from; empty for none
        closest     the dataclass with defaults for what is wrong, which has not checked itself; None for none
        open_names  settings whose value is not known, so that nothing can be said of them
        """
        self.source, self.problems, self.closest, self.open_names = source, problems, closest, open_names
        super().__init__(self._listed())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.problems, self.closest, self.open_names)

    def _listed(self) -> str:
        if len(self.problems) == 1 and self.problems[0].is_whole:
            return self.problems[0].text
        lines = [problem.text for problem in self.problems]
        text = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} settings are wrong", *lines])
        return f"{self.source}: {text}" if self.source else text

    def with_more(self, texts: Iterable[str]) -> "WrongSettings":
        """The same, and what else is wrong; but for what speaks of settings that are not known."""
        more = [Problem(text, True) for text in texts if not speaks_of(text, self.open_names)]
        return WrongSettings(self.source, [*self.problems, *more], self.closest, self.open_names)


def speaks_of(text: str, names: Iterable[str]) -> bool:
    """Whether a message has one of the settings in it, whole: data.cache is not in "data.cache_megabytes"."""
    return any(re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text) for name in names)


class LostProcess(InputError):
    """Another rank or a loader process has stopped, so that this one can't go on; exits with 69.

    Nothing is wrong with the input: the run can be continued from its newest checkpoint.
    """


# Phrases in torch's messages: on the CPU, for a size that overflows, and on the GPU.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "out of memory",
)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def refused_write(where: object, error: Exception) -> str:
    """What to say of a write that the system, or a library that writes, has refused."""
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or error
    if number is None or number in _NO_ROOM:
        advice = "free space or choose another folder"
    elif number in _FORBIDDEN:
        advice = "choose a folder that you may write to"
    elif number == errno.ENAMETOOLONG:
        advice = "choose a shorter name"
    else:
        advice = "choose another folder"
    return f"could not write {where}: {reason}; {advice}"
