"""Reading one image of a data set for the index: its size from the header, its caption and its tags."""

import functools
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refimpl.data.captions import Tags
from refimpl.data.images.archives import ImageSource, Packed, ParquetCell, TarMember
from refimpl.data.images.decode import DEFAULT_ACCEPTED, Accepted, BadImage, decode, read_size
from refimpl.data.index.builder import Row, source_name
from refimpl.data.index.inside import Real, refuse_outside
from refimpl.data.tag_rules import TagRules
from refimpl.tables import parsed_json

READ_BYTES = 2**18  # of a file that is hashed
BOM = b"\xef\xbb\xbf"
MOST_CAPTION = 2**20  # bytes of a caption; a book beside an image is a mistake


@dataclass(frozen=True)
class IndexOptions:
    """What an index accepts, and how it is read."""

    rules: TagRules = field(default_factory=TagRules)
    """how captions and records become tags by class"""
    accepted: Accepted = DEFAULT_ACCEPTED
    """image files that are accepted"""
    verify: bool = False
    """decode every image in full, to find all damage at indexing time"""
    sha256: bool = False
    """store the SHA-256 of every image's bytes"""
    allow_outside: bool = False
    """also read images and sidecars that lie outside the data set's folder, or behind links that lead out of it"""


@dataclass(frozen=True)
class Item:
    """An image listed by a data set, not read yet.

    source  a path relative to the data set's root, or a place in an archive
    sidecar the same for the caption, if any; a file whose name ends in .json holds a metadata record
    record  the image's record in a metadata file, if any
    where   what in the metadata file names it, for messages
    """

    id: str
    source: str | Packed
    sidecar: str | TarMember | None = None
    record: Mapping[str, Any] | None = None
    where: str = ""


def read_item(root: str, item: Item, options: IndexOptions, real: Real = os.path.realpath) -> Row:
    """Read one image's size, caption and tags. Raises BadImage saying what is wrong with it or its caption.

    real  os.path.realpath, or a cache of it where many images are read
    """
    source = source_name(root, item.source)
    for path in (item.source, item.sidecar):
        if isinstance(path, str) and not options.allow_outside:
            refuse_outside(root, path, item.where, real)
    if not item.id.isprintable():
        raise BadImage(source, "the name is not UTF-8, or contains control characters; rename it", "name")
    caption, tags, captioned = _caption(root, item, options.rules)
    if options.verify:
        width, height = decode(source, accepted=options.accepted).size
    else:
        width, height = read_size(source, options.accepted)
    digest = hashed(source) if options.sha256 else None
    return Row(item.id, item.source, _size(source), width, height, caption, tags, captioned, digest)


def cached_realpath() -> Real:
    """os.path.realpath that looks at each folder once; for the time in which one piece of a data set is read."""
    return functools.lru_cache(maxsize=4096)(lambda folder: os.path.realpath(folder))


def _caption(root: str, item: Item, rules: TagRules) -> tuple[str, Tags, bool]:
    if item.sidecar is not None:
        path = source_name(root, item.sidecar)
        text = read_text(path)
        if os.fspath(path).lower().endswith(".json"):
            return _from_record(path, parsed_record(path, text), rules)
        return (*rules.from_text(text), True)
    if item.record is not None:
        return _from_record(source_name(root, item.source), item.record, rules)
    return "", {}, False


def _from_record(path: ImageSource, record: Mapping[str, Any], rules: TagRules) -> tuple[str, Tags, bool]:
    try:
        caption, tags, held = rules.from_record(record)
        if "\0" in caption:
            raise ValueError("its caption contains a NUL character; it must be plain text")
        "".join([caption, *tags, *(name for names in tags.values() for name in names)]).encode()
        return caption, tags, held
    except UnicodeEncodeError as error:
        raise BadImage(
            path, "its caption contains an unpaired surrogate, which is not valid text", "caption"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadImage(path, f"in its record, {error}", "caption") from error


def parsed_record(path: ImageSource, text: str) -> dict[str, Any]:
    """A metadata record written as a JSON object. Raises BadImage for anything else."""
    try:
        record = parsed_json(text)
    except ValueError as error:
        raise BadImage(path, f"the record is not JSON ({error})", "caption") from error
    if not isinstance(record, dict):
        raise BadImage(path, f"the record is {str(record)[:40]!r}, not a JSON object", "caption")
    return record


def read_text(path: ImageSource) -> str:
    """Text of a sidecar, which must be UTF-8; errors give the position in bytes from the start of the file."""
    try:
        if isinstance(path, Packed):
            opened = path.open()
        else:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its other end
                reason = "the caption is not a regular file; replace it with a text file"
                raise BadImage(path, reason, "caption")
            opened = open(path, "rb")  # noqa: SIM115
        with opened as file:
            data = file.read(MOST_CAPTION + 1)
    except OSError as error:
        raise BadImage(path, f"the caption can't be read ({error.strerror or error})", "caption") from error
    if len(data) > MOST_CAPTION:
        raise BadImage(
            path, f"the caption is longer than {MOST_CAPTION} bytes; replace it with a shorter one", "caption"
        )
    start = len(BOM) if data.startswith(BOM) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        reason = f"not UTF-8 at byte {offset} (0x{data[offset]:02x}); save it as UTF-8"
        raise BadImage(path, reason, "caption") from error
    if "\0" in text:
        raise BadImage(path, f"a NUL at byte {data.index(0)}; the caption must be plain text", "caption")
    return text


def _size(source: ImageSource) -> int:
    if isinstance(source, ParquetCell):
        return -1
    return source.size if isinstance(source, TarMember) else os.stat(source).st_size


def hashed(source: ImageSource) -> bytes:
    """SHA-256 of an image's bytes. Raises BadImage when they can't be read."""
    try:
        with source.open() if isinstance(source, Packed) else open(source, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(READ_BYTES):
                digest.update(block)
            return digest.digest()
    except OSError as error:
        raise BadImage(source, f"can't be read ({error.strerror or error})", "unreadable") from error
