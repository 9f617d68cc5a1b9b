"""Indexing images from their headers, and what an index of six million costs in memory and time.

python -m benchmarks.bench_index [--images N] [--most N]        writes results/index.json
Exits with 1 when one core reads fewer than 5,000 images a second, or more than 200 bytes per image stay resident.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import write
from refimpl.commands.data.index import build
from refimpl.data.captions import parse_caption
from refimpl.data.index.builder import packed_strings
from refimpl.data.index.data_set import read_folder, read_index
from refimpl.data.index.index_file import FILES, NUMBERS, Shaped, write_table
from refimpl.data.index.layouts.folder import units
from refimpl.data.index.parallel_read import read_unit
from refimpl.data.index.record import IndexOptions

LEAST_RATE = 5_000  # images per second and core, from headers on warm storage
MOST_BYTES = 200  # resident per image at the paper's size
SIZES = (10_000, 100_000, 1_000_000, 6_000_000)
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
TAGS_PER_IMAGE, MOST_TAGS = 24, 100_000
PART = 1 << 16  # images of a synthetic index made at once
FOLDER = 1000  # images in one folder


def write_images(folder: Path, count: int) -> None:
    """Real files of about a megapixel in three formats, each with a caption of tags."""
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for number in range(count):
        here = folder / f"{number // FOLDER:04}"
        here.mkdir(parents=True, exist_ok=True)
        suffix, kind = list(KINDS.items())[number % len(KINDS)]
        path = here / f"{number:07}.{suffix}"
        if number < 3 * 8:  # eight sizes of each format; the others are copies, which are files of their own
            size = 640 + 64 * (number // 3), 1024
            noise.resize(size, Image.Resampling.BICUBIC).save(path, kind)
        else:
            twin = number % 24
            path.write_bytes((folder / "0000" / f"{twin:07}.{suffix}").read_bytes())
        names = [f"tag {tag}" for tag in generator.integers(0, 5000, 20)]
        path.with_suffix(".txt").write_text("artist:somebody, " + ", ".join(names))


def assert_right(folder: Path, index: Path) -> None:
    """The index says what Pillow and the captions say, or there is nothing to time."""
    found, listed = read_index(index), read_folder(folder)
    assert list(found.ids) == listed.ids
    assert list(found.tags) == listed.tags
    for row in range(0, len(found), max(1, len(found) // 50)):
        source = found.paths[row]
        assert isinstance(source, Path)
        with Image.open(source) as image:
            assert image.size == (found.widths[row], found.heights[row])
        text = source.with_suffix(".txt").read_text()
        assert (found.captions[row], found.tags[row]) == parse_caption(text)


def headers(count: int) -> dict[str, Any]:
    """Images per second of one core, warm: all in one process, and its own processor time, which neighbours spare."""
    with tempfile.TemporaryDirectory() as name:
        folder, index = Path(name) / "images", Path(name) / "index"
        write_images(folder, count)
        build((str(folder),), index, IndexOptions(), 1, show=False)
        assert_right(folder, index)
        rates, processor_rates = [], []
        for _ in range(3):
            start, processor = time.perf_counter(), time.process_time()
            for unit in units(str(folder)):
                read_unit(unit, IndexOptions())
            rates.append(count / (time.perf_counter() - start))
            processor_rates.append(count / (time.process_time() - processor))
        whole = time.process_time()
        build((str(folder),), Path(name) / "again", IndexOptions(), 1, show=False)
        whole = time.process_time() - whole
    return {
        "images": count,
        "formats": list(KINDS),
        "images_per_second": max(rates),
        "images_per_processor_second": max(processor_rates),
        "whole_command_images_per_processor_second": count / whole,
    }


def synthetic_index(path: Path, count: int) -> None:
    """An index of a plausible collection, made of numbers alone, some at a time."""
    generator = np.random.default_rng(0)
    distinct = min(MOST_TAGS, max(1, count // 20))
    caption, parts = np.frombuffer(b"a tag, another one, " * 8, np.uint8), range(0, count, PART)
    area, aspect = np.exp(generator.normal(14.2, 0.6, count)), np.exp(generator.normal(-0.2, 0.35, count))

    def text(form: bytes) -> Iterator[np.ndarray]:
        for start in parts:
            rows = range(start, min(start + PART, count))
            yield np.frombuffer(b"".join(form % (row // FOLDER, row) for row in rows), np.uint8)

    def tags() -> Iterator[np.ndarray]:
        for start in parts:  # few tags of very many images and many of few, as in real collections
            share = generator.random(TAGS_PER_IMAGE * (min(start + PART, count) - start))
            yield (distinct**share).astype(np.int32) % distinct

    captions = (np.tile(caption, min(PART, count - start)) for start in parts)
    texts = {"id": (12, text(b"%04d/%07d")), "name": (16, text(b"%04d/%07d.jpg")), "caption": (160, captions)}
    columns: dict[str, Shaped] = {n: one_piece(np.zeros(count, kind)) for n, kind in NUMBERS.items()}
    columns["width"] = one_piece(np.sqrt(area * aspect).astype(np.int32) + 1)
    columns["height"] = one_piece(np.sqrt(area / aspect).astype(np.int32) + 1)
    for name, (length, pieces) in texts.items():
        columns[f"{name}.ends"] = one_piece(np.arange(1, count + 1) * length)
        columns[f"{name}.bytes"] = np.dtype(np.uint8), (count * length,), pieces
    columns["tag.ends"] = one_piece(np.arange(1, count + 1) * TAGS_PER_IMAGE)
    columns["tag.ids"] = np.dtype(np.int32), (count * TAGS_PER_IMAGE,), tags()
    columns["tag_class"] = one_piece((np.arange(distinct) % 4).astype(np.int16))
    short = {
        "tag_name": [f"tag {number}" for number in range(distinct)],
        "bad_path": [],
        "bad_reason": [],
        "bad_kind": [],
    }
    for name, found in short.items():
        columns |= {column: one_piece(array) for column, array in packed_strings(name, found).items()}
    classes = ["general", "artist", "character", "meta"]
    write_table(path, columns, {"containers": [[FILES, "/images", "", -1]], "classes": classes})


def one_piece(array: np.ndarray) -> Shaped:
    """A column that is in memory whole."""
    return array.dtype, array.shape, [array]


MEASURED = """
import gc, json, os, sys, time
import numpy as np
from refimpl.data.buckets import PRESETS, assign_and_prune
from refimpl.data.index.data_set import read_index
from refimpl.data.plan import plan_epoch
from refimpl.data.tags import TagCounts, count_tags, dataset_weights

