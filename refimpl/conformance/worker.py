"""Checks in a process of their own, which is ended when it hangs where no interruption reaches, or dies.

python -m refimpl.conformance.worker ADAPTER EXAMPLES CALL_SECONDS CHECK_SECONDS
reads names of checks, a line each, and writes their outcomes as JSON, a line each.
"""

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import IO

from refimpl.conformance.check import Outcome
from refimpl.conformance.evaluate import Effort
from refimpl.errors import InputError

GRACE = 20.0  # seconds beyond a check's limit before its process is ended: drawing and shrinking take time as well
STARTING = 300.0  # seconds in which importing an adapter must be done


class Worker:
    """A process that evaluates checks of one adapter, started anew after it had to be ended.

    Use it as a context manager. Raises InputError, when started, as `load_adapter` does.
    """

    def __init__(self, adapter: str, effort: Effort | None = None) -> None:
        self.adapter, self.effort = adapter, effort or Effort()
        self._process: subprocess.Popen[str] | None = None
        self.title, self.version = "", ""
        self.links: dict[str, str] = {}

    def __enter__(self) -> "Worker":
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, check: str) -> Outcome:
        """The outcome of a check; one that ended the process, or did not come, deviates."""
        process = self._process or self._start()
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # of a process that has died: what it said last is read below
            process.stdin.write(check + "\n")
            process.stdin.flush()
        limit = self.effort.check_seconds + GRACE
        line = self._line(limit)
        if line:
            return Outcome(**json.loads(line))
        hangs = line is None
        code = self._end()
        said = f"did not return within {limit:g} s" if hangs else f"ended its process with status {code}"
        return Outcome(check, "deviates", None, f"the implementation {said}", seconds=limit if hangs else 0.0)

    def _start(self) -> subprocess.Popen[str]:
        effort = self.effort
        numbers = (effort.examples, effort.call_seconds, effort.check_seconds)
        command = [sys.executable, "-m", __name__, self.adapter, *map(str, numbers)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first = self._line(STARTING)
        if not first:
            self._end()
            raise InputError(
                f"adapter {self.adapter}: importing it ended its process, or took over {STARTING:g} s"
            )
        said = json.loads(first)
        if "error" in said:
            self._end()
            raise InputError(said["error"])
        self.title, self.version, self.links = said["title"], said["version"], said["links"]
        return self._process

    def _line(self, seconds: float) -> str | None:
        """The next line that the process writes; None when it does not come, and empty when the process has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def _end(self) -> int | None:
        """Ends the process, and returns its status: its own where it had closed its output, as a dying one does."""
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return None
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()


def main(arguments: list[str]) -> None:
    """The process: says what was loaded, then answers each check by its outcome."""
    answers = _own_output()
    adapter_name, effort = arguments[0], Effort(int(arguments[1]), float(arguments[2]), float(arguments[3]))
    from refimpl.conformance.evaluate import run_check
    from refimpl.conformance.load import describe, load_adapter
    from refimpl.conformance.registry import all_checks

    try:
        checks = all_checks()
        adapter = load_adapter(adapter_name)
    except InputError as error:
        _say(answers, {"error": str(error)})
        return
    _say(answers, describe(adapter))
    for line in sys.stdin:
        _say(answers, asdict(run_check(checks[line.strip()], adapter, effort)))


def _own_output() -> IO[str]:
    """The pipe to the parent; whatever else prints goes to the standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _say(answers: IO[str], value: object) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
