"""Reading metrics.jsonl, and other files of one JSON object a line, while a run appends to them.

Nothing here loads torch: the studio and the report of a run read by this.
"""

import math
import os
from array import array
from collections import deque
from pathlib import Path
from typing import Any

from refimpl.tables import parsed_json
from refimpl.train.metrics.own_files import opened_regular

CHUNK = 2**22  # bytes read at a time; a longer line is broken
TAIL = 64  # bytes before the place read up to, by which a rewritten file is noticed
MOST_NAMES = 64  # series of one file; a run writes some twenty
KEPT_ROWS = 1000  # newest rows kept whole
MOST_DIGITS = 20  # of a cursor
LARGEST = 2**53  # whole numbers up to here are exact in a column, and in a page
TENTHS = 10  # of the timesteps, by which losses are told apart; a file may hold a longer list


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

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The objects of the next lines, about CHUNK bytes of them at most, and whether there may be more.

        Raises OSError when the file can't be read; it may be read again later.
        """
        with opened_regular(self.path) as file:
            if self._was_rewritten(file.fileno()):
                self._offset, self._before, self.broken = 0, b"", 0
                self.generation += 1
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self._offset)
            data = file.read(CHUNK)
        is_full = len(data) == CHUNK
        end = data.rfind(b"\n") + 1
        lines = data[:end].split(b"\n")[:-1]
        if is_full and not end:  # it is no row, however it goes on
            self.broken, end = self.broken + 1, CHUNK
        found = [row for line in lines if (row := _parsed(line)) is not None]
        self.broken += len(lines) - len(found)
        self._offset += end
        self._before = (self._before + data[:end])[-TAIL:]
        return found, is_full

    def _was_rewritten(self, descriptor: int) -> bool:
        if not self._offset:
            return False
        found = os.fstat(descriptor)
        if found.st_size < self._offset or found.st_ino != self._inode:
            return True
        return os.pread(descriptor, len(self._before), self._offset - len(self._before)) != self._before


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = parsed_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class MetricRows:
    """The rows of a metrics.jsonl as columns, kept up to date.

    steps    step of each row
    columns  name → value of each row, nan where the row has none; a list of losses by timestep
             is a column for each tenth, loss_by_timestep/0 and so on
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
        """Lines that are no rows; each is passed over."""
        return self._lines.broken + self._without_step

    @property
    def cursor(self) -> str:
        """How far the rows are read, for `since`."""
        return f"{self._lines.generation}-{len(self)}"

    def update(self) -> None:
        """Reads what was appended since. Raises OSError when the file can't be read."""
        is_more = True
        while is_more:
            generation = self._lines.generation
            rows, is_more = self._lines.read()
            if self._lines.generation != generation:
                self._begin()
            for row in rows:
                self._add(row)

    def since(self, cursor: str) -> list[dict[str, Any]] | None:
        """The rows after a cursor, as they were written; None where they are too many or the file is another one."""
        generation, _, count = cursor.partition("-")
        is_number = count.isascii() and count.isdecimal() and len(count) <= MOST_DIGITS
        if generation != str(self._lines.generation) or not is_number:
            return None
        new = len(self) - int(count)
        if not 0 <= new <= len(self._newest):
            return None
        return list(self._newest)[len(self._newest) - new :]

    def _add(self, row: dict[str, Any]) -> None:
        step = row.get("step")
        if type(step) is not int or not 0 <= step <= LARGEST:
            self._without_step += 1
            return
        for name, value in row.items():
            if name == "loss_by_timestep" and isinstance(value, list):
                for tenth, loss in enumerate(value[:TENTHS]):
                    self._put(f"{name}/{tenth}", loss)
            elif name != "step":
                self._put(name, value)
        self.steps.append(step)
        self._newest.append(row)

    def _put(self, name: str, value: Any) -> None:
        """Sets a column's value in the row that is being added; what is no finite number is left out."""
        if type(value) is not float and (type(value) is not int or abs(value) > LARGEST):
            return
        column = self.columns.get(name)
        if column is None:
            if len(self.columns) == MOST_NAMES:
                return
            column = self.columns[name] = array("d")
        missing = len(self) - len(column)
        if missing:
            column.extend([math.nan] * missing)
        column.append(value if math.isfinite(value) else math.nan)
