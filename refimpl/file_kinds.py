"""What a file is by its first bytes, whatever its name says: for messages about the wrong one.

The signatures are those of the formats' own documentation; https://en.wikipedia.org/wiki/List_of_file_signatures
collects them.
"""

import os
import re
from typing import NamedTuple

PEEK = 512  # bytes from a file's start that are enough to tell every kind below


class FileKind(NamedTuple):
    """What a file is, with its article; what to do about it; and what else, where weights were wanted."""

    what: str
    advice: str = ""
    as_weights: str = ""


_UNPACK = "unpack it first"
_EXPORT = "export it as JPEG or PNG"
_PICKLED = (
    "it can run code when it is read, so it is not opened. Convert it on a machine you can lose: torch.load(FILE, "
    "weights_only=True), then safetensors.torch.save_file of its state_dict"
)
_ZIP = FileKind("a zip archive", as_weights=f"torch.save writes .ckpt and .pt files so: {_PICKLED}")
_PICKLE = FileKind("a pickle", as_weights=_PICKLED)
_GGUF = FileKind(
    "a GGUF file",
    as_weights="its weights are quantised for inference only: use the .safetensors it was made from",
)

# Where a signature stands, the signature, and the kind.
SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"\xff\xd8\xff", FileKind("a JPEG image")),
    (0, b"\x89PNG\r\n\x1a\n", FileKind("a PNG image")),
    (8, b"WEBP", FileKind("a WebP image")),
    (0, b"GIF87a", FileKind("a GIF image")),
    (0, b"GIF89a", FileKind("a GIF image")),
    (0, b"II*\0", FileKind("a TIFF image")),
    (0, b"MM\0*", FileKind("a TIFF image")),
    (0, b"8BPS", FileKind("a Photoshop file", "export it as PNG")),
    (4, b"ftypavif", FileKind("an AVIF image")),
    (4, b"ftypavis", FileKind("an AVIF image")),
    (4, b"ftypheic", FileKind("a HEIC image", _EXPORT)),
    (4, b"ftypmif1", FileKind("a HEIF image", _EXPORT)),
    (0, b"\xff\x0a", FileKind("a JPEG XL image", _EXPORT)),
    (0, b"\0\0\0\x0cJXL ", FileKind("a JPEG XL image", _EXPORT)),
    (4, b"ftyp", FileKind("a video")),
    (0, b"\x1aE\xdf\xa3", FileKind("a video")),
    (0, b"%PDF-", FileKind("a PDF document")),
    (0, b"PK\x03\x04", _ZIP),
    *((0, bytes((0x80, protocol)), _PICKLE) for protocol in range(2, 6)),
    (0, b"GGUF", _GGUF),
    (0, b"version https://git-lfs", FileKind("a Git LFS pointer", "fetch the file itself with git lfs pull")),
    (0, b"PAR1", FileKind("a parquet table")),
    (0, b"ARROW1\0\0", FileKind("an Arrow file")),
    (0, b"\x93NUMPY", FileKind("a NumPy array")),
    (0, b"\x89HDF\r\n", FileKind("an HDF5 file, as Keras writes weights")),
    (0, b"SQLite format 3\0", FileKind("an SQLite database")),
    (0, b"\x1f\x8b", FileKind("a gzip archive", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", FileKind("a Zstandard archive", _UNPACK)),
    (0, b"\xfd7zXZ\0", FileKind("an xz archive", _UNPACK)),
    (0, b"BZh", FileKind("a bzip2 archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("a 7-Zip archive", _UNPACK)),
    (0, b"Rar!\x1a\x07", FileKind("a RAR archive", _UNPACK)),
    (257, b"ustar", FileKind("a tar archive", _UNPACK)),
    (
        0,
        b"\0\x05\x16\x07",
        FileKind("macOS's notes about a file (AppleDouble)", "name the file without the ._"),
    ),
)
TEXTS = ("an empty file", "a JSON file or other text", "a text file")
_BITMAP = re.compile(rb"BM....\0\0\0\0", re.DOTALL)
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffe]")


def kind_of(begin: bytes) -> FileKind | None:
    """What a file is, or None where its bytes do not say.

    begin  the file's first PEEK bytes, or all of them where there are fewer
    """
    for place, signature, kind in SIGNATURES:
        if begin.startswith(signature, place):
            return kind
    if _BITMAP.match(begin):
        return FileKind("a BMP image")
    if _WEB_PAGE.match(begin):
        return FileKind("a web page", "download the file itself, after logging in if need be")
    if not begin:
        return FileKind("an empty file")
    return _kind_of_text(begin)


def named_kind(path: str | os.PathLike[str], wanted: str, advice: str, is_text: bool = True) -> str | None:
    """What to say of a file that is not what was wanted, which is "PATH is a JPEG image, not a preset; ADVICE".

    advice   what to do, unless the kind says so itself
    is_text  whether what is wanted is text, so that a file of text is not told that it is one
    returns  None for a folder, for a file that can't be read, and where its first bytes do not say what it is
    """
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            kind = kind_of(file.read(PEEK))
    except (OSError, ValueError):
        return None
    if kind is None or (is_text and kind.what in TEXTS):
        return None
    return f"{os.fspath(path)} is {kind.what}, not {wanted}; {kind.advice or advice}"


def _kind_of_text(begin: bytes) -> FileKind | None:
    try:
        text = begin.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < PEEK - 3 or "unexpected end" not in error.reason:  # a letter cut in two at the end
            return None
        text = begin[: error.start].decode("utf-8-sig")
    if _CONTROL.search(text):
        return None
    text = text.lstrip()
    if text.startswith(("{", "[")):
        return FileKind("a JSON file or other text")
    if text.startswith("<svg") or (text.startswith("<?xml") and "<svg" in text):
        return FileKind("an SVG drawing", "export it as PNG")
    return FileKind("a text file")
