"""What a path of the settings leads to, by names and first bytes: enough to tell a wrong one before anything is read.

Nothing is imported that takes long; the readers check the rest.
"""

import contextlib
import os
from pathlib import Path

from refimpl.file_kinds import PEEK, kind_of
from refimpl.names import near_path

# Of images that can be read, and of a list of them; their owners are in folders that load numpy.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
)  # fmt: skip
METADATA = "metadata.jsonl"
CACHE = ("latents", "cache.json")  # the manifest of the latents in a folder that `refimpl cache` has written
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
TOKENIZER_FOLDERS = (".", "tokenizer", "tokenizer_2")
MOST_NAMES = 100_000  # in a folder, after which images are taken to follow
LENGTH = 8  # bytes that say how long the table of a .safetensors file is, which begins after them


def wrong_kind(path: str) -> str:
    """What a file is that was to hold weights, and what to do about it; empty for .safetensors, or a folder."""
    begin = _begin(path)
    if begin is None or begin[LENGTH : LENGTH + 1] == b"{":
        return ""
    kind = kind_of(begin)
    if kind is None:
        return ""
    advice = kind.advice or kind.as_weights
    return f"is {kind.what}, not a .safetensors file{f'; {advice}' if advice else ''}"


def absent(path: str) -> str:
    """Why a file or folder can't be read, so far as its path tells; empty where it can."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a null character
        return f"does not exist{near_path(path)}"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return "" if os.access(path, os.R_OK) else "can't be read: change its permissions"


def not_json(path: str) -> str:
    """What a file is that was to be JSON; empty for what may be JSON."""
    begin = _begin(path)
    kind = None if begin is None else kind_of(begin)
    return "" if kind is None or kind.what.startswith(("a JSON", "a text")) else f"is {kind.what}, not JSON"


def holds_images(folder: str) -> bool:
    """Whether images, or a list of images, are in a folder or below it; True where there is too much to see."""
    seen = 0
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(_is_image(name) for name in names) or (METADATA in names and _depth(here, folder) <= 1):
            return True
        seen += len(names)
        if seen > MOST_NAMES:
            return True
    return False


def shards_in(folder: str) -> list[str]:
    """Archives and tables in a folder, each of which may be a data set, as the folder is not."""
    return sorted(name for name in os.listdir(folder) if name.endswith((".tar", ".parquet")))


def is_cache(folder: str) -> bool:
    """Whether `refimpl cache` has finished a cache there."""
    return os.path.isfile(os.path.join(folder, *CACHE))


def has_tokenizer(folder: str) -> bool:
    """Whether a tokenizer is in a folder, or in its tokenizer/ or tokenizer_2/."""
    places = (os.path.join(folder, name) for name in TOKENIZER_FOLDERS)
    return any(os.path.isfile(os.path.join(place, name)) for place in places for name in TOKENIZER_FILES)


def cannot_make(folder: Path) -> str:
    """Why a folder that is not there could not be made, by the system's word on one beside it; empty if it could."""
    above = folder.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    trial = (
        above / f".refimpl-trying-{os.getpid()}"
    )  # under a name of its own: other runs may begin beside it
    try:
        trial.mkdir()
    except OSError as error:
        return error.strerror or str(error)
    with contextlib.suppress(OSError):
        trial.rmdir()
    return ""


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _depth(here: str, root: str) -> int:
    inner = os.path.relpath(here, root)
    return 0 if inner == "." else inner.count(os.sep) + 1


def _begin(path: str) -> bytes | None:
    """The first bytes of a file; None for anything else, and for what can't be read."""
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            return file.read(PEEK)
    except OSError:
        return None
