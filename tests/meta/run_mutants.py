"""Are the tests worth their time? Every declared mutant is applied to a copy of the tree, where its tests must fail.

This process imports what takes long (torch, transformers, pytest and such) but nothing of the project, and forks a
process for every mutant, which finds the project in the copy. So a mutant costs its tests and little more.
Run by `nox -s mutants`; --only chooses mutants by a part of their id or file.
"""

import argparse
import compileall
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from tests.meta.declared import ROOT, Mutant, read_mutants
from tests.meta.extension import EXTENSION, compile_source, cpu_sources, link
from tests.meta.processes import Outcome, in_parallel, run_tests
from tests.ops.emulator.build import OBJECTS

UNCHANGED_TIMEOUT = 900.0  # seconds that the tests of one file may take without a mutant
LEAST_SHARE = 0.95  # of the mutants, which must be killed
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


def main() -> int:
    """Exit status: 0 when enough mutants are killed, 1 when not, 2 when nothing can be said."""
    parser = argparse.ArgumentParser(prog="run_mutants", description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose id or file contains this")
    parser.add_argument("--slow", action="store_true", help="also those that take more than ten seconds each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants tried at once")
    options = parser.parse_args()
    mutants = [m for m in read_mutants() if options.only in m.id or options.only in m.file]
    if not (options.slow or options.only):
        print(
            f"{sum(m.slow for m in mutants)} of {len(mutants)} are slow and left out; --slow tries them too"
        )
        mutants = [m for m in mutants if not m.slow]
    if not mutants or options.jobs < 1:
        parser.error(f"there is nothing to do for --only {options.only!r} and --jobs {options.jobs}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that copies and processes go with this one
    started = time.monotonic()
    import_what_is_slow()
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        os.environ[OBJECTS] = str(Path(folder) / "emulator-objects")  # most mutants change none of them
        copies = copy_tree([Path(folder) / f"copy-{number}" for number in range(options.jobs)])
        if any(mutant.sources for mutant in mutants):
            build(copies, Path(folder) / "objects")
        compile_tests(
            sorted({test.partition("::")[0] for mutant in mutants for test in mutant.tests}), copies
        )
        outcomes: dict[str, Outcome] = {}
        for mutant, outcome in in_parallel(try_mutant, mutants, copies):
            outcomes[mutant.id] = outcome
            print(f"{verdict(outcome):<13}{outcome.seconds:6.1f} s  {mutant.id}", flush=True)
        print(f"{time.monotonic() - started:.0f} s: now the tests that failed, without a mutant", flush=True)
        if not pass_unchanged({test for mutant in mutants for test in killers(mutant, outcomes)}, copies):
            return 2
    return report(mutants, outcomes, time.monotonic() - started)


def import_what_is_slow() -> None:
    """Imports what the tests' processes then have: other people's packages and pytest's plugins."""
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):
        plugin.load()


def copy_tree(copies: Sequence[Path]) -> Sequence[Path]:
    """Copies of what git knows and does not ignore, with the extension if it is built, and compiled Python."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in (*names, EXTENSION):
        if name and (ROOT / name).is_file():
            (copies[0] / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copies[0] / name)
    compileall.compile_dir(copies[0] / "refimpl", quiet=2)
    for copy in copies[1:]:
        shutil.copytree(copies[0], copy)
    return copies


def build(copies: Sequence[Path], objects: Path) -> None:
    """Builds the unchanged extension for every copy, and keeps its object files for the mutants."""
    objects.mkdir()
    for _ in in_parallel(
        lambda copy, source: compile_source(copy, source, objects), cpu_sources(ROOT), copies
    ):
        pass
    for copy in copies:
        link(sorted(objects.glob("*.o")), copy / EXTENSION)


def compile_tests(files: Sequence[str], copies: Sequence[Path]) -> None:
    """Collects them once and gives every copy what is compiled: pytest takes long to rewrite assertions."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": str(copies[0])}
    subprocess.run(command, cwd=copies[0], env=environment, check=True, stdout=subprocess.DEVNULL)
    for copy in copies[1:]:
        for compiled in copies[0].glob("tests/**/__pycache__/*.pyc"):
            place = copy / compiled.relative_to(copies[0])
            place.parent.mkdir(exist_ok=True)
            shutil.copy2(compiled, place)


def killers(mutant: Mutant, outcomes: dict[str, Outcome]) -> tuple[str, ...]:
    """The tests that a mutant made fail; where they hung or crashed, all that are mapped to it."""
    outcome = outcomes[mutant.id]
    return () if outcome.code in (0, -2) else outcome.failed or mutant.tests


def pass_unchanged(tests: set[str], copies: Sequence[Path]) -> bool:
    """Whether tests, by node id or file, pass without any mutant; those that do not have noticed nothing."""
    by_file: dict[str, set[str]] = {}
    for test in tests:
        by_file.setdefault(test.partition("::")[0], set()).add(test)
    passed = True

    def run(copy: Path, file: str) -> Outcome:
        return run_tests(copy, [file], UNCHANGED_TIMEOUT, frozenset(by_file[file]))

    for file, outcome in in_parallel(run, sorted(by_file, key=lambda file: -len(by_file[file])), copies):
        if outcome.code:
            passed = False
            print(f"without any mutant, {file} ends in {outcome.code}:\n{outcome.log}", flush=True)
    return passed


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
