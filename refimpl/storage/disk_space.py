"""Room on a file system, looked at before many bytes are written to it."""

import os
from pathlib import Path

from refimpl.errors import InputError


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write where `path` is, or is to be. A quota is not known to the file system."""
    while not path.exists():
        path = path.parent
    system = os.statvfs(path)
    return system.f_bavail * system.f_frsize


def check_room(path: Path, needed: int) -> None:
    """Raises InputError when `needed` bytes don't fit onto the file system of `path`."""
    if needed > free_bytes(path):
        raise InputError(
            f"could not write {path}: no room on its file system ({room_for(path, needed)}); what is there stays as "
            "it is; free space or choose another folder"
        )


def room_for(path: Path, needed: int) -> str:
    """What a write needs and what there is."""
    return f"{needed:,} bytes to be written, {free_bytes(path):,} bytes free"
