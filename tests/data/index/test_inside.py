"""What a data set may name: files in its own folder, links followed; all others only where the user allows it."""

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.commands.data.check import check_command
from refimpl.commands.data.index import IndexCommand, build, looked_at
from refimpl.commands.data.tags import tags_command
from refimpl.data.images.decode import BadImage
from refimpl.data.index import inside
from refimpl.data.index.data_set import index_of, read_index, read_source
from refimpl.data.index.index_file import read_table, write_table
from refimpl.data.index.inside import leads_outside
from refimpl.data.index.record import IndexOptions
from refimpl.data.survey.survey import changed_files
from refimpl.errors import InputError
from refimpl.run.data_digest import files_digest
from refimpl.run.presets import load_config
from refimpl.run.stage import read_stage
from refimpl.studio.browsed import browse
from refimpl.studio.image_row import Row
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
    made = indexed(folder, tmp_path / "index")
    assert list(read_source(made).captions) == ["secret", "t"]  # the captions are in it, the images inside


def indexed(source: Path, out: Path) -> Path:
    """An index of all that a data set names, inside its folder or not."""
    options = IndexCommand((str(source),), out, allow_outside=True).options()
    build((str(source),), out, options, 1, show=False)
    return out


LEAVES = r"leaves the folder of its data set, .*/set; .* allow it with --allow-outside"
OUTSIDE = ["../private/x.png", "sub/../../private/x.png", "{private}/x.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_names_a_file_outside_is_refused_by_every_reader(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = indexed(
        metadata_jsonl(folder, name.replace("{private}", str(tmp_path / "private"))), tmp_path / "index"
    )
    tiny = load_config("tiny")
    config = replace(tiny, data=replace(tiny.data, folder=str(made), heldout="", tag_classes=()))
    stage = config.all_stages()[0]
    for read in (read_source, read_index, lambda path: read_stage(config, stage)):
        with pytest.raises(InputError, match=LEAVES):
            read(made)
    assert re.search(LEAVES, browse(made, config).problem)
    for command in (check_command, tags_command):
        with pytest.raises(InputError, match=LEAVES):
            command([str(made)])
        command([str(made), "--allow-outside"])
    allowed = replace(config, data=replace(config.data, allow_outside=True))
    assert len(read_stage(allowed, stage).index) == len(read_index(made, allow_outside=True)) == 1
    assert not browse(made, allowed).problem
    out, err = capsys.readouterr()
    assert f"its images are in {folder}\n" in out  # which the index says itself
    assert err == ""


@pytest.mark.parametrize(
    "container",
    [
        ["files", 7, "", -1],
        ["files", "/", 7, -1],
        ["files", "/", "", "x"],
        ["links", "/", "", -1],
        [],
        7,
        None,
    ],
)
def test_an_index_whose_folders_are_none_is_damaged(container: Any, folder: Path, tmp_path: Path) -> None:
    made = indexed(metadata_jsonl(folder, "good.png"), tmp_path / "index")
    table = read_table(made)
    columns = {name: (array.dtype, array.shape, [array]) for name, array in table.arrays.items()}
    write_table(tmp_path / "other", columns, {**table.facts, "containers": [container]})
    with pytest.raises(InputError, match="is not a whole index"):
        read_source(tmp_path / "other")


@pytest.mark.parametrize("name", ["file.png", "there/x.png"])
def test_a_link_that_an_index_names_is_not_followed_outside(name: str, folder: Path, tmp_path: Path) -> None:
    made = indexed(metadata_jsonl(folder, name), tmp_path / "index")
    index = read_source(made)
    for copy in (index, index.take([0]), pickle.loads(pickle.dumps(index))):
        with pytest.raises(BadImage, match=LEAVES) as found:
            copy.paths[0]
        assert found.value.kind == "outside"
    with pytest.raises(InputError, match=LEAVES):
        files_digest(index, "stat")  # which training begins with
    (problem,) = changed_files(read_table(made))
    assert problem.kind == "outside"
    with pytest.raises(InputError, match=LEAVES):
        Row(browse(made, load_config("tiny")), 0).place  # noqa: B018
    allowed = read_source(made, allow_outside=True)
    for copy in (allowed, allowed.take([0]), pickle.loads(pickle.dumps(allowed))):
        assert copy.paths[0] == folder / name
    assert changed_files(read_table(made, allow_outside=True)) == []


@pytest.mark.parametrize("name", ["good.png", "sub/../good.png", "{set}/good.png", "sub/near.png"])
def test_what_an_index_names_inside_its_folder_is_read(name: str, folder: Path, tmp_path: Path) -> None:
    made = indexed(metadata_jsonl(folder, name.replace("{set}", str(folder))), tmp_path / "index")
    assert Path(os.path.normpath(read_source(made).paths[0])).parent in (folder, folder / "sub")


@given(names=st.lists(st.text("a./", max_size=6), max_size=12), chunk=st.integers(1, 5))
def test_unusual_names_are_those_that_are_absolute_or_go_up(names: list[str], chunk: int) -> None:
    data = np.frombuffer("".join(names).encode(), np.uint8)
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inside, "CHUNK", chunk)
        found = list(inside.unusual_names(data, ends))
    assert found == [row for row, name in enumerate(names) if name.startswith("/") or ".." in name.split("/")]


def test_a_name_with_a_nul_is_no_file_of_the_folder(folder: Path) -> None:
    assert leads_outside(str(folder), "a\0b.png")


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
