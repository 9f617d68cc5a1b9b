"""A run trains on an index, or on shards, as it trains on the folder."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from refimpl.commands.data.index import build
from refimpl.data.index.record import IndexOptions
from refimpl.data.loading.loader import load_batches
from refimpl.data.tag_rules import TagRules
from refimpl.errors import InputError
from refimpl.run.stage import StageData, read_stage
from refimpl.run.visit_draws import CentreDraws
from tests.train import runs

COLOURS = IndexOptions(TagRules(("colour",)))


def stage(root: Path, folder: Path, **data: object) -> StageData:
    config = runs.config(root, root, data={"folder": str(folder), **data})
    return read_stage(config, config.all_stages()[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_index_and_a_folder_are_the_same_stage(workers: int, root: Path, tmp_path: Path) -> None:
    build((str(root / "train"),), tmp_path / "index", COLOURS, 1, show=False)
    folder, indexed = stage(root, root / "train"), stage(root, tmp_path / "index")
    assert list(indexed.index.ids) == list(folder.index.ids)
    assert list(indexed.index.captions) == list(folder.index.captions)
    assert (indexed.bucket_of == folder.bucket_of).all()
    assert torch.equal(indexed.draw_ids, folder.draw_ids)
    assert torch.equal(indexed.tag_weights, folder.tag_weights)
    items = np.flatnonzero(folder.bucket_of == folder.bucket_of[0])
    batches = [(folder.buckets[folder.bucket_of[0]], items)]
    (first,), (second,) = (
        load_batches(data.index, batches, 0, CentreDraws(), workers=workers) for data in (folder, indexed)
    )
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.size_ints, second.size_ints)


def test_shards_are_trained_on_where_they_lie(root: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for path in sorted((root / "train").iterdir()):
            archive.add(path, path.name)
    build((str(tmp_path / "train.tar"),), tmp_path / "index", COLOURS, 1, show=False)
    folder, shards = stage(root, root / "train"), stage(root, tmp_path / "index")
    assert list(shards.index.ids) == [f"train/{name}" for name in folder.index.ids]
    assert torch.equal(shards.tag_weights, folder.tag_weights)
    batches = [(folder.buckets[folder.bucket_of[row]], [row]) for row in range(len(folder.index))]
    loaded = (load_batches(data.index, batches, 0, CentreDraws()) for data in (folder, shards))
    assert all(torch.equal(first.images, second.images) for first, second in zip(*loaded, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "train.tar"]


def test_a_class_that_the_index_does_not_know_is_named(root: Path, tmp_path: Path) -> None:
    build((str(root / "train"),), tmp_path / "index", IndexOptions(), 1, show=False)
    with pytest.raises(
        InputError, match=r"made without the tag class colour; .* --tags.classes general .* colour"
    ):
        stage(root, tmp_path / "index")


@pytest.mark.parametrize("entry", ["artist", "artist:2", "artist:-0.1", "artist:x", ":0.1", "artist:nan"])
def test_dropout_that_is_none_is_named(entry: str, root: Path) -> None:
    with pytest.raises(InputError, match=f"data.tag_dropout '{entry}': give class:probability"):
        runs.config(root, root, data={"tag_dropout": [entry]})
    with pytest.raises(InputError, match="once for each class"):
        runs.config(root, root, data={"tag_dropout": ["a:0.1", "a:0.2"]})
