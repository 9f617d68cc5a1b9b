"""`refimpl data index`: any layout of images to one index file, in parallel and resumable after a kill."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from refimpl.checks import check_at_least, check_fraction
from refimpl.commands.terminal import parsed
from refimpl.data.captions import DEFAULT_TAG_CLASSES
from refimpl.data.config import MAX_BAD_SHARE, MAX_PIXELS
from refimpl.errors import InputError
from refimpl.run.threads import usable_cpus

if TYPE_CHECKING:
    from refimpl.data.index.index_file import Table
    from refimpl.data.index.record import IndexOptions


@dataclass(frozen=True)
class TagArguments:
    """How captions and records become tags."""

    classes: tuple[str, ...] = DEFAULT_TAG_CLASSES
    """Classes that a tag may name as its prefix, as in `character:alice`."""
    table: Path | None = None
    """Table from tag to class, as JSON or as CSV with the columns name and category (a name, or Danbooru's
    number)."""
    underscores_to_spaces: bool = False
    """Write long_hair as `long hair`; ^_^ stays as it is."""
    rating: bool = False
    """Add a tag of class rating where a record has a rating."""
    quality: tuple[str, ...] = ()
    """Entries score:tag, highest score first: a record is given the tag of the first score that its own reaches, in
    class quality."""


@dataclass(frozen=True)
class IndexCommand:
    """Reads images' headers, captions and tags into one index file that training reads in place of the folder.

    A source is a folder of images with .txt or .caption sidecars or with metadata.jsonl, a .jsonl, kohya's
    metadata .json, a .parquet, or a .tar that is read in place. A killed run is resumed where it was.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders and files to read."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Index file to write."""
    processes: int = 0
    """Number of processes that read at once; 0 for one per CPU that this process may use."""
    replace: bool = False
    """Overwrite an existing index."""
    allow_missing: bool = False
    """Treat an image without a caption as one with an empty caption."""
    max_bad_share: float = MAX_BAD_SHARE
    """Largest share of the images that may be left out as unusable."""
    verify: bool = False
    """Decode every image in full, to find all damage now."""
    sha256: bool = False
    """Record the SHA-256 of every image's bytes."""
    max_pixels: int = MAX_PIXELS
    """Largest accepted image, in pixels (width · height)."""
    own_suffix: bool = False
    """Refuse files whose suffix is that of another format, such as a JPEG named .png, which are otherwise taken for
    what their bytes are."""
    allow_outside: bool = False
    """Also read images and captions outside their data set's folder, which metadata files and links may name."""
    tags: TagArguments = field(default_factory=TagArguments)
    """Captions and tags."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("no source; name a folder of images, or a .jsonl, .json, .parquet or .tar file")
        check_at_least("--processes", self.processes, 0)
        check_fraction("--max-bad-share", self.max_bad_share)

    def options(self) -> IndexOptions:
        """The options that the index is read with."""
        from refimpl.data.images.decode import Accepted
        from refimpl.data.index.record import IndexOptions
        from refimpl.data.tag_rules import TagRules, read_tag_table

        tags = self.tags
        rules = TagRules(
            tags.classes,
            read_tag_table(tags.table) if tags.table else {},
            tags.underscores_to_spaces,
            tags.rating,
            tuple(_bound(text) for text in tags.quality),
        )
        accepted = Accepted(max_pixels=self.max_pixels, own_suffix=self.own_suffix)
        return IndexOptions(rules, accepted, self.verify, self.sha256, self.allow_outside)


def _bound(text: str) -> tuple[float, str]:
    score, colon, tag = text.partition(":")
    try:
        if colon and tag.strip():
            return float(score), tag.strip()
    except ValueError:
        pass
    raise InputError(f"--tags.quality {text!r}: give score:tag, as 150:masterpiece")


def index_command(arguments: list[str], program: str = "refimpl data index") -> None:
    """Writes the index and says what is in it."""
    command = parsed(IndexCommand, arguments, program)
    if command.out.exists() and not command.replace:
        raise InputError(f"{command.out} exists; choose another name, or write over it with --replace")
    from refimpl.data.index.data_set import index_of
    from refimpl.data.index.parallel_read import LISTED

    table = build(command.sources, command.out, command.options(), command.processes or usable_cpus(),
                  command.allow_missing, command.max_bad_share)  # fmt: skip
    bad = index_of(table).quarantined
    size = command.out.stat().st_size
    print(f"{len(table)} images in {command.out} ({size / 2**20:.1f} MiB); {len(bad)} left out")
    for problem in bad[:LISTED]:
        print(f"  left out: {problem}")
    print(f"look at it: refimpl data check {command.out}")


def build(
    sources: tuple[str, ...],
    out: Path,
    options: IndexOptions,
    processes: int,
    allow_missing: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    show: bool = True,
) -> Table:
    """Indexes data sets into one file, which appears whole or not at all; returns its table.

    What has been read is kept beside the file until it is written, so that a killed run continues where it was.
    Raises InputError for the problems that `gather` and `refuse` name.
    """
    from refimpl.data.index.index_file import read_table, write_table
    from refimpl.data.index.merge import merged
    from refimpl.data.index.parallel_read import gather, refuse

    parts_folder = out.with_name(f".{out.name}.parts")
    where = tuple(os.path.abspath(source) for source in sources)
    facts = {"sources": list(where), "tag_classes": list(options.rules.classes)}
    with _alone_in(parts_folder, out), _removed_if_unread(parts_folder):
        parts = gather(where, options, parts_folder, processes, show)
        found = merged(parts)
        refuse(sources, parts, found.duplicates, max_bad_share, allow_missing)
        write_table(out, found.columns, {**found.facts, **facts})
        shutil.rmtree(parts_folder, ignore_errors=True)
    return read_table(out, allow_outside=options.allow_outside)


@contextmanager
def _alone_in(folder: Path, out: Path) -> Iterator[None]:
    """Holds the lock of the folder, which is made where it is absent."""
    from refimpl.storage.ranks.lock import HeldElsewhere, locked, unlocked

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = locked(folder / "lock", f"indexing into {out} too")
    except HeldElsewhere:
        raise InputError(
            f"another process is indexing into {out}; wait for it, or choose another name"
        ) from None
    except OSError as error:
        raise InputError(
            f"could not write {folder}: {error.strerror}; choose another place for {out}"
        ) from error
    try:
        yield
    finally:
        unlocked(lock)


@contextmanager
def _removed_if_unread(folder: Path) -> Iterator[None]:
    """What ends before a first piece is read leaves no folder behind, only its lock being in it."""
    try:
        yield
    except BaseException:
        if [path.name for path in folder.glob("*")] == ["lock"]:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def looked_at(source: str, options: IndexOptions, processes: int) -> Iterator[Table]:
    """The table of an index, or of any data set whatever its problems: for inspection, not for training.

    Raises InputError for the problems that `read_table` and `gather` name.
    """
    from refimpl.data.index.index_file import is_index, read_table, write_table
    from refimpl.data.index.merge import merged
    from refimpl.data.index.parallel_read import gather

    if is_index(source):
        yield read_table(source, allow_outside=options.allow_outside)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = merged(gather((source,), options, Path(folder), processes))
        path = Path(folder) / "index"
        write_table(path, found.columns, found.facts)
        yield read_table(path, allow_outside=options.allow_outside)
