"""The demo data set: photographs and drawn illustrations with tags, each image with a `.txt` sidecar."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from refimpl.data.demo.drawings import draw, kinds
from refimpl.data.demo.photographs import PHOTOGRAPHS, Licence, photograph_crops
from refimpl.errors import InputError
from refimpl.storage.atomic import renamed_folder
from refimpl.tables import parsed_json

DEMO_TAG_CLASSES = ("colour", "shape", "background", "style", "subject")
ILLUSTRATIONS = 360  # for training; every HELDOUT_EVERY-th of a kind is held out beside them
HELDOUT_EVERY = 7  # prime to the lengths of the lists that the drawings go through, so none is singled out
VERSION = 1  # of the images' content: a folder of another version is not reused
MANIFEST = "manifest.json"
TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class DemoManifest:
    """The contents of a demo data folder; saved as manifest.json beside the folders train/ and heldout/."""

    version: int
    seed: int
    illustrations: int
    counts: dict[str, dict[str, int]]  # train, heldout → photographs, illustrations
    licences: tuple[Licence, ...]  # of the photographs; the illustrations are drawn here
    files: dict[str, int]  # path below the folder → bytes


Item = tuple[str, str, str, Image.Image, str]  # split, kind, id, image, caption


def _items(seed: int, illustrations: int) -> Iterator[Item]:
    """Every image of the data set, in the order in which they are written."""
    for split in (TRAIN, HELDOUT):
        for name, image, caption in photograph_crops(split == HELDOUT, seed):
            yield split, "photographs", name, image, caption
    for kind, number in _drawings(illustrations):
        split = HELDOUT if _held_out(number) else TRAIN
        image, caption = draw(kind, number, seed)
        yield split, "illustrations", f"{kind}_{number:04d}", image, caption


def _held_out(number: int) -> bool:
    return number % HELDOUT_EVERY == HELDOUT_EVERY - 1


def _drawings(illustrations: int) -> list[tuple[str, int]]:
    """The shortest list of (kind, number) that leaves `illustrations` of them for training."""
    listed = kinds(illustrations * HELDOUT_EVERY // (HELDOUT_EVERY - 1) + HELDOUT_EVERY * HELDOUT_EVERY)
    training = 0
    for length, (_, number) in enumerate(listed):
        if training == illustrations:
            return listed[:length]
        training += not _held_out(number)
    raise AssertionError("the list above is long enough for any count")


def _write_item(folder: Path, item: Item) -> list[Path]:
    split, kind, name, image, caption = item
    if kind == "photographs":
        path = folder / split / f"{name}.jpg"
        image.save(path, quality=95, subsampling=0)
    else:
        path = folder / split / f"{name}.png"
        image.save(path)
    sidecar = path.with_suffix(".txt")
    sidecar.write_text(caption + "\n", encoding="utf-8")
    return [path, sidecar]


def _write_all(
    folder: Path, seed: int, illustrations: int, progress: Callable[[int, int], None] | None
) -> None:
    counts = {split: {"photographs": 0, "illustrations": 0} for split in (TRAIN, HELDOUT)}
    files: dict[str, int] = {}
    for split in (TRAIN, HELDOUT):
        (folder / split).mkdir()
    items = list(_items(seed, illustrations))
    for done, item in enumerate(items, start=1):
        for path in _write_item(folder, item):
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
        counts[item[0]][item[1]] += 1
        if progress is not None:
            progress(done, len(items))
    licences = tuple(photograph.licence for photograph in PHOTOGRAPHS)
    manifest = DemoManifest(VERSION, seed, illustrations, counts, licences, files)
    text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_demo_manifest(folder: str | os.PathLike[str]) -> DemoManifest:
    """The manifest of a demo data folder. Raises InputError when it is missing or can't be read."""
    path = Path(folder) / MANIFEST
    try:
        fields = parsed_json(path.read_text(encoding="utf-8"))
        fields["licences"] = tuple(Licence(**licence) for licence in fields["licences"])
        return DemoManifest(**fields)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the folder is not a complete demo data set") from None
    except (ValueError, KeyError, TypeError) as reason:
        raise InputError(
            f"{path} is not a demo manifest ({reason}); delete the folder and run again"
        ) from None


def _reuse(folder: Path, seed: int, illustrations: int) -> DemoManifest:
    """The manifest of an existing folder, checked. Raises InputError when it is not the requested data set."""
    manifest = read_demo_manifest(folder)
    held = (manifest.version, manifest.seed, manifest.illustrations)
    wanted = (VERSION, seed, illustrations)
    if held != wanted:
        raise InputError(
            f"{folder} holds demo images of (version, seed, illustrations) {held}, not {wanted}; "
            "delete it or name another folder"
        )
    for name, size in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path} is missing or changed; delete {folder} and run again")
    return manifest


def write_demo_images(
    folder: str | os.PathLike[str],
    seed: int = 0,
    illustrations: int = ILLUSTRATIONS,
    progress: Callable[[int, int], None] | None = None,
) -> DemoManifest:
    """Write the demo data set into folder/train and folder/heldout, or reuse it if it is already there.

    It has 78 training and 26 held-out photograph crops from disjoint parts of 13 photographs, and `illustrations`
    training and about a sixth as many held-out drawings. Captions are tags, written `class:name` with the classes
    of DEMO_TAG_CLASSES. `progress(done, total)` is called after each image.
    The folder appears whole or not at all: it is filled under a temporary name beside its final one.
    Raises InputError when the folder holds anything else, or a package with the photographs is missing.
    """
    folder = Path(folder)
    if illustrations < 1:
        raise InputError(f"illustrations is {illustrations}; give at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the demo images")
    if folder.is_dir() and any(folder.iterdir()):
        return _reuse(folder, seed, illustrations)
    try:
        with renamed_folder(folder) as partial:
            _write_all(partial, seed, illustrations, progress)
    except InputError:
        if folder.is_dir() and any(folder.iterdir()):  # another process was first
            return _reuse(folder, seed, illustrations)
        raise
    return read_demo_manifest(folder)
