"""The folder a run writes to: made new, or checked and continued."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps, is_whole, step_folder
from refimpl.interop.run.run_folder import CONFIG
from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.storage.committed import MANIFEST
from refimpl.tables import from_table, to_table
from refimpl.train.setup.run_lock import LOCK

# What a resumed run may change: everything else defines the run. The loop checks that ranks times
# train.accumulate, and so the global batches, stay what they were.
CHANGEABLE = {
    "train.out", "train.resume", "train.accept_data", "train.steps", "train.device", "train.checkpoint_every",
    "train.keep_checkpoints", "train.keep_every", "train.save_async",
    "train.validate_every", "train.sample_every", "train.log_every", "train.tensorboard", "train.wandb_project",
    "train.accumulate", "train.threads", "train.compile", "train.channels_last", "data.workers",
    "data.cache_megabytes",
}  # fmt: skip


def run_folder(config: Config, label: str, world: World) -> Path:
    """Makes the run folder on rank 0, or checks the one to be resumed, and returns it on every rank.

    Raises InputError when `train.out` holds anything and `train.resume` is off, when there is nothing to resume, or
    when the run to be resumed was made with other settings (naming each).
    """
    make = (lambda: _resumed(config)) if config.train.resume else (lambda: _fresh(config.train.out, label))
    return Path(world.on_main(lambda: str(make())))


@contextlib.contextmanager
def removed_if_empty(run: Path, world: World) -> Iterator[None]:
    """A run that fails before it has written anything leaves no folder behind."""
    try:
        yield
    except BaseException:
        if world.is_main:
            with contextlib.suppress(OSError):  # it is not empty: the run had begun
                run.rmdir()
        raise


def _fresh(out: str, label: str) -> Path:
    if not out:
        return _next_numbered(Path("runs"), label)
    run = Path(out)
    with _explained(run):
        if run.exists() and (not run.is_dir() or any(path.name != LOCK for path in run.iterdir())):
            what = "another run" if (run / CONFIG).exists() else "other files"
            raise InputError(
                f"train.out {run} holds {what}; choose an empty folder"
                + (", or continue that run with --train.resume" if (run / CONFIG).exists() else "")
            )
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
def _explained(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"train.out {run} cannot be made or read: {error.strerror}; choose another folder"
        ) from error


def _resumed(config: Config) -> Path:
    run = Path(config.train.out)
    if not config.train.out or not (run / CONFIG).is_file():
        raise InputError(
            f"train.resume: {config.train.out or 'train.out'!r} is not a run folder; name one with --train.out"
        )
    try:
        table = json.loads((run / CONFIG).read_text(encoding="utf-8"))
        # Through a Config, so that a run of an earlier version gets the defaults of settings added since.
        saved = _flat(to_table(from_table(Config, table, str(run / CONFIG))))
    except (OSError, ValueError) as error:
        raise InputError(
            f"train.resume: {run / CONFIG} cannot be read as a run's settings ({error})"
        ) from error
    wanted = _flat(to_table(config))
    changed = [
        key for key in sorted(saved | wanted) if saved.get(key) != wanted.get(key) and key not in CHANGEABLE
    ]
    if changed:
        listing = "\n  ".join(
            f"{key}: the run has {saved.get(key)!r}, now {wanted.get(key)!r}" for key in changed
        )
        raise InputError(f"train.resume: {run} was made with different settings:\n  {listing}")
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
    return run


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
