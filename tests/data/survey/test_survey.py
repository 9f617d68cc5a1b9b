"""The survey of a data set, before any training."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.commands.data.index import build
from refimpl.data.buckets import PRESETS, assign
from refimpl.data.images.decode import BadImage
from refimpl.data.index.builder import Gathered, Row
from refimpl.data.index.index_file import Table
from refimpl.data.index.record import IndexOptions
from refimpl.data.survey.survey import BIN_PIXELS, MOST_BINS, changed_files, survey, weight_survey
from refimpl.data.tags import TagCounts
from tests.data.index.test_data_set import add
from tests.data.layouts import LAYOUTS
from tests.tolerances import FLOAT64_ROUNDING

BUCKETS = PRESETS["novelai_v3"]


def table_of(
    sizes: list[tuple[int, int]], tags: list[dict] | None = None, bad: dict[str, str] | None = None
) -> Table:
    rows = Gathered("/data")
    for number, (width, height) in enumerate(sizes):
        found = tags[number] if tags else {"general": ("x",)}
        caption = ", ".join(name for names in found.values() for name in names)
        rows.add(Row(f"{number:03}", f"{number}.png", 9, width, height, caption, found, True, None))
    for path, kind in (bad or {}).items():
        rows.refuse(BadImage(path, "the reason", kind))
    return rows.table({})


@given(st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 6000)), min_size=1, max_size=30))
def test_the_numbers_are_those_of_the_images(sizes: list[tuple[int, int]]) -> None:
    found = survey(table_of(sizes), BUCKETS)
    widths, heights = np.array(sizes).T
    index, _ = assign(widths, heights, BUCKETS)
    across, down = np.array(BUCKETS)[index].T
    assert found.images == len(sizes) == sum(found.bucket_counts) == found.density.sum()
    assert found.mean_error == pytest.approx(
        np.abs(across / down - widths / heights).mean(), rel=FLOAT64_ROUNDING
    )
    assert found.small == sum(
        w < a or h < d for w, h, a, d in zip(widths, heights, across, down, strict=True)
    )
    assert found.short == sum(w < 256 or h < 256 for w, h in sizes)  # S Fig. 2
    assert found.percentiles["width (px)"][0] == widths.min()
    assert found.percentiles["aspect"][-1] == (widths / heights).max()
    row, column = (np.minimum(side // BIN_PIXELS, MOST_BINS - 1) for side in (heights, widths))
    assert (found.density[row, column] > 0).all()


def test_what_is_pruned_is_listed_and_counted_no_further() -> None:
    found = survey(table_of([(1000, 1000), (100, 4000)]), BUCKETS, max_log_error=0.5)
    assert [(os.path.basename(path), width, height) for path, width, height, _ in found.pruned] == [
        ("1.png", 100, 4000)
    ]
    assert found.pruned[0][3] == pytest.approx(math.log(4000 / 100 / 4))
    assert sum(found.bucket_counts) == 1
    assert found.mean_error == 0


def test_an_edge_below_256_px_is_counted_whatever_the_bucket() -> None:
    """As S Fig. 2 counts: by the shorter edge alone, of all images, also those that are pruned."""
    sizes = [(255, 1000), (1000, 255), (256, 256), (255, 255), (4000, 4000), (100, 4000)]
    table = table_of(sizes)
    assert survey(table, [(64, 64)]).short == 4  # of which none is smaller than its bucket
    assert survey(table, [(64, 64)]).small == 0
    pruned = survey(table, BUCKETS, max_log_error=0.5)
    assert [(width, height) for _, width, height, _ in pruned.pruned] == [(100, 4000)]
    assert pruned.short == 4


def test_problems_are_told_by_kind() -> None:
    found = survey(table_of([(9, 9)], bad={"a": "empty", "b": "caption", "c": "empty"}), BUCKETS)
    assert {kind: len(problems) for kind, problems in found.problems.items()} == {"empty": 2, "caption": 1}
    assert str(found.problems["empty"][1]) == "c: the reason"


def test_an_empty_data_set_has_no_numbers() -> None:
    found = survey(table_of([]), BUCKETS)
    assert (found.images, found.small, found.percentiles, found.classes) == (0, 0, {}, [])
    assert math.isnan(found.mean_error)
    assert weight_survey(table_of([]), TagCounts()).images == [0]


def test_tags_are_ranked_by_class() -> None:
    tags = [{"general": ("a", "b"), "artist": ("z",)}, {"general": ("a", "c")}, {}]
    found = survey(table_of([(9, 9)] * 3, tags), BUCKETS, listed=2)
    artist, general = found.classes
    assert (artist.name, artist.distinct, artist.uses) == ("artist", 1, 1)
    assert (general.distinct, general.uses) == (3, 4)
    assert general.most == [("a", 2), ("b", 1)]
    assert general.least == [("b", 1), ("c", 1)]
    assert found.uncaptioned == 1


def test_the_heaviest_and_the_lightest_images() -> None:
    tags = [{"general": ("common",)}] * 6 + [{"general": ("common", "rare")}, {"general": ("rarest",)}]
    found = weight_survey(table_of([(9, 9)] * 8, tags), TagCounts(1.0, 0.01, 100.0), listed=2)
    assert [name for _, name, _ in found.heaviest] == ["007", "006"]
    assert [name for _, name, _ in found.lightest] == ["000", "001"]
    assert found.heaviest[0][2] == {"general": ("rarest",)}
    assert sum(found.images) == found.count == 8
    assert found.edges == sorted(found.edges)
    assert found.edges[0] == pytest.approx(found.lightest[0][0])
    assert found.edges[-1] == pytest.approx(found.heaviest[0][0])
    alike = weight_survey(table_of([(9, 9)] * 2), TagCounts())
    assert alike.images == [2]


def test_images_that_changed_since_are_named(tmp_path: Path) -> None:
    for number in range(4):
        add(tmp_path / "images", f"{number}.png")
    sources = (str(tmp_path / "images"), str(LAYOUTS["tar"](tmp_path)))
    plain = build(sources, tmp_path / "plain", IndexOptions(), 1, show=False)
    hashed = build(sources, tmp_path / "hashed", IndexOptions(sha256=True), 1, show=False)
    assert changed_files(plain) == changed_files(hashed) == []
    (tmp_path / "images/0.png").unlink()
    longer = tmp_path / "images/1.png"
    longer.write_bytes(longer.read_bytes() + b"x")
    same = tmp_path / "images/2.png"
    same.write_bytes(same.read_bytes()[:-1] + b"x")
    found = [(bad.path.name, bad.kind) for bad in changed_files(plain)]
    assert found == [("0.png", "missing"), ("1.png", "changed")]
    assert [(bad.path.name, bad.kind) for bad in changed_files(hashed)] == [*found, ("2.png", "changed")]
    (tmp_path / "shard.tar").unlink()
    assert [bad.kind for bad in changed_files(plain)].count("missing") == 4
