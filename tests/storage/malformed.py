"""Files that are not quite safetensors: what is done to a whole one, and what every reader says of it."""

import json
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

Spoil = Callable[[bytes], bytes]
Header = dict[str, Any]


class Malformed(NamedTuple):
    """One fault: how a whole file gets it, and what the refusal says, as a regular expression."""

    spoil: Spoil
    says: str


def taken_apart(file: bytes) -> tuple[bytes, bytes]:
    """The header's text and the bytes after it."""
    end = 8 + struct.unpack("<Q", file[:8])[0]
    return file[8:end], file[end:]


def put_together(text: bytes, data: bytes, length: int | None = None) -> bytes:
    """A file; `length` is what it says of its header, the truth when not given."""
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def text(change: Callable[[bytes], bytes]) -> Spoil:
    """Changes the header's text."""

    def spoil(file: bytes) -> bytes:
        before, data = taken_apart(file)
        after = change(before)
        assert after != before
        return put_together(after, data)

    return spoil


def header(change: Callable[[Header, str], None], more: bytes = b"") -> Spoil:
    """Changes the header's table; `change` is also told the name of the first tensor."""

    def spoil(file: bytes) -> bytes:
        before, data = taken_apart(file)
        table = json.loads(before)
        change(table, next(name for name in table if name != "__metadata__"))
        return put_together(json.dumps(table).encode(), data + more)

    return spoil


def first(change: Callable[[Header], Any]) -> Spoil:
    """Changes the first tensor's entry."""

    def apply(table: Header, name: str) -> None:
        change(table[name])

    return header(apply)


