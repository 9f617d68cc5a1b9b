"""A piece of a data set: what one process reads at a time, and what is not read again after a kill."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Some images of one source.

    layout   which module reads it: folder, jsonl, kohya, tar or parquet
    root     folder that names are relative to, or the archive
    payload  which images, as that module writes it
    count    images in it; a guess for archives
    """

    layout: str
    root: str
    payload: str
    count: int
