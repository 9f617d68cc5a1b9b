"""One process at a time in a folder: an flock on a file in it, which the system takes back however its holder ends.

What a dead holder leaves locks nothing, nor does a process that it had forked and that outlives it. On NFS (Linux
2.6.12 and later) and on Lustre mounted with `flock` the lock holds between hosts; where such a mount keeps locks
local (`local_lock`, `localflock`) it holds between the processes of one host; where there are no locks, that is said
and work goes on.
"""

import errno
import fcntl
import os
from pathlib import Path

from tqdm import tqdm

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_held: set[int] = set()  # descriptors of this process's locks


class HeldElsewhere(Exception):
    """Another process holds the lock; `owner` is what it has written into the lock's file."""

    def __init__(self, owner: bytes) -> None:
        super().__init__(owner)
        self.owner = owner


def locked(path: Path, what: str) -> int:
    """Makes the file where it is absent and locks it. Returns its descriptor, to be given to `unlocked`.

    what  what nothing keeps a second process from doing where there are no locks, such as "training there too"
    Raises HeldElsewhere when another process holds the lock, and OSError when the file can't be made or locked.
    """
    while True:
        # A link is not followed: in a folder from elsewhere, it could name any file of the user's.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock(descriptor, path, what)
            if _is_file(descriptor, path):
                _held.add(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the owner before removed it just now


def unlocked(descriptor: int) -> None:
    """Lets a lock go."""
    _held.discard(descriptor)
    os.close(descriptor)


def _lock(descriptor: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HeldElsewhere(os.pread(descriptor, 4096, 0)) from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        tqdm.write(
            f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a second process "
            f"from {what}"
        )


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    """A forked process, such as a loader's, must not keep the lock when its parent has died."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
