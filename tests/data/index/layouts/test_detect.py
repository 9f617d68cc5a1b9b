"""All five layouts give the same data set."""

import builtins
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refimpl.commands.data.index import build, looked_at
from refimpl.data.images.archives import ParquetCell, TarMember
from refimpl.data.images.decode import BadImage, decode, read_size
from refimpl.data.index.data_set import Index, index_of, read_index, read_source
from refimpl.data.index.record import IndexOptions
from refimpl.data.tag_rules import TagRules
from refimpl.errors import InputError
from tests.data.layouts import CAPTIONS, LAYOUTS, SIZES, TAGS, WRITTEN, add_member, picture, write_images


def problems(source: Path) -> list[tuple[str, str]]:
    """Kind and message of every problem of a data set."""
    with looked_at(str(source), IndexOptions(), 1) as table:
        return [(bad.kind, str(bad)) for bad in index_of(table).quarantined]


def assert_the_same(index: Index, prefix: str) -> None:
    assert list(index.ids) == [prefix + name for name in SIZES]
    assert list(zip(index.widths.tolist(), index.heights.tolist(), strict=True)) == list(SIZES.values())
    assert list(index.captions) == list(WRITTEN.values())
    assert list(index.tags) == list(TAGS.values())
    for name, path in zip(SIZES, index.paths, strict=True):
        assert path.read_bytes() == picture(name)
        expected = Image.open(io.BytesIO(picture(name)))
        assert (np.asarray(decode(path)) == np.asarray(expected)).all()
        assert read_size(path) == SIZES[name]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_data_set(layout: str, tmp_path: Path) -> None:
    source = LAYOUTS[layout](tmp_path / "data")
    prefix = {"tar": "shard/", "parquet": "shard/"}.get(layout, "")
    index = read_source(source)
    assert_the_same(index, prefix)
    build((str(source),), tmp_path / "index", IndexOptions(), 1, show=False)
    assert_the_same(read_source(tmp_path / "index"), prefix)
    assert_the_same(read_index(tmp_path / "index").take([2, 0, 1]).take([1, 2, 0]), prefix)


def test_several_sources_make_one_index(tmp_path: Path) -> None:
    sources = [LAYOUTS[layout](tmp_path / layout) for layout in ("folder", "tar")]
    os.rename(sources[1], tmp_path / "other.tar")
    table = build(
        (str(sources[0]), str(tmp_path / "other.tar")), tmp_path / "index", IndexOptions(), 1, show=False
    )
    assert list(read_index(tmp_path / "index").ids) == [
        "a",
        "b",
        "other/a",
        "other/b",
        "other/sub/c",
        "sub/c",
    ]
    assert len(table.facts["containers"]) == 2


def test_metadata_of_splits_is_found(tmp_path: Path) -> None:
    LAYOUTS["jsonl"](tmp_path / "train")
    assert list(read_source(tmp_path).ids) == ["train/a", "train/b", "train/sub/c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"file_name": "../x.png", "text": "t"}', r"line 4: '\.\./x\.png' leaves the folder"),
        (b'{"file_name": "/etc/x.png", "text": "t"}', r"line 4: '/etc/x\.png' leaves the folder"),
        (b'{"file_name": "a\\u0000.png", "text": "t"}', r"line 4: image name .* contains a NUL"),
        (b'{"file_name": "none.png", "text": "t"}', r"none\.png: there is no such file"),
        (b'{"file_name": "sub", "text": "t"}', r"sub: not a regular file"),
        (b'{"text": "t"}', "line 4: it names no image"),
        (b"[1]", "line 4: it is not a JSON object"),
        (b"{", "line 4: Expecting property name"),
        (b"[" * 100_000, "line 4: "),
        (b'{"file_name": "caf\xe9.png"}', "line 4: not UTF-8 at byte 1[0-9][0-9] of the file"),
        (b'{"file_name": "a.png", "text": 5}', r"a\.png: in its record, its text is 5"),
        (b'{"file_name": "a.png", "text": "x\\u0000"}', r"a\.png: in its record, its caption contains a NUL"),
        (b'{"file_name": "a.png", "text": "\\ud800"}', r"a\.png: its caption contains an unpaired surrogate"),
        (b'{"file_name": "\\ud800.png", "text": "t"}', "the name is not UTF-8, or contains control"),
    ],
)
def test_bad_lines_are_named(line: bytes, message: str, tmp_path: Path) -> None:
    LAYOUTS["jsonl"](tmp_path)
    path = tmp_path / "metadata.jsonl"
    before = path.read_bytes() + b"\n\n"[:1]
    path.write_bytes(before + line + b"\n\n")
    (found,) = problems(tmp_path)
    assert re.search(message, found[1]), found
    with pytest.raises(InputError, match="1 of 4 images can't be used, more than 1%"):
        read_source(tmp_path)


