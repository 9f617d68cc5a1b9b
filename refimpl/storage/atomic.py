"""The one atomic writer: at every moment a file or folder is either the complete old one or the complete new one.

What is written gets a temporary name next to its destination, is fsynced, and is moved there in one rename.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from refimpl.errors import InputError


@contextlib.contextmanager
def replaced_file(path: Path, make_folder: bool = False) -> Iterator[Path]:
    """Yields a name to write to; on a clean exit that file becomes `path` in one rename, otherwise it is removed.

    make_folder  also makes the folder that the file goes to
    Raises InputError when the disk refuses the write; the old file is then kept.
    """
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone, or the name be too long for it
            temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file that at every moment is either the complete old one or the complete new one.

    Raises InputError when the disk refuses the write; the old file is then kept.
    """
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def renamed_folder(folder: Path, last: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yields a temporary folder; on a clean exit it becomes `folder` in one rename, otherwise it is removed.

    last  called with the temporary folder when everything in it is safely on the disk
    Raises InputError when the disk refuses the write.
    """
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.rglob("*")):  # folders too, since their entries name the files
            fsync(path)
        if last is not None:
            last(temporary)
        fsync(temporary)
        os.rename(temporary, folder)
        fsync(folder.parent)
    except (OSError, SafetensorError) as error:  # SafetensorError from transformers, which writes text towers
        raise _refused(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"could not write {path}: {reason}; free space or choose another folder")
