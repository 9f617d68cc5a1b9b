"""Image files and their sidecar captions as one table (N §3, §4.3)."""

import os
import stat
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.data.captions import DEFAULT_TAG_CLASSES, Tags, parse_caption
from refimpl.data.images import DEFAULT_ACCEPTED, FORMAT_OF, Accepted, BadImage, decode, read_size
from refimpl.errors import InputError

SIDECAR_SUFFIXES = (".txt", ".caption")  # the first that exists is read
MAX_BAD_SHARE = 0.01
LISTED = 5  # files named in a message before "and n more"
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, eq=False)
class Index:
    """A data set as a table; row i is one image.

    ids        path relative to the folder, POSIX, without suffix, in Unicode normal form C; sorted
    paths      of the image files
    widths, heights  [N] int64, pixels after EXIF rotation
    captions   tags joined by ", ", class prefixes removed
    tags       tags by class
    quarantined  the files left out, each with its reason
    """

    ids: list[str]
    paths: list[Path]
    widths: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    captions: list[str]
    tags: list[Tags]
    quarantined: list[BadImage] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> "Index":
        """The data set of these rows alone, in their order."""
        chosen = [int(row) for row in rows]
        return Index(
            ids=[self.ids[row] for row in chosen],
            paths=[self.paths[row] for row in chosen],
            widths=self.widths[chosen],
            heights=self.heights[chosen],
            captions=[self.captions[row] for row in chosen],
            tags=[self.tags[row] for row in chosen],
            quarantined=self.quarantined,
        )


def read_folder(
    folder: str | os.PathLike[str],
    tag_classes: Collection[str] = DEFAULT_TAG_CLASSES,
    allow_missing: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    accepted: Accepted = DEFAULT_ACCEPTED,
    verify: bool = False,
) -> Index:
    """Index a folder of images, each with its caption beside it: `name.jpg`, `name.txt` or `name.caption`.

    Folders inside it are read too; names that begin with a dot are not, and links to folders are not followed.
    Sizes come from the files' headers, so that damage further in is met only when an image is loaded.
    tag_classes    classes that a tag may name as its prefix (`character:alice`)
    allow_missing  take an image without a sidecar as one with an empty caption
    max_bad_share  largest share of files that may be set aside as unusable, by name and reason
    verify         decode every image in full, to find all damage now
    Raises InputError when there is no such folder, no image in it, no caption, a caption missing, an id that
    occurs twice, or too large a share of bad files.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; give one that holds images with .txt captions")
    found = sorted(_find(root))
    if not found:
        suffixes = " ".join(suffix for suffix in FORMAT_OF if FORMAT_OF[suffix] in accepted.formats)
        raise InputError(f"{root}: no image in it (looked for {suffixes}); links to folders are not followed")
    _check_distinct(found)
    _check_captions(root, found, allow_missing)
    rows, bad = [], []
    for entry in found:
        try:
            if not entry.id.isprintable():
                raise BadImage(entry.image, "the name is not UTF-8, or holds control characters; rename it")
            caption = _read_caption(entry.sidecar) if entry.sidecar else ""
            size = decode(entry.image, accepted=accepted).size if verify else read_size(entry.image, accepted)
            rows.append((entry, size, parse_caption(caption, tag_classes)))
        except BadImage as error:
            bad.append(error)
    if len(bad) > max_bad_share * len(found):
        raise InputError(
            f"{root}: {len(bad)} of {len(found)} images can't be used, more than {max_bad_share:.0%}; repair or "
            f"remove them:\n{_listed([str(error) for error in bad])}"
        )
    return Index(
        ids=[entry.id for entry, _, _ in rows],
        paths=[entry.image for entry, _, _ in rows],
        widths=np.array([width for _, (width, _), _ in rows], np.int64),
        heights=np.array([height for _, (_, height), _ in rows], np.int64),
        captions=[caption for _, _, (caption, _) in rows],
        tags=[tags for _, _, (_, tags) in rows],
        quarantined=bad,
    )


@dataclass(frozen=True, order=True)
class _Entry:
    id: str
    image: Path
    sidecar: Path | None = field(compare=False)


def _find(root: Path) -> Iterator[_Entry]:
    for directory, folders, names in os.walk(root, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(directory)
        by_stem: dict[str, dict[str, str]] = {}
        for name in sorted(names, reverse=True):
            stem, suffix = os.path.splitext(name)
            by_stem.setdefault(stem, {})[suffix.lower()] = name
        for name in names:
            stem, suffix = os.path.splitext(name)
            if name.startswith(".") or suffix.lower() not in FORMAT_OF:
                continue
            beside = by_stem[stem]
            sidecar = next((here / beside[suffix] for suffix in SIDECAR_SUFFIXES if suffix in beside), None)
            identifier = (here / stem).relative_to(root).as_posix()
            yield _Entry(unicodedata.normalize("NFC", identifier), here / name, sidecar)


def _unreadable(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: the folder can't be read ({error.strerror}); its images would be missed"
    )


def _check_distinct(found: Sequence[_Entry]) -> None:
    """Ids must differ in more than case, or a copy of the data set on another file system would lose images."""
    seen: dict[str, Path] = {}
    for entry in found:
        other = seen.setdefault(unicodedata.normalize("NFC", entry.id.casefold()), entry.image)
        if other != entry.image:
            raise InputError(
                f"two images have the id {entry.id!r}: {other} and {entry.image}; rename one of them"
            )


def _check_captions(root: Path, found: Sequence[_Entry], allow_missing: bool) -> None:
    without = [entry.image for entry in found if entry.sidecar is None]
    if not without or allow_missing:
        return
    sidecars = " or ".join(f"{found[0].image.stem}{suffix}" for suffix in SIDECAR_SUFFIXES)
    if len(without) == len(found):
        raise InputError(
            f"{root}: {len(found)} images but no captions; each needs a text file of its name beside it (for "
            f"{found[0].image.name}: {sidecars}) with its tags, separated by commas"
        )
    raise InputError(
        f"{root}: {len(without)} of {len(found)} images have no caption (a file of the same name ending in "
        f"{' or '.join(SIDECAR_SUFFIXES)}); add them; an empty file is an empty caption:\n{_listed(without)}"
    )


def _read_caption(path: Path) -> str:
    """Text of a sidecar, which must be UTF-8; errors give the place in bytes from the start of the file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its other end
            raise BadImage(path, "the caption is not a regular file; replace it by a text file")
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(path, f"the caption can't be read ({error.strerror})") from error
    start = len(BOM) if data.startswith(BOM) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        raise BadImage(
            path, f"not UTF-8 at byte {offset} (0x{data[offset]:02x}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise BadImage(path, f"a NUL at byte {data.index(0)}; the caption must be plain text")
    return text


def _listed(names: Sequence[object]) -> str:
    shown = [f"  {name}" for name in names[:LISTED]]
    return "\n".join(shown + ([f"  and {len(names) - LISTED} more"] if len(names) > LISTED else []))
