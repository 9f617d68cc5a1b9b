"""Whether a file that a data set names lies in the data set's folder, links followed (not from a paper).

One rule for all layouts: the folder given, or the folder of the metadata file or archive given, holds every image and
sidecar. What leads out of it, by `..`, an absolute path or a symbolic link, is refused unless the user allows it, so
that a data set from somewhere else cannot make training read any file of this machine.

An index file follows the rule when it is made and again when it is read, since it may come from somewhere else, too:
names with `..` and absolute ones are looked at when it is opened, links when an image's place is asked for.
"""

import functools
import os
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from refimpl.data.images.decode import BadImage

Real = Callable[[str], str]
"""os.path.realpath of a folder, or a cache in front of it."""
CHUNK = 2**18  # names looked at once


@functools.lru_cache(maxsize=4096)
def real_folder(folder: str) -> str:
    """os.path.realpath, which looks at each folder once in the life of the process."""
    return os.path.realpath(folder)


def leads_outside(root: str, path: str, real: Real = os.path.realpath) -> bool:
    """Whether a path that begins at `root` is, once links are followed, no path below it."""
    if "\0" in path:  # no file's name
        return True
    folder, name = os.path.split(os.path.join(root, path))
    target = os.path.join(real(folder), name)
    if name in ("", os.curdir, os.pardir) or os.path.islink(target):
        target = os.path.realpath(target)
    base = real(root).rstrip(os.sep) + os.sep
    return not target.startswith(base)


def refuse_outside(root: str, path: str, where: str = "", real: Real = os.path.realpath) -> None:
    """Raises BadImage for a path that leads out of the data set's folder.

    where  what names the path, such as a line of a metadata file, for the message
    """
    if leads_outside(root, path, real):
        named = f"{where}: " if where else ""
        reason = (
            f"{named}{path!r} leaves the folder of its data set, {root}; move the file there, or allow it with "
            "--allow-outside (in a configuration data.allow_outside = true)"
        )
        raise BadImage(os.path.join(root, path), reason, "outside")


def unusual_names(data: npt.NDArray[np.uint8], ends: npt.NDArray[np.integer]) -> Iterator[int]:
    """Rows of the names that are absolute or have a part `..`; the other names can leave by a link alone.

    data  the UTF-8 names, one after another        ends  [N] where each ends
    """
    for first in range(0, len(ends), CHUNK):
        last = ends[first : first + CHUNK].astype(np.int64)
        begin = np.concatenate([ends[first - 1 : first].astype(np.int64) if first else [0], last[:-1]])
        if not (begin[0] >= 0 and bool((begin <= last).all()) and last[-1] <= len(data)):
            continue  # damaged, which is found where a name is read
        part = data[begin[0] : last[-1]]
        named = np.flatnonzero(begin < last)
        found = set(named[part[begin[named] - begin[0]] == ord("/")].tolist())
        text, at = part.tobytes(), -1
        while (at := text.find(b"..", at + 1)) >= 0:
            row = int(np.searchsorted(last, begin[0] + at, side="right"))
            if b".." in text[begin[row] - begin[0] : last[row] - begin[0]].split(b"/"):
                found.add(row)
            at = max(at, int(last[row] - begin[0]) - 1)
        yield from (first + row for row in sorted(found))
