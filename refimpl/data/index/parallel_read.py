"""Parallel reading of a data set's pieces, each saved when finished, and the checks that a data set must pass."""

import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from refimpl.data.images.archives import ImageSource, Packed
from refimpl.data.images.decode import BadImage
from refimpl.data.index.builder import Gathered, source_name
from refimpl.data.index.columns import string_at, strings
from refimpl.data.index.index_file import Table, read_table, write_table
from refimpl.data.index.layouts import detect as layouts
from refimpl.data.index.record import IndexOptions, Item, cached_realpath, read_item
from refimpl.data.index.shard import Unit
from refimpl.errors import InputError
from refimpl.progress import Progress

LISTED = 5  # files named in a message before "and n more"
QUEUED = 4  # pieces handed to each process ahead, so that none waits and a kill loses little

_options = IndexOptions()  # of this worker process


def read_unit(unit: Unit, options: IndexOptions) -> Table:
    """Read every image of a piece; those that can't be used become the table's problems."""
    root = layouts.archive_root(unit)
    gathered, real = Gathered(root), cached_realpath()
    for item in layouts.items(unit):
        if isinstance(item, BadImage):
            gathered.refuse(item)
            continue
        try:
            gathered.add(read_item(root, item, options, real))
        except BadImage as error:
            gathered.refuse(error)
    return gathered.table({})


