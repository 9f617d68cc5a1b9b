"""Files that are at every moment the old one or the new one, whole; for what this folder writes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from refimpl.errors import InputError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; on a clean exit it takes the place of `path` in one rename, else it is removed.

    Raises InputError when the disk refuses a write; what was at `path` then stays.
    """
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"could not write {path}: {reason}; free space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)
