"""Members of archives as files of their own."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.data.images.archives import ArchiveChanged, TarMember

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