def more(dtype: str, shape: list[int], gap: int, size: int) -> Spoil:
    """One tensor more that begins `gap` bytes after the last one's end; the file grows to the new end."""

    def spoil(file: bytes) -> bytes:
        before, data = taken_apart(file)
        table, begin = json.loads(before), len(data) + gap
        table["more"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        return put_together(json.dumps(table).encode(), data + b"\0" * max(gap + size, 0))

    return spoil


def metadata(value: Callable[[Header], Any]) -> Spoil:
    """Changes the `__metadata__` table."""

    def apply(table: Header, name: str) -> None:
        table["__metadata__"] = value(table.get("__metadata__", {}))

    return header(apply)


def twice(key: str | None) -> Callable[[bytes], bytes]:
    """Writes an entry of the header once more, behind the others; the first tensor's without a name."""

    def change(before: bytes) -> bytes:
        table = json.loads(before)
        name = key or next(name for name in table if name != "__metadata__")
        table.setdefault(name, {})
        again = json.dumps({name: table[name]}).encode()
        return json.dumps(table).encode()[:-1] + b"," + again[1:]

    return change


def field_twice(before: bytes) -> bytes:
    """Gives the first tensor's dtype twice."""
    return re.sub(rb'("dtype": ?"\w+")', rb"\1,\1", before, count=1)


def sides(begin: bytes) -> Spoil:
    """Writes more sides before those of the first tensor."""
    return text(lambda before: re.sub(rb'"shape": ?\[\]', b'"shape":[' + begin.rstrip(b",") + b"]", before, count=1)
                if re.search(rb'"shape": ?\[(\]?)', before)[1]  # type: ignore[index]
                else re.sub(rb'"shape": ?\[', b'"shape":[' + begin, before, count=1))  # fmt: skip


MALFORMED = {
    # the length of the header
    "empty file": Malformed(lambda file: b"", "it has 0 bytes"),
    "length cut": Malformed(lambda file: file[:7], "it has 7 bytes"),
    "length negative": Malformed(
        lambda file: put_together(*taken_apart(file), length=2**64 - 1), "its header would be 18446744073709551615"
    ),
    "length huge": Malformed(
        lambda file: put_together(*taken_apart(file), length=2**63), "its header would be 9223372036854775808 bytes"
    ),
    "length above the limit": Malformed(
        lambda file: put_together(*taken_apart(file), length=100_000_001), "its header would be 100000001 bytes"
    ),
    "length beyond the file": Malformed(
        lambda file: put_together(*taken_apart(file), length=len(file) - 7), r"bytes long and end at byte \d+ of \d+"
    ),
    "length nothing": Malformed(lambda file: put_together(*taken_apart(file), length=0), "not a JSON table"),
    "length too short": Malformed(
        lambda file: put_together(*taken_apart(file), length=len(taken_apart(file)[0].rstrip()) - 1),
        "not a JSON table",
    ),
    # the bytes of the tensors
    "cut": Malformed(lambda file: file[:-1], r"describes \d+ bytes of tensors, the file holds \d+"),
    "no tensors": Malformed(
        lambda file: put_together(taken_apart(file)[0], b""), "bytes of tensors, the file holds 0"
    ),
    "one byte more": Malformed(lambda file: file + b"\0", r"describes \d+ bytes of tensors, the file holds \d+"),
    "described nowhere": Malformed(
        lambda file: put_together(b"{}", taken_apart(file)[1]), "describes 0 bytes of tensors, the file holds"
    ),
    # the text of the header
    "not UTF-8": Malformed(text(lambda before: b'{"\xff":1,' + before[1:]), "not a JSON table"),
    "UTF-16": Malformed(text(lambda before: before.decode().encode("utf-16")), "not a JSON table"),
    "byte order mark": Malformed(text(lambda before: b"\xef\xbb\xbf" + before), "not a JSON table"),
    "space first": Malformed(text(lambda before: b" " + before), "not a JSON table"),
    "zeros behind": Malformed(text(lambda before: before + b"\0"), "not a JSON table"),
    "not JSON": Malformed(text(lambda before: before.rstrip()[:-1]), "not a JSON table"),
    "a list": Malformed(text(lambda before: b"[" + before + b"]"), "not a JSON table but list"),
    "a number": Malformed(text(lambda before: b"1"), "not a JSON table but int"),
    "null": Malformed(text(lambda before: b"null"), "not a JSON table but NoneType"),
    "nested deep": Malformed(text(lambda before: b'{"x":' * 100_000), "not a JSON table"),
    "closed and nested deep": Malformed(
        text(lambda before: before.rstrip()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "not a JSON table",
    ),
    # names
    "tensor twice": Malformed(text(twice(None)), "appears twice"),
    "metadata twice": Malformed(text(twice("__metadata__")), "'__metadata__' appears twice"),
    "field twice": Malformed(text(field_twice), "'dtype' appears twice"),
    "lone surrogate": Malformed(
        header(lambda table, name: table.update({"\ud800": table.pop(name)})), "not valid Unicode"
    ),
    # metadata
    "metadata a number": Malformed(metadata(lambda held: held | {"a": 1}), "must map strings to strings"),
    "metadata nothing": Malformed(metadata(lambda held: held | {"a": None}), "must map strings to strings"),
    "metadata a table": Malformed(metadata(lambda held: held | {"a": {}}), "must map strings to strings"),
    "metadata a list": Malformed(metadata(lambda held: ["a"]), "must map strings to strings"),
    "metadata an empty list": Malformed(metadata(lambda held: []), "must map strings to strings"),
    "metadata false": Malformed(metadata(lambda held: False), "must map strings to strings"),
    "metadata no text": Malformed(metadata(lambda held: ""), "must map strings to strings"),
    "metadata a lone surrogate": Malformed(metadata(lambda held: held | {"a": "\ud800"}), "not valid Unicode"),
    # entries
    "entry a number": Malformed(header(lambda table, name: table.update({name: 3})), "needs dtype, shape and"),
    "entry nothing": Malformed(header(lambda table, name: table.update({name: None})), "needs dtype, shape and"),
    "no dtype": Malformed(first(lambda entry: entry.pop("dtype")), "needs dtype, shape and data_offsets"),
    "no shape": Malformed(first(lambda entry: entry.pop("shape")), "needs dtype, shape and data_offsets"),
    "no data_offsets": Malformed(first(lambda entry: entry.pop("data_offsets")), "needs dtype, shape and"),
    "one more field": Malformed(first(lambda entry: entry.update(strides=[1])), "needs dtype, shape and"),
    # dtype
    "unknown dtype": Malformed(first(lambda entry: entry.update(dtype="F5")), "dtype 'F5'; known are F64"),
    "dtype in small letters": Malformed(first(lambda entry: entry.update(dtype="f32")), "dtype 'f32'"),
    "dtype a list": Malformed(first(lambda entry: entry.update(dtype=["F16"])), r"dtype \['F16'\]"),
    "dtype nothing": Malformed(first(lambda entry: entry.update(dtype=None)), "dtype None"),
    "another dtype": Malformed(
        first(lambda entry: entry.update(dtype="U8")), r"takes \d+ bytes, its data_offsets hold \d+"
    ),
    # shape
    "side negative": Malformed(first(lambda entry: entry.update(shape=[-2])), r"impossible shape \[-2\]"),
    "two sides negative": Malformed(sides(b"-1,-1,"), r"impossible shape \[-1, -1"),
    "side a truth": Malformed(sides(b"true,"), r"impossible shape \[True"),
    "side a fraction": Malformed(sides(b"1.0,"), "1.0 is not a whole number"),
    "side a power": Malformed(sides(b"1e0,"), "1e0 is not a whole number"),
    "side minus zero": Malformed(sides(b"-0,"), "-0 is not a whole number"),
    "side NaN": Malformed(sides(b"NaN,"), "NaN is not a whole number"),
    "side infinite": Malformed(sides(b"-Infinity,"), "-Infinity is not a whole number"),
    "side text": Malformed(sides(b'"1",'), r"impossible shape \['1'"),
    "side of 5000 digits": Malformed(sides(b"1" * 5000 + b","), "not a JSON table"),
    "shape a number": Malformed(first(lambda entry: entry.update(shape=2)), "impossible shape 2"),
    "shape nothing": Malformed(first(lambda entry: entry.update(shape=None)), "impossible shape None"),
    "one side more": Malformed(sides(b"3,"), r"takes \d+ bytes, its data_offsets hold \d+"),
    "nine sides": Malformed(sides(b"1," * 9), "impossible shape"),
    "product overflows": Malformed(
        first(lambda entry: entry.update(shape=[2**32, 2**32, 2])), r"impossible shape \[4294967296"
    ),
    "product overflows to the right size": Malformed(sides(b"18446744073709551617,"), "impossible shape"),
    "empty and huge": Malformed(more("F32", [0, 2**62, 2**62], 0, 0), "impossible shape"),
    # data_offsets
    "offsets backwards": Malformed(first(lambda entry: entry["data_offsets"].reverse()), "impossible data_offsets"),
    "offset negative": Malformed(
        first(lambda entry: entry.update(data_offsets=[at - 4 for at in entry["data_offsets"]])),
        r"impossible data_offsets \[-4",
    ),
    "one offset": Malformed(first(lambda entry: entry["data_offsets"].pop()), "impossible data_offsets"),
    "three offsets": Malformed(first(lambda entry: entry["data_offsets"].append(9)), "impossible data_offsets"),
    "offset a truth": Malformed(
        first(lambda entry: entry.update(data_offsets=[False, entry["data_offsets"][1]])), r"data_offsets \[False"
    ),
    "offsets text": Malformed(first(lambda entry: entry.update(data_offsets="04")), "impossible data_offsets '04'"),
    "bytes too few": Malformed(
        first(lambda entry: entry.update(data_offsets=[entry["data_offsets"][0] + 1, entry["data_offsets"][1]])),
        r"takes \d+ bytes, its data_offsets hold \d+",
    ),
    "gap": Malformed(more("U8", [2], 1, 2), "leaves a gap"),
    "beyond": Malformed(
        header(
            lambda table, name: table.update(more={"dtype": "U8", "shape": [2], "data_offsets": [2**40, 2**40 + 2]})
        ),
        "leaves a gap",
    ),
    "overlap": Malformed(more("U8", [2], -1, 2), "overlaps"),
    "same bytes twice": Malformed(header(lambda table, name: table.update(more=dict(table[name]))), "overlaps"),
}  # fmt: skip
