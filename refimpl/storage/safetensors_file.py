"""Tensors in safetensors files: read by memory map, written one after another (github.com/huggingface/safetensors).

Written here rather than by the safetensors package, which needs every tensor at once, contiguous and in its final
dtype.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage.atomic import replaced_file
from refimpl.storage.safetensors_header import CHECKPOINT, Entry, Pieces, Reader, opened, write_container

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 1 << 20  # elements converted at a time, so that the intermediate stays in the processor's cache
WEIGHTS = (torch.float16, torch.bfloat16, torch.float32)  # the dtypes that weights can be converted to

Value = Tensor | Sequence[Tensor]
"""What is written under one key: a tensor, or tensors to be joined along their first dimension."""


def read(path: Path | str, reader: Reader = CHECKPOINT) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, memory-mapped, and the header's metadata.

    reader   what messages call the file and tell the user to do about it
    returns  key → tensor in its stored dtype (a private map: writing to one changes neither the file nor other
             readers), and the `__metadata__` table
    Pages are read when touched, and the system may drop them again. The file may be removed or replaced in the
    meantime: the map keeps the old content.
    Raises InputError when the file is absent, not a regular file, or its header does not describe its bytes.
    """
    with opened(path, reader) as (file, header):
        size = header.start + max((entry.end for entry in header.entries.values()), default=0)
        # By descriptor, so that this is the file whose header was read; torch keeps none open, unlike mmap.
        content = torch.from_file(f"/dev/fd/{file.fileno()}", shared=False, size=size, dtype=torch.uint8)
    mapped = content.numpy()
    return {key: _view(mapped, header.start, entry) for key, entry in header.entries.items()}, header.metadata


def _view(mapped: npt.NDArray[np.uint8], start: int, entry: Entry) -> Tensor:
    """A tensor with storage of its own, so that copying it or sending it elsewhere takes no other along."""
    dtype, shape, begin, end = DTYPES[entry.dtype], entry.shape, entry.begin, entry.end
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
    """Writes a file tensor by tensor; at every moment `path` is either the complete old file or the complete new one.

    Takes what `write_to` takes. Raises InputError as that does, and when the disk refuses it (the old file is kept).
    """
    with replaced_file(Path(path)) as temporary, temporary.open("wb") as file:
        write_to(file, str(path), tensors, metadata, dtypes)


def write_to(
    file: BinaryIO,
    source: str,
    tensors: Mapping[str, Value],
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Writes a safetensors file tensor by tensor; the same tensors and metadata give the same bytes.

    source   the file's name, for messages
    tensors  key → tensor, or tensors to be joined along their first dimension without a copy; on any device
    dtypes   key → the dtype in WEIGHTS to convert it to, a piece at a time; its own when not given
    Raises InputError for a dtype that the format lacks or that weights cannot be converted to, or when float16
    cannot hold a value.
    """
    for dtype in (dtypes or {}).values():
        if dtype not in WEIGHTS:
            raise InputError(f"{source}: dtype {dtype} is unknown; weights are float16, bfloat16 or float32")
    plan, scratch = {}, Scratch()
    for key in sorted(tensors):
        value = tensors[key]
        parts = (value,) if isinstance(value, Tensor) else tuple(value)
        own = reduce(
            torch.promote_types, (part.dtype for part in parts)
        )  # one that can hold the values of all
        dtype = (dtypes or {}).get(key, own)
        if dtype not in NAMES:
            raise InputError(f"{source}: tensor {key} has dtype {dtype}, which safetensors cannot hold")
        pieces = _pieces(parts, dtype, f"{source}: tensor {key}", scratch)
        plan[key] = Pieces(NAMES[dtype], _shape(parts), pieces)
    write_container(file, source, plan, dict(sorted((metadata or {}).items())))


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, in its own dtype; a view where it lies on the CPU and is contiguous."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")


def _shape(parts: Sequence[Tensor]) -> tuple[int, ...]:
    first = parts[0]
    return tuple(first.shape) if len(parts) == 1 else (sum(map(len, parts)), *first.shape[1:])


def _pieces(
    parts: Sequence[Tensor], dtype: torch.dtype, name: str, scratch: "Scratch"
) -> Iterator[memoryview]:
    """The bytes of tensors in another dtype; each piece is overwritten by the next."""
    for part in parts:
        if part.dtype == dtype or not part.numel():
            yield bytes_of(part)
            continue
        flat = part.detach().cpu().contiguous().view(-1)
        for begin in range(0, flat.numel(), CHUNK):
            piece = flat[begin : begin + CHUNK]
            narrow = scratch.narrow.view(dtype)[: len(piece)]
            scratch.convert(piece, narrow, name)
            yield bytes_of(narrow)


class Scratch:
    """Buffers for converting a piece of at most CHUNK values, kept: new memory costs more than the conversion."""

    def __init__(self) -> None:
        self.wide = torch.empty(CHUNK)
        self.narrow = torch.empty(8 * CHUNK, dtype=torch.uint8)

    def convert(self, piece: Tensor, out: Tensor, name: str) -> None:
        """Copies a flat piece of a tensor into `out`, which has another dtype.

        name  the tensor's name, for messages
        Raises InputError when a finite value would become infinite, which float16 alone does to weights.
        """
        # through float32: much faster than converting one half precision to the other in one step
        out.copy_(self.wide[: len(piece)].copy_(piece))
        if out.dtype == torch.float16 and bool((out.isinf() & piece.isfinite()).any()):
            raise InputError(f"{name} has values beyond float16's 65504; use bfloat16 or float32")
