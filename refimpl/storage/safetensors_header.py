"""The safetensors container: the one place that reads and writes a header (github.com/huggingface/safetensors).

A file is the header's length (8 bytes, little-endian), the header as JSON, and the tensors' bytes without a gap.
Headers are checked here rather than by the safetensors package, which accepts a repeated key and so leaves open which
tensor is meant. This file does not import torch, so that the processes that index images start quickly.
"""

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from refimpl.errors import InputError
from refimpl.file_kinds import PEEK, kind_of
from refimpl.printable import one_line

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
LENGTH = 8  # bytes of the header's length
MAX_HEADER = 100_000_000  # bytes; the safetensors package's own limit
MAX_NAMES = 50_000  # tensors and entries of metadata; SDXL with its moving average has 5,000
QUOTES = 10  # quotation marks of a tensor's entry: its name, dtype and what that is, shape, data_offsets
CHUNK = 1 << 20  # bytes of a header looked at before it is parsed
MAX_DIMENSIONS = 8  # no weight has more than 5
MAX_ELEMENTS = 2**62  # of a tensor, ignoring sides of 0, so that strides stay within int64


class Entry(NamedTuple):
    """Where a tensor lies: bytes begin … end after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a file says about itself; the tensors' bytes begin at its byte `start`."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    start: int


class Pieces(NamedTuple):
    """A tensor to be written: its bytes in pieces, so that it never has to be in memory as a whole."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[memoryview]  # of bytes, in order


class Reader(NamedTuple):
    """What a reader calls its files in messages, and what it tells the user to do about a bad one."""

    kind: str = "safetensors file"
    remedy: str = "copy or download it again"


CHECKPOINT = Reader()


