"""The checkpoints of a run: which there are, which is whole, which may go.

checkpoints/step-NNNNNNNN             committed (refimpl.storage.committed), or damaged since
checkpoints/step-NNNNNNNN.damaged-N   set aside when training was to go on from it: never deleted, never read again
checkpoints/.step-*                   being written or deleted; what a killed process left is deleted by the next save
"""

import re
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from refimpl.errors import InputError
from refimpl.file_kinds import named_kind
from refimpl.printable import printable
from refimpl.storage import committed
from refimpl.storage.atomic import fsync
from refimpl.storage.manifest import MANIFEST, Damaged, verify
from refimpl.storage.ranks.peers import ALONE, Peers

STEP = re.compile(r"step-(\d{8,})")
DAMAGED = ".damaged-"


def step_folder(run: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimizer steps."""
    return Path(run) / "checkpoints" / f"step-{step:08d}"


def committed_steps(run: Path) -> list[int]:
    """Steps of all checkpoints of a run that have a manifest, ascending."""
    return [step for step in _steps(run) if (step_folder(run, step) / MANIFEST).is_file()]


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` refers to: itself, or the newest in a run folder. Nothing in it is verified."""
    if (path / MANIFEST).is_file():
        return path
    steps = committed_steps(path)
    if not steps:
        raise _none_in(path)
    return step_folder(path, steps[-1])


def read_checkpoint(path: Path, states: dict[str, str]) -> tuple[Path, dict[str, str], committed.Contents]:
    """Reads states, settings and step of a checkpoint, verified: of `path` itself, or of a run's newest whole one.

    states   what is asked for → its name in checkpoints; what a checkpoint does not hold is left out
    returns  the folder, `states` without those, and their tensors with the documents config and state
    A damaged checkpoint of a run folder is passed over, which is said on stderr; nothing is renamed. Raises
    InputError when the checkpoint named is damaged, or all of the run's are.
    """
    if (path / MANIFEST).is_file() or STEP.fullmatch(path.resolve().name):
        return _read(path, states)
    first: InputError | None = None
    for step in reversed(_steps(path)):
        folder = step_folder(path, step)
        try:
            found = _read(folder, states)
        except Damaged as error:
            tqdm.write(printable(f"passed over: {error}"), file=sys.stderr)
            first = first or error
        else:
            if first is not None:
                tqdm.write(printable(f"used instead: {folder}"), file=sys.stderr)
            return found
    raise first or _none_in(path)


def newest_whole(run: Path, peers: Peers = ALONE) -> Path | None:
    """The newest checkpoint to go on from, verified by all ranks together; None where the run has none yet.

    Damaged ones are set aside: renamed, so that they are no checkpoints any more. Raises InputError when there are
    none but damaged ones, and for one of a newer version, which stays as it is.
    """
    for step in reversed(peers.on_first(lambda: _steps(run))):
        folder = step_folder(run, step)
        try:
            verify(folder, peers=peers)
        except Damaged as error:
            aside = peers.on_first(lambda: _set_aside(folder))  # noqa: B023  # called at once
            if peers.rank == 0:
                tqdm.write(f"damaged: {error}\nset aside as {aside}; going on from the checkpoint before")
        else:
            return folder
    names = peers.on_first(lambda: sorted(p.name for p in (run / "checkpoints").glob(f"step-*{DAMAGED}*")))
    if names:
        raise InputError(
            f"no checkpoint of {run} is whole: its checkpoints/ hold {', '.join(names)}; put a whole copy of one "
            "back under its step's name, or begin a new run"
        )
    return None


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is as it was committed; reads all of it. Raises InputError for one of a newer version."""
    try:
        verify(folder)
    except Damaged:
        return False
    return True


def remove_leftovers(run: Path) -> None:
    """Deletes what processes that were killed left of checkpoints that they were writing or deleting."""
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # what stays is tried again with the next checkpoint


def prune(run: Path, keep: int, every: int = 0) -> None:
    """Deletes all but the newest `keep` checkpoints (0 keeps all) and those of every `every`-th step (0: none)."""
    for step in committed_steps(run)[:-keep] if keep > 0 else []:
        if every and step % every == 0:
            continue
        folder = step_folder(run, step)
        # A name of its own first, so that one half deleted is no checkpoint.
        folder.rename(folder.with_name(f".{folder.name}.deleting"))
    remove_leftovers(run)


def _steps(run: Path) -> list[int]:
    """Steps of all folders that are, or were, checkpoints, ascending."""
    names = (STEP.fullmatch(folder.name) for folder in (Path(run) / "checkpoints").glob("step-*"))
    steps = sorted(int(name[1]) for name in names if name)
    return [step for step in steps if step_folder(run, step).is_dir()]


def _read(folder: Path, states: dict[str, str]) -> tuple[Path, dict[str, str], committed.Contents]:
    held = committed.files_of(folder)
    names = {part: name for part, name in states.items() if name in held}
    return folder, names, committed.read(folder, {*names.values(), "config", "state"})


def _set_aside(folder: Path) -> str:
    number = 1
    while (aside := folder.with_name(f"{folder.name}{DAMAGED}{number}")).exists():
        number += 1
    folder.rename(aside)
    fsync(aside.parent)
    return str(aside)


def _none_in(path: Path) -> InputError:
    advice = "give a run folder or one of its checkpoints/step-* folders"
    if path.is_file():
        problem = named_kind(path, "a run", advice, is_text=False)
        return InputError(problem or f"{path} is a file, not a run; {advice}")
    return InputError(f"{path} holds no checkpoint; {advice}")
