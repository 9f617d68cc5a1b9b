"""An index as the page browses it: what each image would be trained as, in a few bytes of memory an image (N §4.1.2).

Bucket and flags are computed once by the code that training uses; all else is read from the mapped index when asked.
Loss weights and the numbers of tags need every tag of the data set, and are counted meanwhile in a thread.
"""

import math
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.data.buckets import assign_and_prune
from refimpl.data.index.columns import TagLists
from refimpl.data.index.index_file import Table, is_index, read_table
from refimpl.data.tags import TagCounts, count_tags, dataset_weights
from refimpl.errors import InputError
from refimpl.run.config import Config

ENLARGED, NEAR_EXTREME, TOO_FAR, UNCAPTIONED = 1, 2, 4, 8
FLAGS = {"enlarged": ENLARGED, "near_extreme": NEAR_EXTREME, "too_far": TOO_FAR, "uncaptioned": UNCAPTIONED}
CHUNK = 2**18  # images at once
TAG_CHUNK = 2**22  # entries of the column of tags at once
KEPT = 2  # selections kept, so that scrolling through one needs no new search
SHOWN_TAGS = 200


@dataclass(frozen=True, eq=False)
class Counted:
    """What needs every tag: the loss weight of each image, None where it is off, and the most used tags."""

    weights: npt.NDArray[np.float32] | None
    tags: list[dict[str, Any]]


@dataclass(eq=False)
class Browsed:
    """A data set that is browsed.

    source    the index
    config    buckets, aspect metric, limit, seed, flip and tag weights, as training would have them
    problem   why there is nothing to browse; empty where there is
    stamp     which file the index was, by `_stamp`
    """

    source: Path
    config: Config
    problem: str = ""
    table: Table | None = None
    buckets: list[tuple[int, int]] = field(default_factory=list)
    bucket_of: npt.NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))
    flags: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    counted: Counted | None = None
    stamp: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], npt.NDArray[np.int32]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def mapped(self) -> Table:
        """The index. Raises InputError where it could not be read, or was written over since.

        Reading what a shorter file no longer has would end the process. One that was deleted is still there, mapped.
        """
        if self.table is None:
            raise InputError(self.problem)
        found = _stamp(self.source)
        if found is not None and found != self.stamp:
            self.problem = f"{self.source} was written again since it was opened; start the studio again"
            raise InputError(self.problem)
        return self.table

    def count(self) -> None:
        """Counts the tags and weights the images, once, in a thread; a damaged index becomes the problem."""
        try:
            self.counted = self._counted()
        except InputError as error:
            self.problem = str(error)

    def _counted(self) -> Counted:
        table, settings = self.mapped, self.config.tag_weights
        lists = TagLists(table)
        counts = count_tags(lists, TagCounts(settings.beta, settings.least, settings.most))
        used = [(images, name, tag) for name, tags in counts.counts.items() for tag, images in tags.items()]
        used.sort(key=lambda entry: (-entry[0], entry[1:]))
        shown = [{"class": name, "name": tag, "images": images} for images, name, tag in used[:SHOWN_TAGS]]
        weights = dataset_weights(lists, counts).astype(np.float32) if settings.enabled else None
        return Counted(weights, shown)

    def select(
        self,
        flag: int = 0,
        bucket: int | None = None,
        tag: str = "",
        tag_class: str = "",
        enlarged: bool | None = None,
    ) -> npt.NDArray[np.integer] | range:
        """Rows of the images that meet all of the conditions, ascending.

        flag      one of FLAGS's, 0 for any        bucket    its index, None for any
        tag       exact, "" for any; of tag_class alone where that is given
        enlarged  whether the bucket is larger than the image, None for either
        """
        asked = (flag, bucket, tag, tag_class, enlarged)
        if asked == (0, None, "", "", None):
            return range(len(self.mapped))
        with self._lock:
            if asked not in self._kept:
                self._kept[asked] = self._search(flag, bucket, tag, tag_class, enlarged)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(asked)
            return self._kept[asked]

    def _search(
        self, flag: int, bucket: int | None, tag: str, tag_class: str, enlarged: bool | None
    ) -> npt.NDArray[np.int32]:
        found = np.ones(len(self.flags), bool)
        if flag:
            found &= (self.flags & flag) > 0
        if bucket is not None:
            found &= self.bucket_of == bucket
        if enlarged is not None:
            found &= ((self.flags & ENLARGED) > 0) == enlarged
        if tag:
            tagged = np.zeros(len(found), bool)
            tagged[rows_with(self.mapped, tag_ids(self.mapped, tag, tag_class))] = True
            found &= tagged
        return np.flatnonzero(found).astype(np.int32)


