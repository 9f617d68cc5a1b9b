"""One training job at a time in a run folder.

Rank 0 holds a lock (flock) on the file `.lock` in the folder for as long as it lives: the system takes the lock back
when the process ends, however it ends, so that what a dead owner leaves locks nothing. On NFS (Linux 2.6.12 and
later) and on Lustre mounted with `flock` it holds between hosts; where such a mount keeps locks local (`local_lock`,
`localflock`) it holds between the processes of one host; where there are no locks, that is said and training goes on.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from refimpl.errors import InputError
from refimpl.run.world import World
from refimpl.storage.atomic import remove_unfinished
from refimpl.tables import parsed_json
from refimpl.train.watch.control_file import CONTROL, taken

LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_held: set[int] = set()  # descriptors of this process's locks


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
            _held.discard(descriptor)
            os.close(descriptor)


def _locked(run: Path) -> int:
    """Descriptor of the folder's lock file, locked."""
    path = run / LOCK
    while True:
        try:
            # A link is not followed: in a folder from elsewhere, it could name any file of the user's.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise InputError(
                f"{path} can't be made: {error.strerror}; choose a folder that can be written"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise InputError(_in_use(run, owner)) from error
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                os.close(descriptor)
                raise
            tqdm.write(
                f"{run} is on a file system without locks ({error.strerror}): nothing keeps a second job from "
                "training there too"
            )
        if _is_file(descriptor, path):
            break
        os.close(descriptor)  # the owner before removed it just now
    _held.add(descriptor)
    _describe(descriptor)
    return descriptor


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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


def _close_in_child() -> None:
    """A forked process, such as a loader's, must not keep the lock when its parent has died."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
