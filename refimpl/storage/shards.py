"""A safetensors file read by memory map: any row of it, without reading the rest (not from a paper)."""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refimpl.errors import InputError

DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8  # of the header's length, before the header
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
DIGEST = "sha256"  # the metadata key of `digest`


class BadShard(InputError):
    """A file that is not a whole shard."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A mapped file. Pages are read when touched, and the system may drop them again: they cost no own memory.

    tensors   views of the mapping; never write to them
    metadata  str → str, of the header
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def shard_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file's content: tensors on the CPU, of DTYPES, and the metadata with the tensors' digest.

    The same tensors give the same bytes, which safetensors' own writer, with metadata in any order, does not.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted({**metadata, DIGEST: digest(tensors)}.items()))}
    parts, offset = [], 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # keeps all aligned
        part = _bytes_of(tensors[name])
        header[name] = {
            "dtype": NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(part)],
        }
        parts.append(part)
        offset += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors' bytes, by name in alphabetical order."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(name.encode() + b"\0")
        state.update(_bytes_of(tensors[name]))
    return state.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data


def map_shard(path: Path) -> Shard:
    """Maps a file, checking its header and its length; the tensors' bytes are not read.

    The file may be removed or replaced while it is mapped: the mapping keeps the old content.
    Raises BadShard, with path and reason, when there is no such file or it is not whole.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(LENGTH_BYTES))[0]
            if length > min(LONGEST_HEADER, size - LENGTH_BYTES):
                raise BadShard(f"{path}: its header of {length} bytes is longer than the file, {size} bytes")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        offset = LENGTH_BYTES + length
        ends = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if offset + ends != size:
            raise BadShard(f"{path}: {size} bytes long, but its header tells of {offset + ends}")
        content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        tensors = {name: _view(content[offset:], entry) for name, entry in header.items()}
        return Shard(path, tensors, {str(key): str(value) for key, value in metadata.items()})
    except OSError as error:
        raise BadShard(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        raise BadShard(
            f"{path}: not a safetensors file of a cache ({type(error).__name__}: {error})"
        ) from error


def verify_shard(shard: Shard) -> None:
    """Reads every byte and compares with the digest of the metadata. Raises BadShard when they differ."""
    if digest(shard.tensors) != shard.metadata.get(DIGEST):
        raise BadShard(f"{shard.path}: its content does not have the SHA-256 that its header gives")


def _view(content: Tensor, entry: Mapping[str, Any]) -> Tensor:
    first, last = entry["data_offsets"]
    dtype = DTYPES[entry["dtype"]]
    if not 0 <= first <= last:
        raise ValueError(f"data_offsets {first}, {last}")
    if first == last:  # an empty view has no bytes to reinterpret
        return torch.empty(entry["shape"], dtype=dtype)
    return content[first:last].view(dtype).view(entry["shape"])