def test_byte_offsets_are_of_the_file(tmp_path: Path) -> None:
    LAYOUTS["jsonl"](tmp_path)
    path = tmp_path / "metadata.jsonl"
    data = path.read_bytes() + b'\n{"file_name": "caf\xe9.png"}'
    path.write_bytes(data)
    assert f"not UTF-8 at byte {data.index(0xE9)} of the file" in problems(tmp_path)[0][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "not kohya's metadata"),
        (b'{"a": 1}', "not kohya's metadata"),
        (b'{"a": "caf\xe9"}', "not UTF-8 at byte 10"),
    ],
)
def test_metadata_that_is_none_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"meta\.json: {message}"):
        read_source(tmp_path / "meta.json")


def test_kohya_paths_may_be_absolute_or_without_suffix(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    table = {
        str(tmp_path / "images/a.png"): {"caption": "a text", "tags": "red, blue"},
        "images/b": {"caption": "x"},
        "images/none": {"caption": "x"},
    }
    (tmp_path / "meta.json").write_text(json.dumps(table))
    with looked_at(str(tmp_path / "meta.json"), IndexOptions(), 1) as found:
        index = index_of(found)
        assert list(index.captions) == ["a text, red, blue", "x"]
        assert [path.name for path in index.paths] == ["a.png", "b.png"]
        assert [str(bad) for bad in index.quarantined] == [f"{tmp_path}/images/none: there is no such file"]


def shard(tmp_path: Path, *members: tuple[str, bytes, dict]) -> Path:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        add_member(archive, "good.png", picture("a"))
        add_member(archive, "good.txt", b"fine")
        for name, data, changes in members:
            add_member(archive, name, data, **changes)
    return tmp_path / "shard.tar"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("../up.png", {}, r"its name is absolute or leaves the archive"),
        ("a/../../up.png", {}, r"its name is absolute or leaves the archive"),
        ("/etc/up.png", {}, r"its name is absolute or leaves the archive"),
        (
            "link.png",
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
            "a symbolic link in an archive",
        ),
        (
            "link.png",
            {"type": tarfile.LNKTYPE, "linkname": "good.png", "size": 0},
            "a hard link in an archive",
        ),
        ("null.png", {"type": tarfile.CHRTYPE, "size": 0}, "a device or a pipe in an archive"),
        ("disk.png", {"type": tarfile.BLKTYPE, "size": 0}, "a device or a pipe in an archive"),
        ("pipe.png", {"type": tarfile.FIFOTYPE, "size": 0}, "a device or a pipe in an archive"),
    ],
)
def test_members_that_may_not_be_in_a_shard_are_refused(
    name: str, changes: dict, message: str, tmp_path: Path
) -> None:
    data = b"" if changes else picture("b")
    path = shard(tmp_path, (name, data, changes))
    ((kind, text),) = problems(path)
    assert kind == "archive"
    assert message in text
    assert f"shard.tar/{name.removeprefix('/')}" in text
    with pytest.raises(InputError, match="1 of 2 images can't be used"):
        read_source(path)


