"""The index file: complete or rejected, memory-mapped, versioned."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from refimpl.data.images.decode import BadImage
from refimpl.data.index.builder import Gathered, Row
from refimpl.data.index.data_set import Index, index_of, read_index, read_source
from refimpl.data.index.index_file import VERSION, Table, in_memory, is_index, read_table, write_table
from refimpl.data.index.merge import merged
from refimpl.data.index.record import IndexOptions
from refimpl.errors import InputError
from tests import strategies
from tests.data.index.test_data_set import add
from tests.data.index.test_parallel_read import build_here


@pytest.fixture
def index_file(tmp_path: Path) -> Path:
    for number in range(5):
        add(tmp_path / "images", f"{number}.png", f"character:c{number}, tag, \u00e9t\u00e9", (number + 1, 3))
    build_here(tmp_path / "images", tmp_path / "index", IndexOptions(sha256=True))
    return tmp_path / "index"


def with_header(path: Path, change: object) -> None:
    """The same file with another header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_it_is_a_safetensors_file(index_file: Path) -> None:
    with safe_open(index_file, "np") as file:
        assert file.metadata()["version"] == str(VERSION) == "1"
        assert file.get_tensor("width").tolist() == [1, 2, 3, 4, 5]
        text = file.get_tensor("caption.bytes").tobytes().decode()
    assert text == "".join(f"c{number}, tag, \u00e9t\u00e9" for number in range(5))


def test_an_index_with_spaces_in_its_header_is_the_same(index_file: Path, tmp_path: Path) -> None:
    """As it was written before."""
    spaced = tmp_path / "spaced"
    spaced.write_bytes(index_file.read_bytes())
    with_header(spaced, lambda header: header)
    assert spaced.read_bytes() != index_file.read_bytes()
    assert is_index(spaced)
    before, after = read_table(spaced), read_table(index_file)
    assert before.facts == after.facts
    assert list(before.arrays) == list(after.arrays)
    assert all(np.array_equal(before.arrays[name], after.arrays[name]) for name in before.arrays)


def test_a_newer_version_is_refused(index_file: Path) -> None:
    with_header(index_file, lambda header: header["__metadata__"].update(version="2"))
    assert is_index(index_file)
    for read in (read_index, read_source):
        with pytest.raises(
            InputError, match=r"index of version 2, from a newer refimpl; this one reads version 1"
        ):
            read(index_file)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.999])
def test_a_cut_index_is_refused(share: float, index_file: Path) -> None:
    data = index_file.read_bytes()
    index_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"is not a whole index: "):
        read_index(index_file)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("width"),
        lambda header: header["width"].update(shape=[6]),
        lambda header: header["width"].update(dtype="F64"),
        lambda header: header["width"].update(data_offsets=[-4, 16]),
        lambda header: header["__metadata__"].pop("facts"),
        lambda header: header["__metadata__"].update(facts="{}"),
        lambda header: header["__metadata__"].update(version="new"),
        lambda header: header["__metadata__"].update(format="other"),
        lambda header: header.pop("__metadata__"),
        lambda header: [header],
        lambda header: header.update(width=5),
        lambda header: header.pop("tag_class"),
        lambda header: header["tag.ids"].update(shape=[0], data_offsets=[0, 0]),
    ],
)
def test_a_damaged_header_is_refused(change: object, index_file: Path) -> None:
    with_header(
        index_file,
        lambda header: value if isinstance(value := change(header), list) and value[0] is header else None,
    )
    with pytest.raises(InputError, match="index"):
        read_index(index_file)


@given(data=st.data())
def test_a_mutated_index_is_read_or_refused(data: st.DataObject, index_file: Path) -> None:
    whole = index_file.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = index_file.with_name("mutated")
    path.write_bytes(content)
    try:
        index = read_index(path)
        for row in range(len(index)):
            for column in (index.ids, index.paths, index.captions, index.tags):
                column[row]
    except InputError:
        pass


def test_what_is_no_index_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "folder").mkdir()
    assert not any(is_index(path) for path in (tmp_path / "a.jsonl", tmp_path / "folder", tmp_path / "none"))
    with pytest.raises(InputError, match="the index can't be read"):
        read_index(tmp_path / "none")


def test_columns_are_sequences(index_file: Path) -> None:
    index = read_index(index_file)
    assert index.ids[-1] == "4"
    assert index.ids[1:3] == ["1", "2"]
    assert index.ids.index("3") == 3
    assert "4" in index.ids
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            index.captions[wrong]
    taken = index.take(np.array([4, 4, 0]))
    assert list(taken.captions) == [index.captions[4], index.captions[4], index.captions[0]]
    assert taken.take([2]).tags[0] == {"character": ("c0",), "general": ("tag", "\u00e9t\u00e9")}
    assert len(index.take([])) == 0


def test_an_index_travels_as_its_path(index_file: Path) -> None:
    taken = read_index(index_file).take(np.arange(4, 0, -1))
    data = pickle.dumps(taken)
    assert str(index_file).encode() in data
    again = pickle.loads(data)
    assert list(again.tags) == list(taken.tags)
    assert list(again.paths) == list(taken.paths)
    in_process = pickle.loads(pickle.dumps(index_of(gathered([("a", {"general": ("x",)})]))))
    assert in_process.tags[0] == {"general": ("x",)}


def gathered(images: list[tuple[str, dict]], bad: tuple[str, ...] = ()) -> Table:
    rows = Gathered("/data")
    for number, (name, tags) in enumerate(images):
        rows.add(Row(name, f"{name}.png", 9, number + 1, 3, f"caption of {name}", tags, True, None))
    for name in bad:
        rows.refuse(BadImage(name, "broken"))
    return rows.table({})


def rows_of(index: Index) -> list[tuple]:
    sizes = zip(index.widths.tolist(), index.heights.tolist(), strict=True)
    return list(zip(index.ids, index.paths, index.captions, index.tags, sizes, strict=True))


@given(
    st.lists(st.lists(st.tuples(strategies.image_ids(), strategies.tags_by_class()), max_size=4), max_size=4)
)
def test_merging_is_sorting_by_id(parts: list[list[tuple[str, dict]]]) -> None:
    tables = [gathered(part) for part in parts]
    found = merged(tables)
    expected: dict[str, tuple] = {}
    everything = [row for table in tables for row in rows_of(index_of(table))]
    for row in sorted(everything, key=lambda row: row[0].encode()):
        expected.setdefault(row[0].casefold(), row)
    index = index_of(in_memory(found.columns, found.facts))
    assert rows_of(index) == list(expected.values())
    assert len(index.quarantined) == len(everything) - len(expected) == len(found.duplicates)


def test_problems_of_all_parts_are_kept(tmp_path: Path) -> None:
    found = merged([gathered([], ("x",)), gathered([("a", {})]), gathered([], ("caf\udce9", "z"))])
    write_table(tmp_path / "index", found.columns, found.facts)
    index = read_index(tmp_path / "index")
    assert list(index.ids) == ["a"]
    assert [str(bad.path) for bad in index.quarantined] == ["x", "caf\\udce9", "z"]
    assert "sha256" not in read_table(tmp_path / "index").arrays


def test_hashes_follow_their_images(index_file: Path) -> None:
    import hashlib

    table = read_table(index_file)
    for row, path in enumerate(index_of(table).paths):
        assert table.arrays["sha256"][row].tobytes() == hashlib.sha256(path.read_bytes()).digest()
