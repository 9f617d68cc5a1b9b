"""Reading metrics.jsonl, and other files of one JSON object a line, while a run appends to them.

Nothing here loads torch: the studio and the report of a run read by this.
"""

import json
import os
from array import array
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refimpl.train.metrics.rows import scalars_of

CHUNK = 2**22  # bytes read at a time; a longer line is broken
TAIL = 64  # bytes before the place read up to, by which a rewritten file is noticed
MOST_NAMES = 64  # series of one file; a run writes some twenty
KEPT_ROWS = 1000  # newest rows kept whole


class JsonLines:
    """The whole lines of a file that grows, each given once.

    A last line without its end is left until it has one. A file that was rewritten is read from its beginning again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = 0
        """Lines that are no JSON object."""
        self.generation = 0
        """How often the file was found rewritten."""
        self._offset, self._before, self._inode = 0, b"", 0

    def read(self) -> list[dict[str, Any]] | None:
        """The objects of the next lines, at most about CHUNK bytes of them; empty once all is read.

        returns  None where the file was rewritten since: what was given so far no longer counts
        Raises OSError when the file can't be read; it may be read again later.
        """
        with self.path.open("rb") as file:
            if self._was_rewritten(file.fileno()):
                self._offset, self._before, self.broken = 0, b"", 0
                self.generation += 1
                return None
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self._offset)
            data = file.read(CHUNK)
        end = data.rfind(b"\n") + 1
        if not end:
            if len(data) < CHUNK:
                return []
            self.broken, end = self.broken + 1, len(data)
            data = b""
        found = []
        for line in data[:end].splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                found.append(row)
            else:
                self.broken += 1
        self._offset += end
        self._before = (self._before + data[:end])[-TAIL:]
        return found

    def is_behind(self) -> bool:
        """Whether the file has more than was read, or is another one."""
        found = os.stat(self.path)
        return found.st_size != self._offset or found.st_ino != self._inode

    def _was_rewritten(self, descriptor: int) -> bool:
        if not self._offset:
            return False
        found = os.fstat(descriptor)
        if found.st_size < self._offset or found.st_ino != self._inode:
            return True
        return os.pread(descriptor, len(self._before), self._offset - len(self._before)) != self._before


class MetricRows:
    """The rows of a metrics.jsonl as columns, kept up to date.

    steps    step of each row
    columns  name → value of each row, nan where the row has none; names as `scalars_of` gives them
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)
        self._begin()

    def _begin(self) -> None:
        self.steps = array("q")
        self.columns: dict[str, array[float]] = {}
        self._newest: deque[dict[str, Any]] = deque(maxlen=KEPT_ROWS)
        self._without_step = 0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def broken(self) -> int:
        """Lines that are no rows."""
        return self._lines.broken + self._without_step

    def update(self) -> None:
        """Reads what was appended since. Raises OSError when the file can't be read."""
        while self._lines.is_behind():
            rows = self._lines.read()
            if rows is None:
                self._begin()
                continue
            if not rows and not self._has_moved():
                return  # a line without its end
            for row in rows:
                self._add(row)

    @property
    def cursor(self) -> str:
        """Up to where rows are read, for `since`."""
        return f"{self._lines.generation}-{len(self.steps)}"

    def since(self, cursor: str) -> list[Mapping[str, Any]] | None:
        """The rows after a cursor, as they were written; None where they are too many, or the file is another one."""
        generation, _, count = cursor.partition("-")
        if generation != str(self._lines.generation) or not count.isdecimal():
            return None
        wanted = len(self.steps) - int(count)
        if not 0 <= wanted <= len(self._newest):
            return None
        return list(self._newest)[len(self._newest) - wanted :]

    def _add(self, row: dict[str, Any]) -> None:
        step = row.get("step")
        if type(step) is not int or not 0 <= step < 2**62:
            self._without_step += 1
            return
        self.steps.append(step)
        self._newest.append(row)
