"""The folder a run writes to: made new, or checked and continued."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps, is_whole, step_folder
from refimpl.run.config import Config
from refimpl.run.settings.paths import OUT, out_problem
from refimpl.run.world import World
from refimpl.storage.committed import MANIFEST
from refimpl.train.setup.resumed import check_changes

RUNS = Path("runs")  # where runs are that train.out gives no folder


def run_folder(
    config: Config, label: str, world: World, is_deliberate: bool = False, setting: str = OUT
) -> Path:
    """Makes the run folder on rank 0, or checks the one to be resumed, and returns it on every rank.

    is_deliberate  whether a resumed run's settings are its own but for those that were typed, see `check_changes`
    setting        what names the folder, for messages

    Raises InputError when `train.out` holds anything and `train.resume` is off, when there is nothing to resume, or
    when the run to be resumed was made with other settings (naming each).
    """

    def make() -> str:
        out = config.train.out
        return str(_resumed(config, is_deliberate) if config.train.resume else _fresh(out, label, setting))

    return Path(world.on_main(make))


def absent_folders(out: str) -> tuple[Path, ...]:
    """The folders that a new run would make, the innermost first: `train.out`, or one in runs/, and those above."""
    run = Path(out) if out else RUNS / "run"
    return tuple(itertools.takewhile(lambda folder: not folder.exists(), (run, *run.parents)))


@contextlib.contextmanager
def removed_if_empty(run: Path, world: World, made: Sequence[Path]) -> Iterator[None]:
    """A run that fails before it has written anything leaves no folder behind that was not there before.

    made  the folders that were made for it, the innermost, of which `run` is the name now, first
    """
    try:
        yield
    except BaseException:
        if world.is_main:
            for folder in (run, *made[1:]) if made else ():
                with contextlib.suppress(OSError):  # it is not empty: the run had begun, or another is there
                    folder.rmdir()
        raise


def _fresh(out: str, label: str, setting: str) -> Path:
    if not out:
        return _next_numbered(RUNS, label)
    run = Path(out)
    with _explained(run, setting):
        problem = out_problem(run, setting)
        if problem is not None:
            raise InputError(problem)
        run.mkdir(parents=True, exist_ok=True)
    return run


def _next_numbered(parent: Path, label: str) -> Path:
    """Makes `parent`/`label`-001, or the first later number that no other run has, even one starting just now."""
    with _explained(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            run = parent / f"{label}-{number:03d}"
            with contextlib.suppress(FileExistsError):
                run.mkdir()
                return run
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def _explained(run: Path, setting: str = OUT) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{setting} {run} cannot be made or read: {error.strerror}; choose another folder"
        ) from error


def _resumed(config: Config, is_deliberate: bool) -> Path:
    run = Path(config.train.out)
    if not config.train.out:
        raise InputError("train.resume: 'train.out' is not a run folder; name one with --train.out")
    changes = check_changes(config, run, is_deliberate)
    steps = committed_steps(run)
    if steps and not (run / "components" / MANIFEST).is_file():
        raise InputError(
            f"train.resume: {run}/components is gone: the autoencoder, its scale-and-shift and the text towers that "
            "the run was trained with; put the folder back, or begin a new run with train.init_from"
        )
    if steps and steps[-1] >= config.train.steps and is_whole(step_folder(run, steps[-1])):
        raise InputError(
            f"train.resume: {run} is already at step {steps[-1]}; raise train.steps {config.train.steps}"
        )
    if changes:
        print("changed settings:\n  " + "\n  ".join(changes), flush=True)
    return run
