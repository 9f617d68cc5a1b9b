"""The one atomic writer: at every moment a file or folder is either the complete old one or the complete new one.

What is written gets a temporary name next to its destination, is fsynced, and is moved there in one rename. It gets
the permissions that the umask leaves, whatever library wrote it.

A symbolic link at the destination is replaced like any other name: the new file stands in its place, and what the
link pointed to stays as it was. Following it would write to a place that the user did not name, and no rename reaches
across file systems.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from refimpl.errors import InputError, refused_write
from refimpl.storage.disk_space import room_for
from refimpl.storage.ranks.peers import ALONE, Peers

FILE_BITS = 0o666  # of a folder's permissions, those that a file beside it gets


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
        temporary.touch()
        mode = _mode(temporary)
        yield temporary
        _set_mode(temporary, mode)
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
def renamed_folder(
    folder: Path, last: Callable[[Path], None] | None = None, peers: Peers = ALONE, needed: int = 0
) -> Iterator[Path]:
    """Yields a temporary folder; on a clean exit it becomes `folder` in one rename, otherwise it is removed.

    last    called with the temporary folder when everything in it is safely on the disk
    peers   the ranks that write into it; rank 0 makes it, fsyncs and renames it, and all of them get its name
    needed  bytes that are to be written, for the message when there is no room for them
    Raises InputError when the disk refuses the write.
    """
    name = peers.on_first(lambda: f".{folder.name}.writing-{os.getpid()}")
    temporary = folder.with_name(name)
    try:
        peers.on_first(lambda: _make_anew(temporary))
        yield temporary
        peers.on_first(lambda: _move(temporary, folder, last))
    except (OSError, SafetensorError) as error:  # SafetensorError from transformers, which writes text towers
        raise _refused(folder, error, needed) from error
    finally:
        if peers.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Deletes the temporary files and folders in `folder` of writers that were killed; no other may be at work."""
    for path in folder.glob(".*.writing-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _make_anew(temporary: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()


def _move(temporary: Path, folder: Path, last: Callable[[Path], None] | None) -> None:
    mode = _mode(temporary)
    for path in sorted(temporary.rglob("*")):  # folders too, since their entries name the files
        _set_mode(path, mode if path.is_dir() else mode & FILE_BITS)
        fsync(path)
    if last is not None:
        last(temporary)
    fsync(temporary)
    os.rename(temporary, folder)
    fsync(folder.parent)


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode(path: Path) -> int:
    """A file's permissions: those of one just made are what the umask leaves, which can't be asked for safely."""
    return stat.S_IMODE(path.stat().st_mode)


def _set_mode(path: Path, mode: int) -> None:
    if _mode(path) != mode:
        path.chmod(mode)


def _refused(path: Path, error: Exception, needed: int = 0) -> InputError:
    message = refused_write(path, error)
    return InputError(f"{message} ({room_for(path, needed)})" if needed else message)