def resident():
    wanted = ("Rss:", "Private_Dirty:", "Anonymous:")
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return {line.split()[0][:-1]: 1024 * int(line.split()[1]) for line in lines if line.startswith(wanted)}

before, times = resident(), {}
def timed(name, call):
    start = time.process_time()
    result = call()
    times[name] = time.process_time() - start
    return result

index = timed("open", lambda: read_index(sys.argv[1]))
buckets = PRESETS["novelai_v3"]
assigned = timed("assign", lambda: assign_and_prune(index.widths, index.heights, buckets, "log", 1.5))
kept = np.flatnonzero(~assigned.pruned)
index, bucket_of = timed("take", lambda: index.take(kept)), assigned.index[kept]
counts = timed("count tags", lambda: count_tags(index.tags, TagCounts()))
weights = timed("weigh", lambda: dataset_weights(index.tags, counts)).astype(np.float32)
del assigned, kept
rows = np.random.default_rng(0).integers(0, len(index), 10_000)
timed("10,000 rows", lambda: [(index.ids[row], index.paths[row], index.captions[row]) for row in rows.tolist()])
plan = timed("plan", lambda: plan_epoch(bucket_of, 8, 0, 0))
del plan
gc.collect()
after = resident()
mean = float(weights.mean(dtype=np.float64))
found = {"images": len(index), "processor_seconds": times, "before": before, "after": after, "weight_mean": mean}
print(json.dumps(found))
"""


def costs(count: int, folder: Path) -> dict[str, Any]:
    """Processor time and memory of what training does with an index before its first step, in its own process."""
    path = folder / f"{count}.index"
    synthetic_index(path, count)
    words = [sys.executable, "-c", MEASURED, str(path)]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    size = path.stat().st_size
    path.unlink()
    assert abs(found["weight_mean"] - 1) < 1e-3
    kept = {name: found["after"][name] - found["before"][name] for name in found["before"]}
    seconds = {name: value for name, value in found["processor_seconds"].items() if name != "10,000 rows"}
    row = {
        "images": found["images"],
        "file_bytes_per_image": size / count,
        "resident_bytes_per_image": kept["Rss"] / count,
        "of_these_not_in_the_file": kept["Anonymous"] / count,
        "microseconds_per_image": {name: 1e6 * value / count for name, value in seconds.items()},
        "microseconds_per_image_together": 1e6 * sum(seconds.values()) / count,
        "microseconds_per_row_read": 1e6 * found["processor_seconds"]["10,000 rows"] / 10_000,
    }
    print(
        f"{count:>9,} images: {row['resident_bytes_per_image']:.0f} bytes resident per image, "
        f"{row['microseconds_per_image_together']:.2f} µs per image before the first step, "
        f"{row['microseconds_per_row_read']:.1f} µs per row read"
    )
    return row


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000, help="real files that are indexed")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="images of the largest synthetic index")
    arguments = parser.parse_args()
    read = headers(arguments.images)
    print(
        f"{read['images_per_second']:.0f} images per second, {read['images_per_processor_second']:.0f} per second of "
        f"processor time; with the index written {read['whole_command_images_per_processor_second']:.0f}"
    )
    with tempfile.TemporaryDirectory() as name:
        rows = [costs(count, Path(name)) for count in SIZES if count <= arguments.most]
    wanted = {"images_per_processor_second": LEAST_RATE, "resident_bytes_per_image": MOST_BYTES}
    path = write(
        "index",
        {"numpy": np.__version__, "cores": os.cpu_count(), "wanted": wanted, "headers": read, "curve": rows},
    )
    print(f"wrote {path}")
    missed = rows[-1]["resident_bytes_per_image"] > MOST_BYTES
    if read["images_per_processor_second"] < LEAST_RATE or missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
