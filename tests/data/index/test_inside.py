"""What a data set may name: files in its own folder, links followed; all others only where the user allows it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from refimpl.commands.data.index import IndexCommand, build, looked_at
from refimpl.data.index.data_set import index_of, read_source
from refimpl.data.index.inside import leads_outside
from refimpl.data.index.record import IndexOptions
from refimpl.errors import InputError
from tests.data.layouts import picture


def metadata_jsonl(folder: Path, name: str) -> Path:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "t"}))
    return folder


def metadata_kohya(folder: Path, name: str) -> Path:
    (folder / "meta.json").write_text(json.dumps({name: {"caption": "t"}}))
    return folder / "meta.json"


def metadata_parquet(folder: Path, name: str) -> Path:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"path": [name], "text": ["t"]}), folder / "rows.parquet")
    return folder / "rows.parquet"


WRITERS = [metadata_jsonl, metadata_kohya, metadata_parquet]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set's folder, beside a folder `private` with an image; links lead from the one to the other."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x.png").write_bytes(picture("a"))
    (tmp_path / "private" / "x.txt").write_text("secret")
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "file.png").symlink_to(tmp_path / "private" / "x.png")
    (tmp_path / "set" / "there").symlink_to(tmp_path / "private")
    (tmp_path / "set" / "good.png").write_bytes(picture("b"))
    (tmp_path / "set" / "sub" / "near.png").symlink_to("../good.png")
    return tmp_path / "set"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "name", ["../private/x.png", "sub/../../private/x.png", "{private}/x.png", "file.png", "there/x.png"]
)
def test_what_leaves_the_folder_is_refused_unless_allowed(
    write: Callable[[Path, str], Path], name: str, folder: Path
) -> None:
    source = write(folder, name.replace("{private}", str(folder.parent / "private")))
    with pytest.raises(
        InputError, match=r"leaves the folder of its data set, .*/set; .* allow it with --allow-outside"
    ):
        read_source(source)
    with looked_at(str(source), IndexOptions(), 1) as table:
        (bad,) = index_of(table).quarantined
        assert bad.kind == "outside"
    found = read_source(source, allow_outside=True)
    assert [(found.widths[0], found.heights[0])] == [(40, 20)]
    assert list(found.captions) == ["t"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["good.png", "sub/../good.png", "{set}/good.png", "sub/near.png"])
def test_what_stays_in_the_folder_is_read(
    write: Callable[[Path, str], Path], name: str, folder: Path
) -> None:
    source = write(folder, name.replace("{set}", str(folder)))
    assert len(read_source(source)) == 1


def test_links_of_a_folder_and_their_sidecars_follow_the_rule(folder: Path, tmp_path: Path) -> None:
    for name in ("file", "good", "sub/near"):
        (folder / f"{name}.txt").write_text("t")
    with pytest.raises(InputError, match=r"'file\.png' leaves the folder"):
        read_source(folder)
    assert list(read_source(folder, allow_outside=True).ids) == ["file", "good", "sub/near"]
    (folder / "file.png").unlink()
    (folder / "good.txt").unlink()
    (folder / "good.txt").symlink_to(folder.parent / "private" / "x.txt")
    with pytest.raises(InputError, match=r"'good\.txt' leaves the folder"):
        read_source(folder)
    options = IndexCommand((str(folder),), tmp_path / "index", allow_outside=True).options()
    build((str(folder),), tmp_path / "index", options, 1, show=False)
    assert list(read_source(tmp_path / "index").captions) == [
        "secret",
        "t",
    ]  # the index was made with its own choice


def test_a_data_set_behind_a_link_is_its_own_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (folder / "file.png").unlink()
    metadata_jsonl(folder, "good.png")
    assert len(read_source(tmp_path / "link")) == 1


def test_a_folder_whose_name_begins_alike_is_another(tmp_path: Path) -> None:
    for name in ("set", "settle"):
        (tmp_path / name).mkdir()
    assert leads_outside(str(tmp_path / "set"), "../settle/x.png")
    assert leads_outside(str(tmp_path / "set"), ".")
    assert not leads_outside(str(tmp_path / "set"), "x.png")
    assert not leads_outside(os.sep, str(tmp_path / "x.png"))
