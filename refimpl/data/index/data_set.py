"""A data set as one table, read from a folder, from another tool's files or from an index (N §4.3)."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.data.captions import DEFAULT_TAG_CLASSES, Tags
from refimpl.data.config import MAX_BAD_SHARE
from refimpl.data.images.archives import Packed
from refimpl.data.images.decode import DEFAULT_ACCEPTED, Accepted, BadImage
from refimpl.data.index.columns import Captions, Column, Ids, Places, TagLists, strings
from refimpl.data.index.index_file import Table, in_memory, is_index, read_table
from refimpl.data.index.layouts import detect as layouts
from refimpl.data.index.layouts.metadata import jsonl_files
from refimpl.data.index.merge import merged
from refimpl.data.index.parallel_read import read_unit, refuse
from refimpl.data.index.record import IndexOptions
from refimpl.data.index.shard import Unit
from refimpl.data.tag_rules import TagRules
from refimpl.errors import InputError
from refimpl.names import near_path


@dataclass(frozen=True, eq=False)
class Index:
    """A data set as a table; row i is one image. The sequences of an index file are read entry by entry.

    ids        path relative to the folder, with `/`, without suffix, in Unicode normal form C; sorted
    paths      of the image files, or places in archives, as `images.decode` takes them
    widths, heights  [N] int64, pixels after EXIF rotation
    captions   tags joined by ", ", class prefixes removed
    tags       tags by class
    quarantined  the files left out, each with its reason
    """

    ids: Sequence[str]
    paths: Sequence[Path | Packed]
    widths: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    captions: Sequence[str]
    tags: Sequence[Tags]
    quarantined: list[BadImage] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> "Index":
        """The data set restricted to the given rows, in the given order."""
        chosen = np.asarray(rows, np.int32 if len(self) < 2**31 else np.int64)
        return Index(
            ids=_taken(self.ids, chosen),
            paths=_taken(self.paths, chosen),
            widths=self.widths[chosen],
            heights=self.heights[chosen],
            captions=_taken(self.captions, chosen),
            tags=_taken(self.tags, chosen),
            quarantined=self.quarantined,
        )


def _taken(column: Sequence, rows: npt.NDArray[np.integer]) -> Sequence:
    return column.take(rows) if isinstance(column, Column) else [column[row] for row in rows.tolist()]


def index_of(table: Table) -> Index:
    """The data set held in a table; its sequences are read on access."""
    problems = zip(*(strings(table, name) for name in ("bad_path", "bad_reason", "bad_kind")), strict=True)
    widths, heights = (table.arrays[name].astype(np.int64) for name in ("width", "height"))
    table.has_read(len(table))
    return Index(
        ids=Ids(table),
        paths=Places(table),
        widths=widths,
        heights=heights,
        captions=Captions(table),
        tags=TagLists(table),
        quarantined=[BadImage(path, reason, kind) for path, reason, kind in problems],
    )


def read_index(path: str | os.PathLike[str], allow_outside: bool = False) -> Index:
    """An index written by `refimpl data index`, memory-mapped.

    Raises InputError as `read_table` does.
    """
    return index_of(read_table(path, allow_outside=allow_outside))


def read_source(
    source: str | os.PathLike[str],
    tag_classes: Collection[str] = DEFAULT_TAG_CLASSES,
    allow_missing: bool = False,
    allow_outside: bool = False,
) -> Index:
    """A data set by its path: an index file, a folder with sidecars, or any other layout of `layouts.units`.

    tag_classes    classes that a tag may name as its prefix
    allow_missing  give an image without a caption an empty one
    allow_outside  also read files outside the data set's folder; of an index, outside the folders that it gives
    Raises InputError as `read_index` and `read_folder` do, and for an index that was made without one of the classes.
    """
    if is_index(source):
        table = read_table(source, allow_outside=allow_outside)
        known = table.facts.get("tag_classes", tag_classes)
        missing = [name for name in tag_classes if name not in known]
        if missing:
            raise InputError(
                f"{source}: the index was made without the tag class {', '.join(missing)}; index the images again "
                f"with --tags.classes {' '.join([*known, *missing])}"
            )
        return index_of(table)
    if os.path.isdir(source) and not jsonl_files(os.fspath(source)):
        return read_folder(source, tag_classes, allow_missing, allow_outside=allow_outside)
    options = IndexOptions(TagRules(tuple(tag_classes)), allow_outside=allow_outside)
    name = os.fspath(source)
    return _read(name, layouts.units(name, options), options, allow_missing, MAX_BAD_SHARE)


def read_folder(
    folder: str | os.PathLike[str],
    tag_classes: Collection[str] = DEFAULT_TAG_CLASSES,
    allow_missing: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    accepted: Accepted = DEFAULT_ACCEPTED,
    verify: bool = False,
    allow_outside: bool = False,
) -> Index:
    """Index a folder of images, each with its caption beside it: `name.jpg`, `name.txt` or `name.caption`.

    Subfolders are read too; names that begin with a dot are skipped, and links to folders are not followed.
    Sizes come from the files' headers, so damage further in is found only when an image is loaded.
    tag_classes    classes that a tag may name as its prefix (`character:alice`)
    allow_missing  give an image without a sidecar an empty caption
    max_bad_share  largest share of files that may be quarantined as unusable, each with its reason
    accepted       which image files are accepted
    verify         decode every image in full, to find all damage now
    allow_outside  also read files behind links that lead out of the folder
    Raises InputError if there is no such folder, no image or no caption in it, a caption is missing, an id occurs
    twice, or the share of bad files is too large.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            f"{root}: there is no such folder{near_path(root)}; give one of images with .txt captions"
        )
    options = IndexOptions(TagRules(tuple(tag_classes)), accepted, verify, allow_outside=allow_outside)
    index = _read(str(root), layouts.folder_units(str(root), options), options, allow_missing, max_bad_share)
    lists = {name: list(getattr(index, name)) for name in ("ids", "paths", "captions", "tags")}
    return replace(index, **lists)


def _read(
    source: str, units: Sequence[Unit], options: IndexOptions, allow_missing: bool, max_bad_share: float
) -> Index:
    """A data set read into memory by this process."""
    parts = [read_unit(unit, options) for unit in units]
    found = merged(parts)
    refuse([source], parts, found.duplicates, max_bad_share, allow_missing)
    return index_of(in_memory(found.columns, found.facts))
