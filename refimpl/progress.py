"""Progress of long work: a bar on a terminal, and elsewhere lines with the time, which a log file can hold."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """How far some work has come, on stderr: a tqdm bar on a terminal, otherwise a line now and then.

    total    amount of work in all; None where it is not known. It may be set later, and grow
    label, unit  what is done, and in what it is counted
    initial  what had been done before
    is_shown whether anything is shown; of several processes, one is to do so
    on_report  whether lines come only from `report`, instead of every SECONDS_BETWEEN_LINES and at the end
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        unit: str,
        initial: int = 0,
        is_shown: bool = True,
        on_report: bool = False,
    ) -> None:
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=label,
            unit=f" {unit}",
            dynamic_ncols=True,
            disable=not (is_shown and sys.stderr.isatty()),
        )
        self.total, self.done = total, initial
        self._label, self._unit, self._initial = label, unit, initial
        self._is_shown, self._on_report = is_shown and self._bar.disable, on_report
        self._started = self._said = time.monotonic()
        self._notes: dict[str, str] = {}

    def update(self, more: int = 1) -> None:
        """Adds to what is done."""
        self.done += more
        self._bar.total = self.total
        self._bar.update(more)
        if not self._on_report and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self.report()

    def note(self, **values: str) -> None:
        """Sets what is shown beside, such as loss="0.1234"."""
        self._notes = values
        self._bar.set_postfix(values, refresh=False)

    def report(self) -> None:
        """Writes a line, where there is no terminal."""
        if self._is_shown:
            self._said = time.monotonic()
            sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._state()}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Ends the bar, or writes the last line."""
        if not self._on_report:
            self.report()
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _state(self) -> str:
        seconds = time.monotonic() - self._started
        rate = (self.done - self._initial) / seconds if seconds > 0 else 0.0
        of = "" if self.total is None else f" of {self.total}"
        parts = [f"{self._label}: {self.done}{of} {self._unit}", f"{rate:.3g}/s"]
        if self.total is not None and rate > 0 and self.done < self.total:
            parts.append(f"{_readable((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self._notes.items())])


def shown(items: Iterable[Item], total: int, label: str, unit: str) -> Iterator[Item]:
    """The items in their order, with their progress shown."""
    with Progress(total, label, unit) as progress:
        for item in items:
            yield item
            progress.update()


def _readable(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
