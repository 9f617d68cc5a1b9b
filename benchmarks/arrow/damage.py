"""What reading a damaged index does in each form: an error, other entries, or the process's end.

One byte of a small file is changed; a forked process opens the file and reads every row.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from refimpl.errors import InputError

SAME, OTHER, REFUSED, TRACEBACK = range(4)
OUTCOMES = {
    SAME: "reads the same",
    OTHER: "reads other entries",
    REFUSED: "refused",
    TRACEBACK: "other exception",
}


def outcomes(path: Path, read: Callable[[Path], object], span: int, trials: int) -> dict[str, int]:
    """How often what happens when one of the bytes that aren't texts is changed.

    read   gives all that is in a file, in a form that compares equal
    span   the byte is drawn from so many at the file's either end, where the descriptions are, half the time, and
           from the whole file the other half
    """
    generator = np.random.default_rng(0)
    whole, right, found = path.read_bytes(), read(path), Counter[str]()
    broken = path.with_suffix(".broken")
    for trial in range(trials):
        at = int(generator.integers(len(whole) if trial % 2 else span))
        at = len(whole) - 1 - at if trial % 4 == 0 else at
        data = bytearray(whole)
        data[at] ^= int(generator.integers(1, 256))
        broken.write_bytes(data)
        child = os.fork()
        if child == 0:
            os._exit(_outcome(broken, read, right))
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status)
        found["killed by a signal" if killed else OUTCOMES[os.WEXITSTATUS(status)]] += 1
    broken.unlink()
    return dict(found)


def _outcome(path: Path, read: Callable[[Path], object], right: object) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        return SAME if read(path) == right else OTHER
    except (InputError, pa.ArrowException):
        return REFUSED
    except Exception:
        return TRACEBACK
