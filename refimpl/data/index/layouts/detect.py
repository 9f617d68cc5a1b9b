"""Detection of a data set's layout, one of five, from what is on disk."""

import os
from collections.abc import Iterator

from refimpl.data.images.decode import FORMAT_OF, BadImage
from refimpl.data.index.layouts import folder as layout_folder
from refimpl.data.index.layouts import metadata as layout_metadata
from refimpl.data.index.layouts import parquet as layout_parquet
from refimpl.data.index.layouts import tar as layout_tar
from refimpl.data.index.record import IndexOptions, Item
from refimpl.data.index.shard import Unit
from refimpl.errors import InputError
from refimpl.file_kinds import PEEK, kind_of
from refimpl.names import near_path

TABLES = (".jsonl", ".json", ".parquet")
TARS = (".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tar", ".tgz")


def units(source: str, options: IndexOptions) -> list[Unit]:
    """The pieces of a data set.

    source  a folder of images with sidecars or with `metadata.jsonl`, a .jsonl, kohya's .json, a .parquet or a .tar
    Raises InputError when it is none of these, can't be read, or holds no image.
    """
    path = os.path.normpath(source)
    if os.path.isdir(path):
        tables = layout_metadata.jsonl_files(path)
        found = [unit for table in tables for unit in layout_metadata.jsonl_units(table, path)]
        return found or folder_units(path, options)
    if not os.path.exists(path):
        raise InputError(
            f"{source}: there is no such folder{near_path(path)}; give one of images with .txt captions, or a "
            ".jsonl, .json, .parquet or .tar file"
        )
    if not os.path.isfile(path):
        raise InputError(f"{source}: neither a folder nor a regular file")
    suffix = _suffix(path)
    if suffix == ".jsonl":
        return list(layout_metadata.jsonl_units(path, os.path.dirname(path)))
    if suffix == ".json":
        return list(layout_metadata.kohya_units(path))
    if suffix == ".parquet":
        return list(layout_parquet.units(path))
    if suffix in TARS:
        return list(layout_tar.units(path))
    raise InputError(f"{source}: {no_data_set(path)}")


def no_data_set(path: str) -> str:
    """Why a file can't be a data set, by its name and its first bytes; empty where its name is that of one."""
    suffix = _suffix(path)
    if suffix in (*TABLES, *TARS):
        return ""
    try:
        with open(path, "rb") as file:
            kind = kind_of(file.read(PEEK))
    except OSError:
        kind = None
    what = f" (this is {kind.what})" if kind else ""
    return (
        f"not a folder, and a file ending in {suffix or 'nothing'} is not a data set{what}; give a folder, or a "
        ".jsonl, .json, .parquet or .tar file"
    )


def _suffix(path: str) -> str:
    """The end of a file's name, both parts of `.tar.gz` and the like."""
    lower = path.lower()
    return next((tar for tar in TARS if lower.endswith(tar)), os.path.splitext(lower)[1])


def folder_units(folder: str, options: IndexOptions) -> list[Unit]:
    """The pieces of a folder of images with sidecars. Raises InputError when there are no images in it."""
    found = list(layout_folder.units(folder))
    if not found:
        raise InputError(f"{folder}: no images in it {_looked_for(folder, options)}")
    return found


def _looked_for(folder: str, options: IndexOptions) -> str:
    shards = sorted(name for name in os.listdir(folder) if name.endswith((".tar", ".parquet")))
    if shards:
        return f"but {len(shards)} shards such as {shards[0]}; give them: {os.path.join(folder, '*')}"
    suffixes = " ".join(suffix for suffix in FORMAT_OF if FORMAT_OF[suffix] in options.accepted.formats)
    return f"(looked for {suffixes}); links to folders are not followed"


def items(unit: Unit) -> Iterator[Item | BadImage]:
    """The images of a piece; entries that can't be images are yielded as errors."""
    if unit.layout == "folder":
        return layout_folder.items(unit)
    if unit.layout == "jsonl":
        return layout_metadata.jsonl_items(unit)
    if unit.layout == "kohya":
        return layout_metadata.kohya_items(unit)
    if unit.layout == "tar":
        return layout_tar.items(unit)
    return layout_parquet.items(unit)


def archive_root(unit: Unit) -> str:
    """The folder that the paths in a piece are relative to."""
    return unit.root if unit.layout in ("folder", "jsonl", "kohya") else os.path.dirname(unit.root)
