"""A piece of a data set: what one process reads at a time, and what need not be read again after a crash."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Some images of one source.

    layout   which module reads it: folder, jsonl, kohya, tar or parquet
    root     folder that names are relative to, or the archive's path
    payload  which images, in that module's own encoding
    count    number of images, or of lines in a JSONL file; an estimate for tar files
    """

    layout: str
    root: str
    payload: str
    count: int