def browse(source: Path, config: Config) -> Browsed:
    """Opens an index and assigns its images to the buckets.

    An index that can't be read is no error, but the `problem` of what is returned: the page says it and stays up.
    """
    if not is_index(source):
        absent = "is no index" if source.exists() else "is not there"
        advice = f"make one: refimpl data index FOLDER -o {source if not source.exists() else 'INDEX'}"
        return Browsed(source, config, f"{source} {absent}; {advice}")
    stamp = _stamp(source)
    try:
        table = read_table(source, allow_outside=config.data.allow_outside)
        buckets = config.all_stages()[-1].buckets.sizes()
        bucket_of, flags = _assigned(table, buckets, config)
    except InputError as error:
        return Browsed(source, config, str(error))
    return Browsed(source, config, "", table, buckets, bucket_of, flags, stamp=stamp)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What tells a file from another in its place; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _assigned(
    table: Table, buckets: list[tuple[int, int]], config: Config
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """The bucket and the flags of every image."""
    bucket_of, flags = np.empty(len(table), np.int16), np.zeros(len(table), np.uint8)
    across, down = np.array(buckets, np.int64).T
    aspects = across / down
    is_outermost = (aspects == aspects.min()) | (aspects == aspects.max())
    limit = config.data.max_aspect_error or math.inf
    before = 0
    for start in range(0, len(table), CHUNK):
        part = slice(start, start + CHUNK)
        width, height = (table.arrays[name][part] for name in ("width", "height"))
        assigned = assign_and_prune(width, height, buckets, config.data.aspect_metric, limit)
        chosen = assigned.index
        ends = table.arrays["caption.ends"][part].astype(np.int64)
        bucket_of[part] = chosen
        conditions = {
            ENLARGED: (width < across[chosen]) | (height < down[chosen]),
            NEAR_EXTREME: is_outermost[chosen],
            TOO_FAR: assigned.pruned,
            UNCAPTIONED: np.diff(ends, prepend=before) == 0,
        }
        for flag, is_so in conditions.items():
            flags[part][is_so] |= np.uint8(flag)
        before = int(ends[-1])
        table.has_read(len(width))
    return bucket_of, flags


def tag_ids(table: Table, tag: str, tag_class: str = "") -> npt.NDArray[np.integer]:
    """Numbers of the tags of this name, found by their bytes: an index may have millions of tags."""
    wanted = np.frombuffer(tag.encode("utf-8", "replace"), np.uint8)
    ends, letters = table.arrays["tag_name.ends"].astype(np.int64), table.arrays["tag_name.bytes"]
    begins = np.concatenate([[0], ends[:-1]])[: len(ends)]
    alike = np.flatnonzero(ends - begins == len(wanted))
    for place, letter in enumerate(wanted):
        alike = alike[letters[begins[alike] + place] == letter]
    if tag_class:
        classes = table.facts["classes"]
        named = [classes[number] == tag_class for number in table.arrays["tag_class"][alike]]
        alike = alike[np.array(named, bool)]
    table.has_read(len(ends))
    return alike


def rows_with(table: Table, tags: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Rows of the images that have one of some tags, ascending."""
    ends, ids = table.arrays["tag.ends"], table.arrays["tag.ids"]
    rows = []
    for start in range(0, len(ids) if len(tags) else 0, TAG_CHUNK):
        part = ids[start : start + TAG_CHUNK]
        is_wanted = part == tags[0] if len(tags) == 1 else np.isin(part, tags)
        rows.append(np.searchsorted(ends, start + np.flatnonzero(is_wanted), side="right"))
        table.has_read(len(part))
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows]))
