"""One training job at a time in a run folder.

Rank 0 holds a lock on the file `.lock` in the folder for as long as it lives (storage/ranks/lock.py says what that
means on which file system); the file says whose it is.
"""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from refimpl.errors import InputError
from refimpl.run.world import World
from refimpl.storage.atomic import remove_unfinished
from refimpl.storage.ranks.lock import HeldElsewhere, locked, unlocked
from refimpl.tables import parsed_json
from refimpl.train.watch.control_file import CONTROL, taken

LOCK = ".lock"


@contextlib.contextmanager
def run_lock(run: Path, world: World) -> Iterator[None]:
    """Within the context, no other job can enter one for the same run folder, which must exist.

    What killed writers left half written in the folder is deleted first, and what was asked of an earlier job.

    Raises InputError on every rank, naming process, host and time, while another job trains there.
    """
    descriptors: list[int] = []  # on rank 0, one

    def acquire() -> None:
        descriptors.append(_locked(run))
        remove_unfinished(run)
        taken(run / CONTROL)

    world.on_main(acquire)
    try:
        yield
    finally:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # the folder may be gone
                (run / LOCK).unlink()  # before it is let go, so that nobody has locked it
            unlocked(descriptor)


def _locked(run: Path) -> int:
    """Descriptor of the folder's lock file, locked."""
    path = run / LOCK
    try:
        descriptor = locked(path, "training there too")
    except HeldElsewhere as error:
        raise InputError(_in_use(run, error.owner)) from error
    except OSError as error:
        raise InputError(
            f"{path} can't be made: {error.strerror}; choose a folder that can be written"
        ) from error
    _describe(descriptor)
    return descriptor


def _describe(descriptor: int) -> None:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, owner, 0)


def _in_use(run: Path, owner: bytes) -> str:
    try:
        entries = parsed_json(owner)
        who = f"process {entries['pid']} on {entries['host']}, since {entries['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock, but has not yet said who it is
        who = "another process"
    return f"{run} is being trained in by {who}; wait for it or stop it, or choose another folder"
