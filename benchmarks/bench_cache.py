"""Random reads of cached latents, against one .npz file per image.

python -m benchmarks.bench_cache [--rounds N] [--images N]        writes results/cache.json
Exits with 1 when a read is not 10 times as fast, both from warm storage, in one run and in one dtype.

The peer is what kohya's trainers keep beside every image: `np.savez` of latents, original_size and crop_ltrb. Both
sides end with a batch of latents and its conditioning integers in memory of their own, as training uses them.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import interleaved, summary, write
from refimpl.cache.files import write_manifest, write_shard
from refimpl.cache.latents import CachedLatents, open_latents, read_batches
from refimpl.data.index.data_set import Index
from refimpl.run.visit_draws import CentreDraws
from refimpl.storage.shards import shard_bytes
from refimpl.storage.store import open_store

BUCKET = 1024, 1024
SHAPE = 4, 128, 128
PER_SHARD = 128
BATCH = 16
GOAL = 10.0  # times as fast
ENTRIES = 6_000_000
ENCODING = {"kind": "latents"}


def write_both(folder: Path, images: int) -> Tensor:
    """A cache and the .npz files of the same random latents [N, 4, 128, 128] float32, which are returned."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(images, *SHAPE, generator=generator)
    columns = {
        "sample_ids": torch.arange(images),
        "contents": torch.zeros(images, 2, dtype=torch.int64),
        "stamps": torch.zeros(images, 2, dtype=torch.int64),
        "entries": torch.zeros(images, 2, dtype=torch.int64),
        "size_ints": torch.tensor([1500, 1400, 7, 9, 1024, 1024], dtype=torch.int32).repeat(images, 1),
        "latents": latents,
    }
    (folder / "latents").mkdir()
    (folder / "npz").mkdir()
    for number, first in enumerate(range(0, images, PER_SHARD)):
        part = {name: column[first : first + PER_SHARD] for name, column in columns.items()}
        write_shard(
            folder / "latents", "latents", "1024x1024", ENCODING, part, bytes([number % 256]) * number
        )
    shards = sorted((folder / "latents").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    write_lookup(folder / "latents", images, [path.name for path in shards])
    for number in range(images):
        crop = np.array([9, 7, 9 + 1024, 7 + 1024])
        np.savez(
            folder / "npz" / f"{number}.npz",
            latents=latents[number].numpy(),
            original_size=np.array([1400, 1500]),
            crop_ltrb=crop,
        )
    return latents


def write_lookup(folder: Path, images: int, names: list[str]) -> None:
    """Lookup and manifest of images that lie in their order in the shards."""
    from refimpl.storage.shards import map_shard

    rows = np.arange(images)
    lookup = {
        "sample_ids": rows,
        "contents": np.zeros((images, 2), np.int64),
        "stamps": np.zeros((images, 2), np.int64),
        "shards": (rows // PER_SHARD).astype(np.int32)[:, None],
        "rows": (rows % PER_SHARD).astype(np.int32)[:, None],
    }
    details = {"crops": 1, "flips": False, "buckets": [[*BUCKET, 0, images]], "quarantined": []}
    write_manifest(folder, ENCODING, [map_shard(folder / name) for name in names], lookup, details)


def readers(folder: Path, images: int) -> dict[str, Callable[[np.ndarray], tuple[Tensor, Tensor]]]:
    """Functions from BATCH rows to latents [B, 4, 128, 128] and six integers [B, 6]."""
    cached = CachedLatents(open_latents(folder), np.arange(images), [BUCKET], np.zeros(images, np.int64))
    index = Index(
        ids=[str(number) for number in range(images)],
        paths=[],
        widths=np.full(images, 1400),
        heights=np.full(images, 1500),
        captions=[],
        tags=[],
    )

    def from_cache(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        (batch,) = read_batches(cached, index, [(BUCKET, rows)], 0, CentreDraws(), lambda *_: iter(()))
        return batch.latents, batch.size_ints  # pyright: ignore[reportAttributeAccessIssue]

    def from_npz(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        latents, size_ints = [], []
        for row in rows.tolist():
            with np.load(folder / "npz" / f"{row}.npz") as file:
                latents.append(torch.from_numpy(file["latents"]))
                width, height = file["original_size"].tolist()
                left, top, right, bottom = file["crop_ltrb"].tolist()
            size_ints.append([height, width, top, left, bottom - top, right - left])
        return torch.stack(latents), torch.tensor(size_ints)

    return {"cache": from_cache, "npz": from_npz}


def measure(folder: Path, images: int, rounds: int) -> dict[str, object]:
    """Latency per image of both, in batches of random rows."""
    latents = write_both(folder, images)
    functions = readers(folder, images)
    everything = np.random.default_rng(0).permutation(images)
    for first in range(0, images, BATCH):  # the same bits, and all of it in the page cache
        rows = everything[first : first + BATCH]
        (ours, ints), (theirs, their_ints) = (function(rows) for function in functions.values())
        assert torch.equal(ours, latents[rows])
        assert torch.equal(ours, theirs)
        assert torch.equal(ints, their_ints)
    draw = np.random.default_rng(1)
    seconds = interleaved(
        {
            name: lambda function=function: function(draw.integers(0, images, BATCH))
            for name, function in functions.items()
        },
        rounds,
        warmup=10,
    )
    per_image = {name: [value / BATCH for value in times] for name, times in seconds.items()}
    return {name: summary(times) | {"least_ms": 1e3 * min(times)} for name, times in per_image.items()}


def memory_of(folder: Path, entries: int) -> dict[str, float]:
    """Bytes per entry that an open cache of that many images holds, measured in a process of its own."""
    (folder / "latents").mkdir(parents=True)
    name = "latents-1024x1024-0.safetensors"
    (folder / "latents" / name).write_bytes(shard_bytes({"latents": torch.zeros(1, *SHAPE)}, {}))
    write_lookup(folder / "latents", entries, [name])
    command = [sys.executable, "-m", "benchmarks.bench_cache", "--memory", str(folder)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {"own": float(answer[0]) / entries, "mapped": float(answer[1]) / entries}


def print_memory(folder: Path) -> None:
    """Prints by how much opening a cache, and looking every row up, raises this process's own and mapped memory."""

    def resident(kind: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(kind)))

    before = resident("RssAnon"), resident("RssFile")
    store = open_store(folder / "latents")
    rows = np.searchsorted(store.lookup["sample_ids"], store.lookup["sample_ids"])
    assert all(int(column.sum()) >= 0 for column in store.lookup.values())
    print(resident("RssAnon") - before[0], resident("RssFile") - before[1], len(rows))


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200, help="timed batches of each reader")
    parser.add_argument("--images", type=int, default=1024, help="images on disk")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_memory(arguments.memory)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), arguments.images, arguments.rounds)
        memory = memory_of(Path(folder) / "many", ENTRIES)
    medians = {name: row[name]["median_ms"] for name in ("cache", "npz")}  # pyright: ignore[reportIndexIssue]
    ratio = medians["npz"] / medians["cache"]
    settings = {"images": arguments.images, "shape": SHAPE, "dtype": "float32", "batch": BATCH}
    result = {"numpy": np.__version__, **settings, "rounds": arguments.rounds, "per image": row}
    result |= {"npz over cache": ratio, "bytes resident per entry": {"entries": ENTRIES, **memory}}
    path = write("cache", result)
    print(
        f"cache {1e3 * medians['cache']:.0f} µs, npz {1e3 * medians['npz']:.0f} µs an image: {ratio:.1f} times"
    )
    print(
        f"{ENTRIES:,} entries: {memory['own']:.1f} own bytes each, {memory['mapped']:.1f} mapped; wrote {path}"
    )
    if ratio < GOAL:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
