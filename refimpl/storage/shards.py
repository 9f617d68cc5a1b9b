"""A cache's safetensors file, read by memory map: any row of it, without reading the rest (not from a paper)."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from refimpl.storage.safetensors_file import bytes_of
from refimpl.storage.safetensors_header import Reader

READER = Reader("shard of a cache", "run `refimpl cache` again, which replaces it")
DIGEST = "sha256"  # the metadata key of `digest`


@dataclass(frozen=True, eq=False)
class Shard:
    """A mapped file. Pages are read when touched, and the system may drop them again, so they take no extra memory.

    tensors   views of the mapping; never write to them
    metadata  str → str, from the header
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def shard_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file's content: the tensors, and the metadata with the tensors' digest.

    The same tensors give the same bytes, which safetensors' own writer, with metadata in any order, does not.
    """
    content = io.BytesIO()
    safetensors_file.write_to(content, "a shard", tensors, {**metadata, DIGEST: digest(tensors)})
    return content.getvalue()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors' names and bytes, in alphabetical order of the names."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(name.encode() + b"\0")
        state.update(bytes_of(tensors[name]))
    return state.hexdigest()


def map_shard(path: Path) -> Shard:
    """Maps a file, checking its header and its length; the tensors' bytes are not read.

    The file may be removed or replaced while it is mapped: the mapping keeps the old content.
    Raises InputError, with path and reason, when there is no such file or it is not whole.
    """
    return Shard(path, *safetensors_file.read(path, READER))


def verify_shard(shard: Shard) -> None:
    """Reads every byte and compares the digest with the one in the metadata. Raises InputError when they differ."""
    if digest(shard.tensors) != shard.metadata.get(DIGEST):
        raise InputError(
            f"{shard.path}: its content does not match the SHA-256 that its header gives; {READER.remedy}"
        )
