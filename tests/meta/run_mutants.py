"""Are the tests worth their time? Every declared mutant is applied to a copy of the tree, where its tests must fail.

This process imports what takes long (torch, transformers, pytest and such) but nothing of the project, and forks a
process for every mutant, which finds the project in the copy. So a mutant costs its tests and little more.
Run by `nox -s mutants`; --only chooses mutants by a part of their id or file.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, settings

from tests.meta.declared import ROOT, Mutant, read_mutants
from tests.meta.extension import EXTENSION, compile_source, cpu_sources, link

LEAST_SHARE = 0.95  # of the mutants, which must be killed
TIMEOUT = 180.0  # seconds that the tests of one mutant may take; a mutant that makes them hang is killed
SLOW_IMPORTS = (
    "PIL.Image",
    "diffusers",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "matplotlib.figure",
    "numpy",
    "peft",
    "pyarrow.parquet",
    "safetensors.torch",
    "scipy.stats",
    "torch",
    "torch.distributed",
    "torch.utils.checkpoint",
    "torch.utils.data",
    "tqdm",
    "transformers.models.clip.modeling_clip",
    "tyro",
)
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


def main() -> int:
    """Exit status: 0 when enough mutants are killed, 1 when not, 2 when nothing can be said."""
    parser = argparse.ArgumentParser(prog="run_mutants", description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose id or file contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants tried at once")
    options = parser.parse_args()
    mutants = [m for m in read_mutants() if options.only in m.id or options.only in m.file]
    if not mutants or options.jobs < 1:
        parser.error(f"there is nothing to do for --only {options.only!r} and --jobs {options.jobs}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that copies and processes go with this one
    started = time.monotonic()
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [copy_tree(Path(folder) / f"copy-{number}") for number in range(options.jobs)]
        if any(mutant.sources for mutant in mutants):
            build(copies, Path(folder) / "objects")
        if not unchanged_tree_passes(mutants, copies):
            return 2
        print(f"{time.monotonic() - started:.0f} s: the tests pass without a mutant", flush=True)
        outcomes: dict[str, Outcome] = {}
        for mutant, outcome in in_parallel(try_mutant, mutants, copies):
            outcomes[mutant.id] = outcome
            print(f"{verdict(outcome):<13}{outcome.seconds:6.1f} s  {mutant.id}", flush=True)
    return report(mutants, outcomes, time.monotonic() - started)


def copy_tree(folder: Path) -> Path:
    """A copy of what git knows and does not ignore, with the extension if it is built."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in (*names, EXTENSION):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def build(copies: Sequence[Path], objects: Path) -> None:
    """Builds the unchanged extension for every copy, and keeps its object files for the mutants."""
    objects.mkdir()
    for _ in in_parallel(
        lambda copy, source: compile_source(copy, source, objects), cpu_sources(ROOT), copies
    ):
        pass
    for copy in copies:
        link(sorted(objects.glob("*.o")), copy / EXTENSION)


def unchanged_tree_passes(mutants: Sequence[Mutant], copies: Sequence[Path]) -> bool:
    """Runs every mapped test without a mutant; prints those that fail."""
    by_file: dict[str, set[str]] = {}
    for test in (test for mutant in mutants for test in mutant.tests):
        by_file.setdefault(test.partition("::")[0], set()).add(test)
    groups = [[file] if file in tests else sorted(tests) for file, tests in sorted(by_file.items())]
    failed = False
    for tests, outcome in in_parallel(run_tests, groups, copies):
        if outcome.code:
            failed = True
            print(f"without any mutant, {' '.join(tests)} ends in {outcome.code}:\n{outcome.log}", flush=True)
    return not failed


def try_mutant(copy: Path, mutant: Mutant) -> Outcome:
    """Runs a mutant's tests in a copy, which is afterwards as it was."""
    path, extension, kept = copy / mutant.file, copy / EXTENSION, copy / "unchanged-extension"
    content, times = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(mutant.applied_to(content), encoding="utf-8")
    try:
        if mutant.sources:
            os.link(extension, kept)
            changed = copy / "objects"
            shutil.copytree(copy.parent / "objects", changed)
            try:
                for source in mutant.sources:
                    compile_source(copy, source, changed)
                link(sorted(changed.glob("*.o")), extension)
            except subprocess.CalledProcessError as error:
                return Outcome(-2, 0.0, error.stderr)
        return run_tests(copy, mutant.tests)
    finally:
        path.write_text(content, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # compiled Python is recognised by it
        if kept.exists():
            kept.replace(extension)
            shutil.rmtree(copy / "objects")


def run_tests(copy: Path, tests: Sequence[str]) -> Outcome:
    """Runs tests in a process of their own, in a copy of the tree, up to the first failure."""
    log, started = copy.with_suffix(".log"), time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(test_process(copy, tests, log))
    code = None
    try:
        while code is None and time.monotonic() - started < TIMEOUT:
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


def test_process(copy: Path, tests: Sequence[str], log: Path) -> int:
    """What the forked process does: pytest's exit code, or 70 when it cannot begin."""
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        sys.dont_write_bytecode = True
        sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("refimpl", "tests")]:
            del sys.modules[name]
        arguments = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={copy.with_suffix('.tmp')}"]
        arguments += ["-m", "not slow and not fuzz", *tests]
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


def verdict(outcome: Outcome) -> str:
    """In a word or two."""
    return {0: "SURVIVED", -1: "killed (time)", -2: "NOT COMPILED"}.get(outcome.code, "killed")


def report(mutants: Sequence[Mutant], outcomes: dict[str, Outcome], seconds: float) -> int:
    """Prints the killed share and the survivors; returns the exit status."""
    alive = [mutant for mutant in mutants if outcomes[mutant.id].code in (0, -2)]
    share = 1 - len(alive) / len(mutants)
    print(f"\n{len(mutants) - len(alive)} of {len(mutants)} mutants killed, {share:.1%}, in {seconds:.0f} s")
    for mutant in alive:
        broken = outcomes[mutant.id].code == -2
        reason = (
            "it does not compile" if broken else mutant.equivalent or "NO REASON: write the test it lacks"
        )
        print(f"  {mutant.id} ({mutant.file}): {reason}")
    for mutant in mutants:
        if mutant.equivalent and mutant not in alive:
            print(f"  {mutant.id} is killed, though declared equivalent: {mutant.equivalent}")
    return 0 if share >= LEAST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
