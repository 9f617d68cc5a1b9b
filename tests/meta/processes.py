"""Tests run in forked processes, each in a copy of the tree: a process for every run, one run at a time in a copy."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, settings

from tests.meta.declared import ROOT

TIMEOUT = 180.0  # seconds that the tests of one mutant may take; a mutant that makes them hang is killed
Fork = multiprocessing.get_context("fork")


class Outcome(NamedTuple):
    """What the tests said."""

    code: int
    """pytest's exit code; −1 when they took too long, −2 when the mutant does not compile"""
    seconds: float
    log: str
    """the last lines of the tests' output"""
    failed: tuple[str, ...] = ()
    """node ids of the tests that failed, or of files that could not be collected: one, as runs end at the first"""


class OfOneRun:
    """pytest plugin: notes what fails; a property that fails has failed, and its example need not be made small.

    failed  file that gets the node ids, one a line
    only  node ids of those to run: a file is all of its tests, a name without [ ] all of its cases; None: all
    """

    def __init__(self, failed: Path, only: frozenset[str] | None) -> None:
        self.failed, self.only = failed, only
        failed.write_text("")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leaves those named; a test that is not found has failed."""
        if self.only is not None:
            names = {item.nodeid: names_of(item.nodeid) for item in items}
            for missing in sorted(self.only.difference(*names.values())):
                self.note(missing)
            items[:] = [item for item in items if names[item.nodeid] & self.only]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of a test."""
        if report.failed:
            self.note(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Of a file."""
        if report.failed:
            self.note(report.nodeid)

    def note(self, name: str) -> None:
        """Adds a line."""
        with self.failed.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")

    def pytest_configure(self) -> None:
        """After tests/conftest.py has loaded the project's profile."""
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", settings.get_profile("refimpl"), phases=phases)
        settings.load_profile("mutants")


def names_of(node: str) -> set[str]:
    """A test's node id and what it is one of: all cases of the test, and the file."""
    return {node, node.partition("[")[0], node.partition("::")[0]}


def run_tests(
    copy: Path, tests: Sequence[str], limit: float = TIMEOUT, only: frozenset[str] | None = None
) -> Outcome:
    """Runs tests in a process of their own, in a copy of the tree, up to the first failure or `limit` seconds.

    only  node ids of those to run, then all of them, whatever fails
    """
    log, started = copy.with_suffix(".log"), time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(test_process(copy, tests, log, only))
    code = None
    try:
        while code is None and time.monotonic() - started < limit:
            time.sleep(0.02)
            ended, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # itself when it hangs, and whatever it has left behind
    if code is None:
        os.waitpid(child, 0)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    failed = copy.with_suffix(".failed")
    names = tuple(dict.fromkeys(failed.read_text().splitlines())) if failed.exists() else ()
    return Outcome(-1 if code is None else code, time.monotonic() - started, tail, names)


def test_process(copy: Path, tests: Sequence[str], log: Path, only: frozenset[str] | None) -> int:
    """What the forked process does: pytest's exit code, or 70 when it cannot begin."""
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # what is compiled of a mutant must not outlive it
        sys.dont_write_bytecode = True
        sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("refimpl", "tests")]:
            del sys.modules[name]
        arguments = ["-q", "-p", "no:cacheprovider", f"--basetemp={copy.with_suffix('.tmp')}"]
        arguments += ["-m", "not slow and not fuzz and not faults", *tests, *(["-x"] if only is None else [])]
        return int(pytest.main(arguments, plugins=[OfOneRun(copy.with_suffix(".failed"), only)]))
    except BaseException as error:  # whatever it is, no process may go on where the other one is
        print(repr(error), file=sys.stderr)
        return 70


def in_parallel(function: Callable[[Path, Any], Any], items: Sequence, copies: Sequence[Path]) -> Iterator:
    """(item, function(copy, item)) of every item as they end, a process at work in each copy."""
    following, results = Fork.Value("i", 0), Fork.SimpleQueue()

    def work(copy: Path) -> None:
        while True:
            with following.get_lock():
                number = following.value
                following.value += 1
            if number >= len(items):
                return
            try:
                results.put((number, function(copy, items[number]), None))
            except Exception as error:
                results.put((number, None, repr(error)))

    workers = [Fork.Process(target=work, args=(copy,)) for copy in copies]
    for worker in workers:
        worker.start()
    try:
        for _ in items:
            number, result, problem = results.get()
            if problem:
                raise RuntimeError(f"{items[number]}: {problem}")
            yield items[number], result
    finally:
        for worker in workers:
            worker.terminate()  # idle, unless something went wrong
            worker.join()
