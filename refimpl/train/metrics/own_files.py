"""The files of a run folder that its pages show: its own alone, since a link may lead to any file of the reader's."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

SHOWN = ("config.json", "metrics.jsonl", "faults.jsonl", "quarantine.jsonl", "samples", "report.html")
LINK = "links in a run folder are not followed"


def opened_regular(path: Path) -> BinaryIO:
    """A file opened to be read.

    Raises OSError for a link, and for all that is no regular file: a pipe would be waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, LINK, str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def linked(run: Path) -> str:
    """A line that names the links among what a run's pages would show; empty where there is none.

    The run folder itself may be a link: whoever names it means where it leads.
    """
    names = [name for name in SHOWN if (run / name).is_symlink()]
    return f"{', '.join(names)}: {LINK}" if names else ""
