"""Metadata files beside the images: Hugging Face's `metadata.jsonl` and kohya's metadata JSON.

What they name must lie in the data set's folder, unless the user allows otherwise: refimpl/data/index/inside.py.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refimpl.data.images.decode import FORMAT_OF, BadImage
from refimpl.data.index.layouts.folder import identifier
from refimpl.data.index.record import Item
from refimpl.data.index.shard import Unit
from refimpl.errors import InputError
from refimpl.tables import parsed_json

JSONL = "metadata.jsonl"
UNIT_BYTES = 2**19  # of a JSONL file in one unit of work: about two thousand images
UNIT_RECORDS = 2048
NAME_FIELDS = ("file_name", "image", "file", "path")


def jsonl_files(folder: str) -> list[str]:
    """The `metadata.jsonl` of a folder, or those of its subfolders (a data set's splits)."""
    here = os.path.join(folder, JSONL)
    if os.path.isfile(here):
        return [here]
    return [str(path) for path in sorted(Path(folder).glob(f"*/{JSONL}"))]


def jsonl_units(path: str, base: str) -> Iterator[Unit]:
    """A JSONL file split into pieces of whole lines; `base` is the folder that ids are relative to."""
    at, line = 0, 1
    with open(path, "rb") as file:
        while block := file.read(UNIT_BYTES):
            block += file.readline()
            lines = block.count(b"\n") + (not block.endswith(b"\n"))
            yield Unit("jsonl", base, json.dumps([path, at, len(block), line]), lines)
            at += len(block)
            line += lines


def jsonl_items(unit: Unit) -> Iterator[Item | BadImage]:
    """The images of a piece; blank lines are skipped."""
    path, start, length, first = json.loads(unit.payload)
    with open(path, "rb") as file:
        file.seek(start)
        block = file.read(length)
    at = start
    for number, data in enumerate(block.split(b"\n"), start=first):
        if data.strip(b"\xef\xbb\xbf \t\r"):
            yield _jsonl_item(unit.root, path, number, at, data)
        at += len(data) + 1


def _jsonl_item(base: str, path: str, number: int, at: int, data: bytes) -> Item | BadImage:
    where = f"line {number}"
    try:
        record = parsed_json(data.removeprefix(b"\xef\xbb\xbf").decode())
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        name = next((record[key] for key in NAME_FIELDS if isinstance(record.get(key), str)), None)
        if name is None:
            raise ValueError(f"it names no image (in a field {' or '.join(NAME_FIELDS)})")
    except UnicodeDecodeError as error:
        return BadImage(path, f"{where}: not UTF-8 at byte {at + error.start} of the file", "metadata")
    except ValueError as error:
        return BadImage(path, f"{where}: {error}", "metadata")
    folder = os.path.relpath(os.path.dirname(path), base)
    full = os.path.normpath(os.path.join(folder, name))
    if "\0" in name:
        return BadImage(path, f"{where}: image name {name!r} contains a NUL character", "metadata")
    return Item(identifier(full), full, None, record, where)


def kohya_units(path: str) -> Iterator[Unit]:
    """Kohya's {image path: {caption, tags, …}} in pieces; paths are absolute or relative to the file's folder.

    Raises InputError for a file that can't be read or is not such an object.
    """
    try:
        with open(path, "rb") as file:
            table = parsed_json(file.read().removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: the metadata can't be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); give kohya's metadata or a folder") from error
    if not isinstance(table, dict) or not all(isinstance(record, dict) for record in table.values()):
        raise InputError(f"{path}: not kohya's metadata, a JSON object of image path → {{caption, tags}}")
    names = sorted(table)
    for start in range(0, len(names), UNIT_RECORDS):
        part = {name: table[name] for name in names[start : start + UNIT_RECORDS]}
        yield Unit("kohya", os.path.dirname(path), json.dumps(part), len(part))


def kohya_items(unit: Unit) -> Iterator[Item | BadImage]:
    """The images of a piece. A path without an image suffix is completed with that of an existing image file."""
    table: dict[str, dict[str, Any]] = json.loads(unit.payload)
    for name, record in table.items():
        if "\0" in name:
            yield BadImage(unit.root, f"image name {name!r} contains a NUL character", "metadata")
            continue
        found = name
        if os.path.splitext(name)[1].lower() not in FORMAT_OF:
            complete = (f"{name}{suffix}" for suffix in FORMAT_OF)
            found = next((path for path in complete if os.path.isfile(os.path.join(unit.root, path))), name)
        yield Item(identifier(os.path.normpath(found)), found, None, record)