@contextmanager
def opened(path: Path | str, reader: Reader = CHECKPOINT) -> Iterator[tuple[BinaryIO, Header]]:
    """A file, open for reading, and its header.

    Raises InputError when the file is absent or not a regular file, or its header does not describe its bytes; also
    when the system refuses what is then done with the file.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise InputError(f"{path} is not a regular file; name a {reader.kind}")
        with open(path, "rb") as file:
            yield file, read_header(file, str(path), reader)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        what = f"the {reader.kind} can't be read ({reason}); {reader.remedy}"
        absent = isinstance(error, FileNotFoundError)
        raise InputError(f"{path} does not exist; {what}" if absent else f"{path}: {what}") from error


def read_header(file: BinaryIO, source: str, reader: Reader = CHECKPOINT) -> Header:
    """The header of a file, checked against the file's size.

    source  the file's name, for messages
    Raises InputError, naming `source`, what is wrong and what to do, for anything but a complete, gapless and
    unambiguous description of the bytes that follow.
    """
    begin = file.read(LENGTH)
    size = os.fstat(file.fileno()).st_size
    _refuse_other_kinds(file, begin, size, source, reader)
    try:
        length = _header_length(begin, size)
        _check_names(file, length)
        entries, metadata = _parse(file.read(length), size - LENGTH - length)
    except _Malformed as error:
        raise InputError(f"{source} is not a whole {reader.kind}: {error}; {reader.remedy}") from error
    return Header(entries, metadata, LENGTH + length)


def write_container(
    file: BinaryIO, source: str, tensors: Mapping[str, Pieces], metadata: Mapping[str, str]
) -> None:
    """Writes a header and the tensors; the same arguments give the same bytes.

    source   the file's name, for messages
    tensors  written widest dtype first, so that each begins at a multiple of its item size; otherwise in order
    Raises InputError when the header would be longer, or have more names, than readers accept.
    """
    if len(tensors) + len(metadata) > MAX_NAMES:
        raise InputError(
            f"{source}: {len(tensors) + len(metadata)} tensors and entries of metadata, above {MAX_NAMES}; write "
            "several files"
        )
    ordered = sorted(tensors, key=lambda name: -ITEM_SIZES[tensors[name].dtype])
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in ordered:
        dtype, shape, _ = tensors[name]
        begin, end = end, end + math.prod(shape) * ITEM_SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    if len(text) > MAX_HEADER:
        raise InputError(
            f"{source}: its header would be {len(text)} bytes long, above {MAX_HEADER}; write several files"
        )
    file.write(len(text).to_bytes(LENGTH, "little") + text)
    for name in ordered:
        written = sum(map(file.write, tensors[name].pieces))
        begin, end = header[name]["data_offsets"]
        assert written == end - begin, f"{name}: {written} bytes of {end - begin}"


def _refuse_other_kinds(file: BinaryIO, begin: bytes, size: int, source: str, reader: Reader) -> None:
    """Raises InputError for a file of another kind, named for what it is.

    One whose ninth byte opens a table, after a length that a header may have, is not asked for its kind: a header of
    640 bytes begins as a pickle does.
    """
    after = file.read(PEEK - LENGTH)
    file.seek(LENGTH)
    if not size or (after.startswith(b"{") and int.from_bytes(begin, "little") <= MAX_HEADER):
        return
    if kind := kind_of(begin + after):
        advice = kind.advice or kind.as_weights or reader.remedy
        article = "an" if reader.kind.startswith("i") else "a"
        raise InputError(f"{source} is {kind.what}, not {article} {reader.kind}; {advice}")


class _Malformed(ValueError):
    """What is wrong with a header."""


def _header_length(begin: bytes, size: int) -> int:
    if size < LENGTH:
        raise _Malformed(f"it has {size} bytes")
    length = int.from_bytes(begin, "little")
    if LENGTH + length > size:
        raise _Malformed(
            f"its header would be {length} bytes long and end at byte {LENGTH + length} of {size}"
        )
    if length > MAX_HEADER:
        raise _Malformed(f"its header would be {length} bytes long, above {MAX_HEADER}")
    return length


def _check_names(file: BinaryIO, length: int) -> None:
    """Refuses a header of too many names before it is parsed, which takes a microsecond and 700 bytes for each.

    Quotation marks are counted, without those that a string escapes (metadata often holds JSON); one that follows
    an escaped backslash is not counted either, at most half of them.
    """
    left, quotes = length, 0
    while left > 0:
        chunk = file.read(min(left, CHUNK))
        if not chunk:
            break
        left -= len(chunk)
        quotes += chunk.count(b'"') - chunk.count(b'\\"')
        if quotes > QUOTES * MAX_NAMES:
            raise _Malformed(
                f"its header has more than {QUOTES * MAX_NAMES // 2} strings, too many for a model"
            )
    file.seek(LENGTH)


def _parse(header: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Checks a header against the number of bytes that follow it; name → Entry, and the metadata."""
    try:
        table = json.loads(
            header.decode("utf-8"), object_pairs_hook=_unique,
            parse_constant=_refuse, parse_float=_refuse,
            parse_int=_whole if b"-0" in header else None,  # slower: called for each number
        )  # fmt: skip
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise _Malformed(f"its header is not a JSON table: {reason}") from error
    if not isinstance(table, dict):
        raise _Malformed(f"its header is not a JSON table but {type(table).__name__}")
    if not header.startswith(b"{"):
        raise _Malformed(f"its header is not a JSON table: it begins with {header[:1]!r}")
    metadata = table.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise _Malformed("__metadata__ must map strings to strings")
    for text in (*table, *metadata, *metadata.values()):
        if not _is_text(text):
            raise _Malformed(f"{text!r:.200} in its header is not valid Unicode")
    entries = {key: _entry(key, value) for key, value in table.items()}
    end_before = 0
    for key, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end_before:
            how = "overlaps the tensor before it" if begin < end_before else "leaves a gap before it"
            raise _Malformed(
                f"tensor {one_line(key)} at bytes {begin} … {end} {how} (that ends at {end_before})"
            )
        end_before = end
    if end_before != size:
        raise _Malformed(
            f"the header describes {end_before} bytes of tensors, the file holds {size}; it is truncated or damaged"
        )
    return entries, metadata


def _entry(key: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _Malformed(
            f"tensor {one_line(key)} needs dtype, shape and data_offsets, and has {value!r:.200}"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise _Malformed(f"tensor {one_line(key)} has dtype {dtype!r:.80}; known are {', '.join(ITEM_SIZES)}")
    whole = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
    if not whole or len(shape) > MAX_DIMENSIONS or math.prod(max(s, 1) for s in shape) > MAX_ELEMENTS:
        raise _Malformed(f"tensor {one_line(key)} has the impossible shape {shape!r:.200}")
    whole = isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int for at in offsets)
    if not whole or not 0 <= offsets[0] <= offsets[1]:
        raise _Malformed(f"tensor {one_line(key)} has the impossible data_offsets {offsets!r:.200}")
    begin, end = offsets
    needed = math.prod(shape) * ITEM_SIZES[dtype]
    if needed != end - begin:
        raise _Malformed(
            f"tensor {one_line(key)} {shape} of {dtype} takes {needed} bytes, its data_offsets hold {end - begin}"
        )
    return Entry(dtype, tuple(shape), begin, end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"key {counts.most_common(1)[0][0]!r:.200} appears twice")
    return table


def _refuse(text: str) -> None:
    raise ValueError(f"{text:.40} is not a whole number")


def _whole(text: str) -> int:
    if text == "-0":  # which the safetensors package reads as a float
        _refuse(text)
    return int(text)


def _is_text(text: str) -> bool:
    """False for a text with a lone surrogate, which JSON can express and UTF-8 cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text) if not text.isascii() else True
