"""Mutated tables and shards give images, named problems or one message; no other exception escapes."""

import random
from pathlib import Path

import pytest

from refimpl.data.index.data_set import index_of
from refimpl.data.index.layouts import detect as layouts
from refimpl.data.index.parallel_read import read_unit
from refimpl.data.index.record import IndexOptions
from refimpl.errors import InputError
from tests.data.images.test_fuzz_decode import mutated
from tests.data.layouts import LAYOUTS, SIZES

SOME, MANY = 60, 4000
OPTIONS = IndexOptions()


def outcomes(layout: str, count: int, folder: Path) -> dict[str, int]:
    """How many of `count` mutated files are rejected outright, and how many images and problems the others have."""
    source = LAYOUTS[layout](folder)
    file = source / "metadata.jsonl" if source.is_dir() else source
    whole, draw = file.read_bytes(), random.Random(count)
    found, refused = {"images": 0, "problems": 0}, []
    for _ in range(count):
        file.write_bytes(mutated(whole, whole, draw))
        try:
            tables = [read_unit(unit, OPTIONS) for unit in layouts.units(str(source), OPTIONS)]
        except InputError as error:
            refused.append(str(error))
            continue
        for table in tables:
            index = index_of(table)
            assert len(index) <= 2 * len(SIZES)
            assert all(str(bad) and bad.kind for bad in index.quarantined)
            assert all(text.isprintable() for text in index.ids)
            assert all("\0" not in text for text in index.captions)
            found["images"] += len(index)
            found["problems"] += len(index.quarantined)
    assert all(str(file) in message for message in refused)
    return {**found, "refused": len(refused)}


@pytest.mark.parametrize("layout", ["jsonl", "kohya", "tar", "parquet"])
def test_some_mutated_layouts(layout: str, tmp_path: Path) -> None:
    found = outcomes(layout, SOME, tmp_path)
    assert found["images"] > 0
    assert found["refused"] + found["problems"] > SOME // 4


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["jsonl", "kohya", "tar", "parquet"])
def test_many_mutated_layouts(layout: str, tmp_path: Path) -> None:
    assert outcomes(layout, MANY, tmp_path)["images"] > 0
