"""Whether the bytes of images have changed: cheaply by size and modification time, reliably by SHA-256."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from refimpl.data.images.archives import ImageSource, Packed
from refimpl.data.images.decode import BadImage

BLOCK = 2**20  # bytes read at a time
ABSENT = (-1, -1)


def stamp(source: ImageSource) -> tuple[int, int]:
    """(size in bytes, modification time in ns) of a file; for an image in an archive, of the archive.

    Neither changes unless the file is written to, and nearly every write changes one. Only `content` notices a tool
    that writes different bytes of the same length and restores the old modification time.
    Raises BadImage when the file can't be found.
    """
    try:
        found = os.stat(source.archive if isinstance(source, Packed) else source)
    except OSError as error:
        raise BadImage(source, f"can't be read ({error.strerror})") from error
    return found.st_size, found.st_mtime_ns


def stamps(sources: Sequence[ImageSource], rows: Sequence[int]) -> npt.NDArray[np.int64]:
    """The stamps [len(rows), 2] of some of the images, an archive's read once; ABSENT for those that aren't there."""
    archives: dict[str, tuple[int, int]] = {}

    def one(source: ImageSource) -> tuple[int, int]:
        try:
            if not isinstance(source, Packed):
                return stamp(source)
            if source.archive not in archives:
                archives[source.archive] = stamp(source)
            return archives[source.archive]
        except BadImage:
            return ABSENT

    return np.array([one(sources[row]) for row in rows], np.int64).reshape(-1, 2)


def contents(sources: Sequence[ImageSource], rows: Sequence[int]) -> npt.NDArray[np.int64]:
    """The contents [len(rows), 2] of some of the images; ABSENT for those that can't be read."""

    def one(source: ImageSource) -> tuple[int, int]:
        try:
            return content(source)
        except BadImage:
            return ABSENT

    return np.array([one(sources[row]) for row in rows], np.int64).reshape(-1, 2)


def content(source: ImageSource) -> tuple[int, int]:
    """First 16 bytes of the SHA-256 of the image's bytes, as two little-endian int64.

    Raises BadImage when they can't be read.
    """
    state = hashlib.sha256()
    try:
        with source.open() if isinstance(source, Packed) else open(source, "rb") as file:
            while block := file.read(BLOCK):
                state.update(block)
    except OSError as error:
        raise BadImage(source, f"can't be read ({error.strerror or error})") from error
    first = state.digest()
    return int.from_bytes(first[:8], "little", signed=True), int.from_bytes(
        first[8:16], "little", signed=True
    )