def test_records_in_shards(tmp_path: Path) -> None:
    record = {"caption": "a text", "tags": {"artist": ["bob"]}, "rating": "s", "score": 120}
    path = shard(tmp_path, ("r.png", picture("b"), {}), ("r.json", json.dumps(record).encode(), {}))
    rules = TagRules(rating_tags=True, quality=((150.0, "masterpiece"), (100.0, "best")))
    with looked_at(str(path), IndexOptions(rules), 1) as table:
        index = index_of(table)
        assert index.captions[1] == "a text, bob, sensitive, best"
        assert index.tags[1] == {
            "general": ("a text",), "artist": ("bob",), "rating": ("sensitive",), "quality": ("best",),
        }  # fmt: skip
    for content, message in (
        (b"{", "the record is not JSON"),
        (b"[]", r"the record is '\[\]', not a JSON object"),
    ):
        path = shard(tmp_path, ("r.png", picture("b"), {}), ("r.json", content, {}))
        with pytest.raises(InputError, match=message):
            read_source(path)


def test_a_shard_cut_short_is_named_and_its_start_is_kept(tmp_path: Path) -> None:
    path = shard(tmp_path, ("later.png", picture("b"), {}))
    whole = path.read_bytes()
    at = whole.index(b"later.png")
    path.write_bytes(whole[: at + 512 + 100])
    assert any("later.png: the archive ends before the member does" in text for _, text in problems(path))
    path.write_bytes(whole[: at + 100])
    with looked_at(str(path), IndexOptions(), 1) as table:
        assert list(index_of(table).ids) == ["shard/good"]
        assert "the archive is damaged" in str(index_of(table).quarantined[0])


def test_a_name_twice_in_a_shard_is_said(tmp_path: Path) -> None:
    path = shard(tmp_path, ("good.png", picture("b"), {}))
    assert "has this name twice; the last one counts" in problems(path)[0][1]


@pytest.mark.parametrize("name", ["shard.tar.gz", "shard.tgz", "shard.tar"])
def test_shards_that_cannot_be_read_in_place_are_refused(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        add_member(archive, "a.png", picture("a"))
    with pytest.raises(InputError, match="not a tar file that can be read in place"):
        read_source(tmp_path / name)


def test_archives_that_changed_or_vanished_are_named(tmp_path: Path) -> None:
    for layout in ("tar", "parquet"):
        path = LAYOUTS[layout](tmp_path)
        source = read_source(path).paths[0]
        assert isinstance(source, TarMember | ParquetCell)
        with path.open("ab") as file:
            file.write(b"more")
        for read in (decode, read_size):
            with pytest.raises(
                BadImage, match=r"shard\..* bytes, but had .* when it was indexed; index it again"
            ):
                read(source)
        path.unlink()
        with pytest.raises(BadImage, match=r"its archive .* is gone"):
            decode(source)


def test_parquet_of_paths_and_of_nothing(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    write_images(tmp_path)
    names = [f"{name}.png" for name in SIZES]
    table = pyarrow.table(
        {"file_name": names, "tag_string_artist": ["bob_b", "", "x"], "caption": ["t", "u", None]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    index = read_source(tmp_path / "t.parquet")
    assert list(index.ids) == list(SIZES)
    assert list(index.captions) == ["t, bob_b", "u", "x"]
    bad = pyarrow.table({"image": [None, b"rubbish", picture("a")], "caption": ["a", "b", "c"]})
    pyarrow.parquet.write_table(bad, tmp_path / "bad.parquet")
    assert [kind for kind, _ in problems(tmp_path / "bad.parquet")] == ["metadata", "not an image"]
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "none.parquet")
    with pytest.raises(InputError, match="its columns are x; the images must be in one of image"):
        read_source(tmp_path / "none.parquet")
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_source(tmp_path / "none.parquet")


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    plain = builtins.__import__

    def refusing(name: str, *rest: object, **others: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(InputError, match=r'pyarrow is not installed; .* pip install "pyarrow>=15"'):
        read_source(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"nowhere: there is no such folder; give one of images"),
        ("notes.md", r"notes\.md: not a folder, and a file ending in \.md is not a data set"),
        ("pipe", "pipe: neither a folder nor a regular file"),
        ("empty", "empty: no images in it"),
        ("shards", r"shards: no images in it but 1 shards such as a\.tar; give them"),
    ],
)
def test_what_is_no_data_set_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/a.tar").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        read_source(tmp_path / name)


def test_captions_of_all_layouts_agree() -> None:
    assert set(CAPTIONS) == set(SIZES) == set(TAGS) == set(WRITTEN)
