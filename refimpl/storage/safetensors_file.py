"""The safetensors container: read by memory map, written tensor after tensor (github.com/huggingface/safetensors).

A file is a header length (8 bytes, little-endian), a JSON header, and the tensors' bytes. Written here rather
than by the safetensors package, which needs every tensor at once, contiguous and in its final dtype.
"""

import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage.committed import replaced_file
from refimpl.storage.safetensors_header import MAX_HEADER, NAMES, Entry, parse_header

CHUNK = 1 << 20  # elements converted at a time, so that the intermediate stays in the processor's cache

PICKLED = (
    "which can run code when it is read; it is not opened. Convert it on a machine you can lose: torch.load(FILE, "
    "weights_only=True), then safetensors.torch.save_file of its state_dict"
)
# What else calls itself a checkpoint: its first bytes, what they mean, and what to do.
FOREIGN = {
    b"PK\x03\x04": f"a zip archive, as torch.save writes .ckpt and .pt files, {PICKLED}",
    **{bytes((0x80, protocol)): f"a pickle, {PICKLED}" for protocol in range(2, 6)},
    b"GGUF": "a GGUF file, whose weights are rounded for drawing alone; use the .safetensors it was made from",
    b"version ": "a pointer of Git LFS, not the file itself; fetch that with git lfs pull",
    **dict.fromkeys(
        (b"<!DOCTYP", b"<!doctyp", b"<html"), "a web page; download the file itself, perhaps logged in"
    ),
}
WEIGHTS = (torch.float16, torch.bfloat16, torch.float32)  # what weights are converted to

Value = Tensor | Sequence[Tensor]
"""What is written under one key: a tensor, or tensors to be joined along their first dimension."""


def read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, memory-mapped, and the header's metadata.

    returns  key → tensor in its stored dtype (a private map: writing to one changes neither file nor other
             readers), and the `__metadata__` table
    Raises InputError when the file is absent, no regular file, or its header does not describe its bytes.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise InputError(f"{path} is not a regular file; name a .safetensors file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = _header_length(path, file.read(8), size)
            entries, metadata = parse_header(file.read(length), size - 8 - length, str(path))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return {key: _view(mapped, 8 + length, entry) for key, entry in entries.items()}, metadata


def _header_length(path: Path, start: bytes, size: int) -> int:
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            raise InputError(f"{path} is {what}")
    if size < 8:
        raise InputError(f"{path} is not safetensors: it holds {size} bytes; copy or download it again")
    length = struct.unpack("<Q", start)[0]
    if length > MAX_HEADER:
        raise InputError(
            f"{path} is not safetensors: its header would be {length} bytes, above {MAX_HEADER}; copy or download it "
            "again"
        )
    if 8 + length > size:
        raise InputError(
            f"{path} is truncated or not safetensors: its header would end at byte {8 + length} of {size}; "
            "copy or download it again"
        )
    return length


def _view(mapped: mmap.mmap, start: int, entry: Entry) -> Tensor:
    dtype, shape, begin, end = entry
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    if (start + begin) % dtype.itemsize:  # a map starts at a page, so this is the address's alignment
        data = torch.frombuffer(mapped, dtype=torch.uint8, count=end - begin, offset=start + begin)
        return data.clone().view(dtype).view(shape)
    return torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape), offset=start + begin).view(shape)


def write(
    path: Path | str,
    tensors: Mapping[str, Value],
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Writes a file tensor after tensor; `path` is at every moment the old file or the new one, whole.

    tensors  key → tensor, or tensors to be joined along their first dimension without a copy
    dtypes   key → the dtype of WEIGHTS it is converted to, a piece at a time; its own where not named
    Raises InputError when the disk refuses it (the old file then stays), for a dtype that the format does not
    have or weights are not converted to, or when float16 cannot hold a value.
    """
    for dtype in (dtypes or {}).values():
        if dtype not in WEIGHTS:
            raise InputError(f"{path}: dtype {dtype} is unknown; weights are float16, bfloat16 or float32")
    plan = {}
    for key, value in tensors.items():
        parts = (value,) if isinstance(value, Tensor) else tuple(value)
        own = reduce(torch.promote_types, (part.dtype for part in parts))  # one that holds the values of all
        plan[key] = (parts, (dtypes or {}).get(key, own))
        if plan[key][1] not in NAMES:
            raise InputError(f"{path}: tensor {key} has dtype {plan[key][1]}, which safetensors cannot hold")
    # widest first, so that every tensor starts at a multiple of its item size
    keys = sorted(plan, key=lambda key: (-plan[key][1].itemsize, key))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for key in keys:
        parts, dtype = plan[key]
        begin, end = end, end + sum(part.numel() for part in parts) * dtype.itemsize
        header[key] = {"dtype": NAMES[dtype], "shape": _shape(parts), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replaced_file(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        scratch = Scratch()
        for key in keys:
            parts, dtype = plan[key]
            for part in parts:
                _write_values(file, part.detach().cpu(), dtype, f"{path}: tensor {key}", scratch)


def _shape(parts: Sequence[Tensor]) -> list[int]:
    first = parts[0]
    return list(first.shape) if len(parts) == 1 else [sum(len(part) for part in parts), *first.shape[1:]]


def _write_values(file: BinaryIO, tensor: Tensor, dtype: torch.dtype, name: str, scratch: "Scratch") -> None:
    if tensor.numel() == 0:
        return
    flat = tensor.contiguous().view(-1)
    if tensor.dtype == dtype:
        file.write(flat.view(torch.uint8).numpy().data)
        return
    for begin in range(0, flat.numel(), CHUNK):
        piece = flat[begin : begin + CHUNK]
        narrow = scratch.narrow.view(dtype)[: len(piece)]
        scratch.convert(piece, narrow, name)
        file.write(narrow.view(torch.uint8).numpy().data)


class Scratch:
    """Room to convert a piece of at most CHUNK values in, kept: fresh memory costs more than the conversion."""

    def __init__(self) -> None:
        self.wide = torch.empty(CHUNK)
        self.narrow = torch.empty(8 * CHUNK, dtype=torch.uint8)

    def convert(self, piece: Tensor, out: Tensor, name: str) -> None:
        """Copies a flat piece of a tensor into `out`, which has another dtype.

        name  of the tensor, for messages
        Raises InputError when a finite value would become infinite, which float16 alone does to weights.
        """
        # through float32, which is much faster than from one half precision to the other in one step
        out.copy_(self.wide[: len(piece)].copy_(piece))
        if out.dtype == torch.float16 and bool((out.isinf() & piece.isfinite()).any()):
            raise InputError(f"{name} has values beyond float16's 65504; use bfloat16 or float32")
