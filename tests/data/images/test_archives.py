"""Members of archives as files of their own."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.data.images.archives import ArchiveChanged, ParquetCell, TarMember
from refimpl.data.images.decode import BadImage
from refimpl.data.index.content import content

BEFORE, MEMBER, AFTER = b"before the member ", bytes(range(50)), b" after the member"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes with a member in their middle."""
    path = tmp_path_factory.mktemp("archive") / "shard.tar"
    path.write_bytes(BEFORE + MEMBER + AFTER)
    return path


def member(path: Path) -> TarMember:
    return TarMember(str(path), "a.png", len(BEFORE), len(MEMBER), path.stat().st_size)


@given(
    moves=st.lists(
        st.tuples(
            st.integers(-60, 60), st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]), st.integers(0, 70)
        ),
        max_size=6,
    )
)
def test_a_member_is_read_as_the_file_of_its_bytes(archive: Path, moves: list[tuple[int, int, int]]) -> None:
    """Wherever one seeks, from the start, from here or from the end."""
    plain = io.BytesIO(MEMBER)
    with member(archive).open() as file:
        for offset, whence, count in moves:
            base = {os.SEEK_SET: 0, os.SEEK_CUR: plain.tell(), os.SEEK_END: len(MEMBER)}[whence]
            if base + offset < 0:
                continue
            assert file.seek(offset, whence) == plain.seek(base + offset)
            assert file.read(count) == plain.read(count)
            assert file.tell() == plain.tell()
        file.seek(0)
        assert file.read() == MEMBER == member(archive).read_bytes()


def test_a_seek_before_the_start_is_refused(archive: Path) -> None:
    with member(archive).open() as file, pytest.raises(OSError, match="before the start"):
        file.seek(-len(MEMBER) - 1, os.SEEK_END)


def test_an_archive_of_another_size_is_refused(archive: Path, tmp_path: Path) -> None:
    found = member(archive)
    longer = tmp_path / "longer.tar"
    longer.write_bytes(archive.read_bytes() + b"x")
    changed = TarMember(str(longer), found.name, found.offset, found.size, found.archive_size)
    with pytest.raises(ArchiveChanged, match="index it again"):
        changed.open()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bytes", "row 1 can't be read"),
        ("rows", "row 1 can't be read"),
        ("columns", "row 1 can't be read"),
        ("types", "row 1 has no bytes in image"),
    ],
)
def test_a_table_that_is_another_one_of_the_same_size_is_refused(
    change: str, message: str, tmp_path: Path
) -> None:
    """Whatever pyarrow says of it: another program may have written the file since it was indexed."""
    arrow, path = pytest.importorskip("pyarrow"), tmp_path / "a.parquet"
    import pyarrow.parquet

    table: dict[str, list[object]] = {
        "rows": {"image": [b"0"]},
        "columns": {"picture": [b"0", b"1"]},
        "types": {"image": [0, 1]},
    }.get(change, {"image": [b"0", b"1"]})
    pyarrow.parquet.write_table(arrow.table(table), path)
    if change == "bytes":
        path.write_bytes(bytes(path.stat().st_size))
    cell = ParquetCell(str(path), "1.png", "image", 1, path.stat().st_size)
    with pytest.raises(ArchiveChanged, match=rf"a\.parquet: {message}.*; index it again"):
        cell.read_bytes()
    with pytest.raises(BadImage, match=rf"a\.parquet/1\.png: can't be read \(.*: {message}"):
        content(cell)
