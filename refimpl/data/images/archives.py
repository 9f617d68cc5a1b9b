"""Images inside archives: members of tar files and cells of parquet files, read in place, never extracted."""

import bisect
import io
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from refimpl.errors import InputError
from refimpl.packages import install_line
from refimpl.printable import one_line

ROW_GROUPS_KEPT = 2  # of a parquet file: neighbouring rows are read together


class ArchiveChanged(OSError):
    """The archive is no longer the one that was indexed."""


@dataclass(frozen=True)
class TarMember:
    """The bytes of one member of a tar file."""

    archive: str
    name: str  # of the member, for messages
    offset: int  # of its first byte in the archive
    size: int  # bytes
    archive_size: int  # bytes of the archive when it was indexed

    def __fspath__(self) -> str:
        """What messages call it; there is no such file."""
        return f"{self.archive}/{self.name}"

    def open(self) -> BinaryIO:
        """The member as a binary file. Raises OSError when the archive is gone or its size has changed."""
        file = open(self.archive, "rb")  # noqa: SIM115
        found = os.fstat(file.fileno()).st_size
        if found != self.archive_size:
            file.close()
            raise ArchiveChanged(
                f"{self.archive} has {found} bytes, but had {self.archive_size} when it was indexed; index it again"
            )
        return io.BufferedReader(_Window(file, self.offset, self.size))

    def read_bytes(self) -> bytes:
        """All of it. Raises as `open` does."""
        with self.open() as file:
            return file.read()


@dataclass(frozen=True)
class ParquetCell:
    """The bytes of one cell of a parquet file."""

    archive: str
    name: str  # of the image, for messages
    column: str  # dotted, as "image.bytes"
    row: int
    archive_size: int  # bytes of the archive when it was indexed

    def __fspath__(self) -> str:
        """What messages call it; there is no such file."""
        return f"{self.archive}/{self.name}"

    def open(self) -> BinaryIO:
        """The cell as a binary file. Raises as `read_bytes` does."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """All of it. Raises OSError when the archive is gone, or is not the one that was indexed."""
        found = os.stat(self.archive).st_size
        if found != self.archive_size:
            raise ArchiveChanged(
                f"{self.archive} has {found} bytes, but had {self.archive_size} when it was indexed; index it again"
            )
        parquet_module()
        try:
            starts = row_group_starts(self.archive, found)
            group = bisect.bisect_right(starts, self.row) - 1
            value = _row_group(self.archive, found, group, self.column)[self.row - starts[group]].as_py()
        except (ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
            raise ArchiveChanged(
                f"{self.archive}: row {self.row} can't be read ({one_line(str(error))}); index it again"
            ) from error
        if not isinstance(value, bytes):
            raise ArchiveChanged(
                f"{self.archive}: row {self.row} has no bytes in {self.column}; index it again"
            )
        return value


Packed = TarMember | ParquetCell
ImageSource = str | os.PathLike[str] | Packed


class _Window(io.RawIOBase):
    """Bytes [start, start + size) of a file, presented as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}, before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        data = os.pread(self._file.fileno(), wanted, self._start + self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def parquet_module() -> Any:
    """The module pyarrow.parquet. Raises InputError when it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"pyarrow is not installed; parquet files need it. Run: {install_line('pyarrow')}"
        ) from None
    return pyarrow.parquet


@lru_cache(maxsize=64)
def row_group_starts(archive: str, archive_size: int) -> tuple[int, ...]:
    """First row of each row group, then the number of rows; the size makes the cache notice a replaced file."""
    metadata = parquet_module().ParquetFile(archive).metadata
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return tuple(starts)


@lru_cache(maxsize=ROW_GROUPS_KEPT)
def _row_group(archive: str, archive_size: int, group: int, column: str) -> Any:
    values = parquet_module().ParquetFile(archive).read_row_group(group, columns=[column]).column(0)
    for name in column.split(".")[1:]:
        values = values.combine_chunks().field(name)
    return values
