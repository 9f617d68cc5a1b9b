"""Tar shards in WebDataset's layout: an image and its caption share a stem; both are read in place."""

import os
import tarfile
import unicodedata
from collections.abc import Iterator

from refimpl.data.images.archives import TarMember
from refimpl.data.images.decode import FORMAT_OF, BadImage
from refimpl.data.index.record import Item
from refimpl.data.index.shard import Unit
from refimpl.errors import InputError

SIDECAR_SUFFIXES = (".txt", ".caption", ".json")  # the first that exists is read; .json holds a record
IMAGE_BYTES = 200_000  # of one image and its caption, as a guess for the progress bar
_REFUSED = (
    (tarfile.TarInfo.issym, "a symbolic link"),
    (tarfile.TarInfo.islnk, "a hard link"),
    (tarfile.TarInfo.isdev, "a device or a pipe"),
    (tarfile.TarInfo.issparse, "a sparse file"),
)


def units(path: str) -> Iterator[Unit]:
    """The whole shard as one piece. Raises InputError for a file that is compressed or not a tar archive."""
    try:
        with tarfile.open(path, "r:"):
            pass
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a tar file that can be read in place ({error}); decompress it, or make it again"
        ) from error
    yield Unit("tar", path, "", max(1, os.path.getsize(path) // IMAGE_BYTES))


def items(unit: Unit) -> Iterator[Item | BadImage]:
    """The images of a shard sorted by name; members that are not allowed are yielded as errors."""
    members: dict[str, TarMember] = {}
    sidecars: dict[str, dict[str, TarMember]] = {}
    shard = os.path.splitext(os.path.basename(unit.root))[0]
    size = os.path.getsize(unit.root)
    try:
        with tarfile.open(unit.root, "r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                named = f"{unit.root}/{info.name}"
                reason = _refusal(info)
                if reason or info.offset_data + info.size > size:
                    yield BadImage(named, reason or "the archive ends before the member does", "archive")
                    continue
                member = TarMember(unit.root, info.name, info.offset_data, info.size, size)
                stem, suffix = os.path.splitext(info.name)
                if suffix.lower() in SIDECAR_SUFFIXES:
                    sidecars.setdefault(stem, {})[suffix.lower()] = member
                elif suffix.lower() in FORMAT_OF:
                    if info.name in members:
                        yield BadImage(
                            named, "the archive has this name twice; the last one counts", "archive"
                        )
                    members[info.name] = member
            _check_end(unit.root, archive.offset)
    except Exception as error:  # of any class: tarfile trusts the numbers in damaged headers
        reason = f"the archive is damaged ({type(error).__name__}: {error}); what follows is lost"
        yield BadImage(unit.root, reason, "archive")
    for name, member in sorted(members.items()):
        stem = os.path.splitext(name)[0]
        beside = sidecars.get(stem, {})
        sidecar = next((beside[suffix] for suffix in SIDECAR_SUFFIXES if suffix in beside), None)
        key = unicodedata.normalize("NFC", f"{shard}/{stem.removeprefix('./')}")
        yield Item(key, member, sidecar)


def _check_end(path: str, at: int) -> None:
    """Raise ValueError unless the archive ends where tarfile stopped reading, as it also stops at damage."""
    with open(path, "rb") as file:
        file.seek(at)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise ValueError(f"no member header at byte {at}")


def _refusal(info: tarfile.TarInfo) -> str:
    """Why a member is rejected; empty for a regular file whose name stays inside the archive."""
    kind = next((name for test, name in _REFUSED if test(info)), "")
    if kind:
        return f"{kind} in an archive is not read; put the file itself into the archive"
    if info.name.startswith(("/", "\\")) or ".." in info.name.replace("\\", "/").split("/"):
        return "its name is absolute or leaves the archive through `..`; rename it"
    if not info.isreg():
        return f"a member of type {info.type!r} is not a regular file"
    return ""
