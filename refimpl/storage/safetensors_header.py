"""The header of a safetensors file, checked against the bytes that follow it (github.com/huggingface/safetensors).

Checked here rather than by the safetensors package, which lets a repeated key through and so leaves open which
tensor is meant.
"""

import json
import math
from typing import Any, NamedTuple

import torch

from refimpl.errors import InputError

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

MAX_HEADER = 100_000_000  # bytes; the safetensors package's own limit
MAX_DIMENSIONS = 8  # no weight has more than 5
MAX_ELEMENTS = 2**62  # of a tensor with its zero sides left out: strides stay within int64


class Entry(NamedTuple):
    """Where a tensor lies: bytes begin … end after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(header: bytes, size: int, source: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Checks a header against the number of bytes that follow it.

    size     bytes after the header
    returns  key → Entry, and the metadata
    Raises InputError, naming `source` and the key, for anything but a full, gapless, unambiguous description.
    """
    try:
        table = json.loads(
            header.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(f"{source}: its header is not a JSON table: {error or 'nested too deep'}") from error
    if not header.startswith(b"{") or not isinstance(table, dict):
        raise InputError(f"{source}: its header is not a JSON table but {type(table).__name__}")
    metadata = table.pop("__metadata__", None) or {}
    strings = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not strings:
        raise InputError(f"{source}: __metadata__ must map strings to strings")
    for text in (*table, *metadata, *metadata.values()):
        if not _is_text(text):
            raise InputError(f"{source}: {text!r} in its header is not valid Unicode")
    entries = {key: _entry(key, value, source) for key, value in table.items()}
    end_before = 0
    for key, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end_before:
            how = "overlaps the tensor before it" if begin < end_before else "leaves a gap before it"
            raise InputError(
                f"{source}: tensor {key} at bytes {begin} … {end} {how} (that ends at {end_before})"
            )
        end_before = end
    if end_before != size:
        raise InputError(
            f"{source}: the header describes {end_before} bytes of tensors, the file holds {size}; "
            "it is truncated or damaged: copy or download it again"
        )
    return entries, metadata


def _entry(key: str, value: Any, source: str) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(
            f"{source}: tensor {key} needs dtype, shape and data_offsets, and has {value!r:.200}"
        )
    name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError(f"{source}: tensor {key} has dtype {name!r:.80}; known are {', '.join(DTYPES)}")
    whole = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
    if not whole or len(shape) > MAX_DIMENSIONS or math.prod(max(s, 1) for s in shape) > MAX_ELEMENTS:
        raise InputError(f"{source}: tensor {key} has the impossible shape {shape!r:.200}")
    whole = isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int for at in offsets)
    if not whole or not 0 <= offsets[0] <= offsets[1]:
        raise InputError(f"{source}: tensor {key} has the impossible data_offsets {offsets!r:.200}")
    dtype, (begin, end) = DTYPES[name], offsets
    needed = math.prod(shape) * dtype.itemsize
    if needed != end - begin:
        raise InputError(
            f"{source}: tensor {key} {shape} of {name} takes {needed} bytes, its data_offsets hold {end - begin}"
        )
    return Entry(dtype, tuple(shape), begin, end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {repeated!r:.200} stands twice")
    return table


def _refuse(text: str) -> None:
    raise ValueError(f"{text:.40} is not a whole number")


def _is_text(text: str) -> bool:
    """False for a lone surrogate, which JSON can spell and UTF-8 cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text) if not text.isascii() else True
