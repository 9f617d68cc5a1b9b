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


class WithoutShrinking:
    """pytest plugin: a property that fails has failed, and its example need not be made small."""

    def pytest_configure(self) -> None:
        """After tests/conftest.py has loaded the project's profile."""
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", settings.get_profile("refimpl"), phases=phases)
        settings.load_profile("mutants")


def run_tests(
    copy: Path, tests: Sequence[str], limit: float = TIMEOUT, keeps_bytecode: bool = False
) -> Outcome:
    """Runs tests in a process of their own, in a copy of the tree, up to the first failure or `limit` seconds.

    keeps_bytecode  whether what is compiled of the tree stays beside it, for later runs; not of a changed one
    """
    log, started = copy.with_suffix(".log"), time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(test_process(copy, tests, log, keeps_bytecode))
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
    return Outcome(-1 if code is None else code, time.monotonic() - started, tail)


def test_process(copy: Path, tests: Sequence[str], log: Path, keeps_bytecode: bool) -> int:
    """What the forked process does: pytest's exit code, or 70 when it cannot begin."""
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        os.environ["PYTHONDONTWRITEBYTECODE"] = "" if keeps_bytecode else "1"
        sys.dont_write_bytecode = not keeps_bytecode
        sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("refimpl", "tests")]:
            del sys.modules[name]
        arguments = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={copy.with_suffix('.tmp')}"]
        arguments += ["-m", "not slow and not fuzz and not faults", *tests]
        return int(pytest.main(arguments, plugins=[WithoutShrinking()]))
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
