"""Whether an image's bytes have changed: cheaply by size and modification time, reliably by SHA-256."""

import hashlib
import os

from refimpl.data.images.archives import ImageSource, Packed
from refimpl.data.images.decode import BadImage

BLOCK = 2**20  # bytes read at a time


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