def gather(
    sources: Sequence[str], options: IndexOptions, parts: Path, processes: int, show: bool = True
) -> list[Table]:
    """Read data sets piece by piece into files in the folder `parts`; pieces already there and unchanged are reused.

    processes  number of processes that read at once; 1 uses this process alone
    show       show a progress bar with rate and time left
    returns    the pieces' tables in the order of the sources
    Raises InputError for a source that is not a data set, a full disk, and a worker process that died.
    """
    found = [unit for source in sources for unit in layouts.units(source, options)]
    settings = hashlib.blake2b(repr(options).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    jobs = [(unit, parts / f"{_key(unit, settings)}.part") for unit in found]
    with Progress(sum(unit.count for unit in found), "index", "images", is_shown=show) as progress:
        for unit, count in _read(jobs, options, processes):
            progress.total = max((progress.total or 0) + count - unit.count, progress.done + count)
            progress.update(count)
    return [read_table(path, mapped=False) for _, path in jobs]


def _key(unit: Unit, settings: bytes) -> str:
    digest = hashlib.blake2b(settings, digest_size=16)
    digest.update(repr(unit).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read(
    jobs: Sequence[tuple[Unit, Path]], options: IndexOptions, processes: int
) -> Iterator[tuple[Unit, int]]:
    if processes == 1 or len(jobs) < 2:
        for unit, path in jobs:
            yield unit, _read_part(unit, path, options)
        return
    waiting = iter(jobs)
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (options,)) as pool:
        running: dict[Future[int], tuple[Unit, Path]] = {}
        try:
            while True:
                for job in waiting:
                    running[pool.submit(_worker, *job)] = job
                    if len(running) >= QUEUED * processes:
                        break
                if not running:
                    return
                done = next(as_completed(running))
                count = done.result()
                yield running.pop(done)[0], count
        except BrokenProcessPool as error:
            where = "\n".join(sorted({f"  {unit.root}" for unit, _ in running.values()}))
            raise InputError(
                "a process that read images died, from lack of memory or from an image that crashes a decoder; "
                f"finished pieces are kept. Find the image with --processes 1; it is in:\n{where}"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(options: IndexOptions) -> None:
    global _options
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started this process ends it
    _options = options


def _worker(unit: Unit, path: Path) -> int:
    return _read_part(unit, path, _options)


def _read_part(unit: Unit, path: Path, options: IndexOptions) -> int:
    """Read a piece into its file, unless the file already holds it unchanged; returns its number of images."""
    signature = _signature(unit)
    if path.exists():
        try:
            kept = read_table(path, mapped=False)
        except InputError:  # written by another version, or damaged
            kept = None
        if kept is not None and kept.facts.get("signature") == signature:
            return len(kept) + len(kept.arrays["bad_path.ends"])
    table = read_unit(unit, options)
    columns = {name: (array.dtype, array.shape, [array]) for name, array in table.arrays.items()}
    write_table(path, columns, {**table.facts, "signature": signature})
    return len(table) + len(table.arrays["bad_path.ends"])


def _signature(unit: Unit) -> str:
    """Hash of everything that the piece's rows depend on: names, records, and the files' sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    if unit.layout in ("tar", "parquet"):
        digest.update(_stamp(unit.root))
    if unit.layout != "tar":
        root = layouts.archive_root(unit)
        for item in layouts.items(unit):
            digest.update(repr(item).encode("utf-8", "surrogatepass"))
            if isinstance(item, Item):
                digest.update(_stamp(source_name(root, item.source)))
                digest.update(_stamp(source_name(root, item.sidecar)) if item.sidecar else b"")
    return digest.hexdigest()


def _stamp(source: ImageSource) -> bytes:
    if isinstance(source, Packed):
        return b""  # the archive has been stamped
    try:
        found = os.stat(source)
        return b"%d %d;" % (found.st_size, found.st_mtime_ns)
    except (OSError, ValueError):
        return b"none;"


def refuse(
    sources: Sequence[str], parts: Sequence[Table], duplicates: Sequence[BadImage], max_bad_share: float,
    allow_missing: bool,
) -> None:  # fmt: skip
    """Raise InputError for duplicate ids, missing captions, no images, or too large a share of bad files."""
    where = ", ".join(sources[:LISTED])
    if duplicates:
        more = f"\n  and {len(duplicates) - 1} more such ids" if len(duplicates) > 1 else ""
        raise InputError(f"{duplicates[0].reason}{more}")
    images = sum(map(len, parts))
    if not allow_missing:
        _refuse_missing(where, parts, images)
    bad = sum(len(part.arrays["bad_path.ends"]) for part in parts)
    if bad > max_bad_share * (images + bad):
        listing = _first_problems(parts)
        raise InputError(
            f"{where}: {bad} of {images + bad} images can't be used, more than {max_bad_share:.0%}; repair or "
            f"remove them:\n{_listed(listing, bad)}"
        )
    if not images:
        raise InputError(f"{where}: no images in it")


def _refuse_missing(where: str, parts: Sequence[Table], images: int) -> None:
    missing, names = 0, []
    for part in parts:
        without = (part.arrays["captioned"] == 0).nonzero()[0].tolist()
        names += [string_at(part, "name", row) for row in without[: LISTED - len(names)]]
        missing += len(without)
    if not missing:
        return
    first = Path(names[0])
    if missing == images:
        raise InputError(
            f"{where}: {images} images but no captions; each needs a text file of the same name beside it (for "
            f"{first.name}: {first.stem}.txt or {first.stem}.caption) with its tags, separated by commas"
        )
    raise InputError(
        f"{where}: {missing} of {images} images have no caption (a file of the same name ending in .txt or .caption, "
        "or a record with a text or tags); add them (an empty file is an empty caption), or train those with "
        f"an empty one (data.allow_missing, --allow-missing of `refimpl data index`):\n{_listed(names, missing)}"
    )


def _first_problems(parts: Sequence[Table]) -> list[str]:
    found: list[str] = []
    for part in parts:
        pairs = zip(strings(part, "bad_path"), strings(part, "bad_reason"), strict=True)
        found += [str(BadImage(path, reason)) for path, reason in pairs]
        if len(found) >= LISTED:
            break
    return found[:LISTED]


def _listed(names: Sequence[str], count: int) -> str:
    shown = [f"  {name}" for name in names[:LISTED]]
    return "\n".join(shown + ([f"  and {count - LISTED} more"] if count > LISTED else []))
