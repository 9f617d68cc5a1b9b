"""Folders of images, each with its caption beside it: `name.jpg`, `name.txt` or `name.caption`."""

import os
import unicodedata
from collections.abc import Iterator

from refimpl.data.images.decode import FORMAT_OF
from refimpl.data.index.record import Item
from refimpl.data.index.shard import Unit
from refimpl.errors import InputError

SIDECAR_SUFFIXES = (".txt", ".caption")  # the first that exists is read
UNIT_IMAGES = 2048  # of one unit of work


def units(root: str) -> Iterator[Unit]:
    """The images under `root`, in pieces. Raises InputError when a folder can't be read."""
    names: list[str] = []
    for image, sidecar in _find(root):
        names += [image, sidecar]
        if len(names) == 2 * UNIT_IMAGES:
            yield _unit(root, names)
            names = []
    if names:
        yield _unit(root, names)


def _unit(root: str, names: list[str]) -> Unit:
    return Unit("folder", root, "\0".join(names), len(names) // 2)  # no file name holds a NUL


def items(unit: Unit) -> Iterator[Item]:
    """The images of a piece."""
    names = unit.payload.split("\0")
    for image, sidecar in zip(names[::2], names[1::2], strict=True):
        yield Item(identifier(image), image, sidecar or None)


def identifier(path: str) -> str:
    """Id of the image at a relative path: the path without its suffix, with `/`, in Unicode normal form C."""
    return unicodedata.normalize("NFC", os.path.splitext(path)[0].replace(os.sep, "/"))


def _find(root: str) -> Iterator[tuple[str, str]]:
    """Relative paths of the images and of their sidecars ("" if there is none), folders and names sorted."""
    for directory, folders, names in os.walk(root, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = os.path.relpath(directory, root)
        prefix = "" if here == "." else here + os.sep
        captions: dict[str, dict[str, str]] = {}
        for name in sorted(names, reverse=True):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SIDECAR_SUFFIXES:
                captions.setdefault(stem, {})[suffix.lower()] = name
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if name.startswith(".") or suffix.lower() not in FORMAT_OF:
                continue
            beside = captions.get(stem, {})
            sidecar = next((prefix + beside[s] for s in SIDECAR_SUFFIXES if s in beside), "")
            yield prefix + name, sidecar


def _unreadable(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: the folder can't be read ({error.strerror}); its images would be missed"
    )
