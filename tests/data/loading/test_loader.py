"""Batches of images from disk."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refimpl.data.crop import SizeInts, cover_and_crop, cover_size, flip
from refimpl.data.images.decode import BadImage, decode
from refimpl.data.index.data_set import Index, read_folder
from refimpl.data.loading.loader import Batch, ImageCache, SameBucket, load_batches
from refimpl.errors import InputError
from tests.data.lanczos import needs_lanczos
from tests.tolerances import LANCZOS_LEVELS

SIZES = [(40, 20), (20, 40), (33, 33), (50, 17), (8, 60), (16, 16)]
BATCHES = [((16, 16), [0, 2, 5]), ((24, 16), np.array([3])), ((16, 24), (4, 1, 0))]


@dataclass(frozen=True)
class Keyed:
    """Draws that are functions of (id, visit) and can be pickled."""

    mirrored: bool = True

    def crop_source(self, name: str, visit: int) -> np.random.Generator:
        return np.random.default_rng([*name.encode(), visit])

    def is_flipped(self, name: str, visit: int) -> bool:
        return self.mirrored and (int(name) + visit) % 2 == 0


@pytest.fixture
def index(tmp_path: Path) -> Index:
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"tag {number}")
    return read_folder(tmp_path)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.size_ints, b.size_ints)
        and (a.items == b.items).all()
        and a.bucket == b.bucket
        for a, b in zip(first, second, strict=True)
    )


def test_batches_hold_what_cover_and_crop_and_flip_give(index: Index) -> None:
    loaded = list(load_batches(index, BATCHES, 3, Keyed()))
    assert [batch.bucket for batch in loaded] == [bucket for bucket, _ in BATCHES]
    for batch, (bucket, items) in zip(loaded, BATCHES, strict=True):
        assert batch.images.shape == (len(items), 3, bucket[1], bucket[0])
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        assert batch.size_ints.dtype == torch.int64
        assert batch.items.dtype == np.int64
        assert batch.items.tolist() == list(items)
        for image, ints, item in zip(batch.images, batch.size_ints, items, strict=True):
            name = index.ids[item]
            expected = cover_and_crop(decode(index.paths[item]), bucket, Keyed().crop_source(name, 3))
            if Keyed().is_flipped(name, 3):
                expected = flip(*expected)
            assert SizeInts(*ints.tolist()) == expected[1]
            assert (image.permute(1, 2, 0).numpy() == np.asarray(expected[0])).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int, index: Index) -> None:
    state = torch.get_rng_state()
    here = list(load_batches(index, BATCHES * 3, 1, Keyed()))
    there = list(load_batches(index, BATCHES * 3, 1, Keyed(), workers=workers))
    assert same(here, there)
    assert torch.equal(state, torch.get_rng_state())


def test_batching_and_order_change_no_image(index: Index) -> None:
    together = next(load_batches(index, [((16, 16), [0, 1, 2])], 1, Keyed()))
    alone = list(load_batches(index, [((16, 16), [item]) for item in (2, 1, 0)], 1, Keyed()))
    assert torch.equal(together.images, torch.cat([batch.images for batch in alone]).flip(0))
    assert torch.equal(together.size_ints, torch.cat([batch.size_ints for batch in alone]).flip(0))


def test_visits_differ(index: Index) -> None:
    visits = [list(load_batches(index, BATCHES, visit, Keyed(mirrored=False))) for visit in (0, 1)]
    assert not same(*visits)


def test_nothing_to_load(index: Index) -> None:
    assert list(load_batches(index, [], 0, Keyed())) == []


def test_the_cache_changes_nothing_and_keeps_to_its_limit(index: Index) -> None:
    plain = list(load_batches(index, BATCHES, 0, Keyed()))
    used = {(item, bucket) for bucket, items in BATCHES for item in items}
    sizes = [cover_size(*SIZES[item], bucket) for item, bucket in used]
    whole = sum(3 * width * height for width, height in sizes)
    nothing, some, everything = (ImageCache(limit) for limit in (0, whole // 2, 10**6))
    for cache in (nothing, some, everything):
        for _ in range(2):
            assert same(plain, list(load_batches(index, BATCHES, 0, Keyed(), cache=cache)))
        assert cache.bytes <= cache.max_bytes
    assert nothing.bytes == 0 < some.bytes
    assert everything.bytes == whole
    os.remove(index.paths[0])
    assert same(plain, list(load_batches(index, BATCHES, 0, Keyed(), cache=everything)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"2\.png: there is no such file \(id '2'\)"),
        (lambda path: path.write_bytes(path.read_bytes()[:600]), r"2\.png: can't be decoded .* \(id '2'\)"),
        (
            lambda path: Image.new("RGB", (9, 9)).save(path),
            r"2\.png: it is now 9x9 pixels, but was 33x33 when .* \(id '2'\)",
        ),
        (
            lambda path: Image.new("RGB", (33, 9)).save(path),
            r"2\.png: it is now 33x9 pixels, but was 33x33 when .* \(id '2'\)",
        ),
    ],
    ids=["gone", "cut off", "of another size", "of another height"],
)
def test_images_that_vanished_broke_or_changed_are_named(
    damage: Callable[[Path], object], message: str, workers: int, index: Index
) -> None:
    damage(index.paths[2])
    batches = load_batches(index, [((16, 16), [0]), ((16, 16), [1, 2])], 0, Keyed(), workers=workers)
    assert next(batches).items.tolist() == [0]
    with pytest.raises(BadImage, match=message) as caught:
        next(batches)
    assert caught.value.path == index.paths[2]


def test_the_cache_loads_images_too_long_to_scale_whole(tmp_path: Path) -> None:
    Image.new("RGB", (2, 200), (1, 2, 3)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a line")
    cache = ImageCache(10**9)
    batch = next(load_batches(read_folder(tmp_path), [((16, 16), [0])], 0, Keyed(), cache=cache))
    assert batch.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert cache.bytes == 0


def test_one_cache_serves_several_data_sets(index: Index) -> None:
    cache = ImageCache(10**6)
    turned = index.take([5, 4, 3, 2, 1, 0])
    for data in (index, turned):
        cached = list(load_batches(data, BATCHES, 0, Keyed(), cache=cache))
        assert same(cached, list(load_batches(data, BATCHES, 0, Keyed())))


def test_impossible_workers_are_refused(index: Index) -> None:
    with pytest.raises(InputError, match="workers = -1"):
        load_batches(index, BATCHES, 0, Keyed(), workers=-1)
    with pytest.raises(InputError, match="an image cache only with 0 workers"):
        load_batches(index, BATCHES, 0, Keyed(), workers=1, cache=ImageCache(1))


def test_transparency_is_laid_over_the_background_given(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("nothing")
    batch = next(load_batches(read_folder(tmp_path), [((8, 8), [0])], 0, Keyed(), background=(1, 2, 3)))
    assert batch.images[0, :, 0, 0].tolist() == [1, 2, 3]


BUCKET_OF = np.array([0, 1, 0, 0, 1, 2])


def test_the_following_images_of_the_bucket_stand_for_a_bad_one() -> None:
    substitutes = SameBucket(BUCKET_OF)
    assert [substitutes(item) for item in range(6)] == [[2, 3], [4], [3, 0], [0, 2], [1], []]
    assert SameBucket(np.zeros(100, np.int32))(99) == list(range(16))


@pytest.mark.parametrize("workers", [0, 2])
def test_substitutes_are_drawn_as_the_images_they_stand_for(workers: int, index: Index) -> None:
    index.paths[2].unlink()
    index.paths[3].write_bytes(b"no image")
    batches = [((16, 16), [1, 2]), ((16, 24), [3, 0])]
    loaded = list(
        load_batches(index, batches, 5, Keyed(), workers=workers, substitutes=SameBucket(BUCKET_OF))
    )
    assert [batch.planned.tolist() for batch in loaded] == [[1, 2], [3, 0]]
    assert [batch.items.tolist() for batch in loaded] == [[1, 0], [0, 0]]
    assert [[bad.path.name for bad in batch.bad] for batch in loaded] == [["2.png", "3.png"], ["3.png"]]
    expected, ints = cover_and_crop(decode(index.paths[0]), (16, 16), Keyed().crop_source("2", 5))
    if Keyed().is_flipped("2", 5):
        expected, ints = flip(expected, ints)
    assert (loaded[0].images[1].permute(1, 2, 0).numpy() == np.asarray(expected)).all()
    assert loaded[0].size_ints[1].tolist() == list(ints)
    assert torch.equal(loaded[0].images[:1], next(load_batches(index, [((16, 16), [1])], 5, Keyed())).images)


def test_a_bucket_of_bad_images_is_an_error_that_names_the_one_planned(index: Index) -> None:
    for item in (1, 4, 5):
        index.paths[item].unlink()
    for item in (4, 5):
        with pytest.raises(BadImage, match=rf"{item}\.png: there is no such file"):
            list(load_batches(index, [((16, 16), [item])], 0, Keyed(), substitutes=SameBucket(BUCKET_OF)))


@needs_lanczos
@pytest.mark.parametrize("workers", [0, 1])
def test_the_fast_decoder_is_within_two_levels(workers: int, index: Index) -> None:
    slow = list(load_batches(index, BATCHES, 2, Keyed()))
    fast = list(load_batches(index, BATCHES, 2, Keyed(), workers=workers, decoder="fast"))
    for one, other in zip(slow, fast, strict=True):
        assert torch.equal(one.size_ints, other.size_ints)
        assert (one.images.int() - other.images.int()).abs().max() <= LANCZOS_LEVELS


@needs_lanczos
def test_the_fast_decoder_has_no_cache(index: Index) -> None:
    with pytest.raises(InputError, match="holds images scaled by Pillow"):
        load_batches(index, BATCHES, 0, Keyed(), cache=ImageCache(1), decoder="fast")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")
def test_workers_are_forked_where_python_would_not(index: Index) -> None:
    """Python 3.14 starts processes from a server; draws that can't be pickled show that ours are not."""

    class Local(Keyed):
        pass

    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        loaded = list(load_batches(index, BATCHES, 2, Local(), workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)
    for one, other in zip(loaded, load_batches(index, BATCHES, 2, Keyed()), strict=True):
        assert torch.equal(one.images, other.images)
