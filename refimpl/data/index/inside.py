"""Whether a file that a data set names lies in the data set's folder, links followed (not from a paper).

One rule for all layouts: the folder given, or the folder of the metadata file or archive given, holds every image and
sidecar. What leads out of it, by `..`, an absolute path or a symbolic link, is refused unless the user allows it, so
that a data set from somewhere else cannot make training read any file of this machine.
"""

import os
from collections.abc import Callable

from refimpl.data.images.decode import BadImage

Real = Callable[[str], str]
"""os.path.realpath of a folder, or a cache in front of it."""


def leads_outside(root: str, path: str, real: Real = os.path.realpath) -> bool:
    """Whether a path that begins at `root` is, once links are followed, no path below it."""
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
