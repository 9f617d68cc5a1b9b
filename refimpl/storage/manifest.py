"""A committed folder's manifest.json: the SHA-256 and the size of every other file, and how they are checked.

The manifest ends with a digest of itself, so that a changed bit in it is not taken for another format. Manifests of
earlier versions have none.
"""

import errno
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

from refimpl.errors import InputError
from refimpl.storage.ranks.peers import ALONE, Peers
from refimpl.storage.ranks.sharded_state import SHARD
from refimpl.tables import parsed_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
Entries = dict[str, dict[str, Any]]
"""File name → {sha256, size}."""


class Damaged(InputError):
    """A committed folder is not as it was committed: a file is missing, changed, or from another save."""


def fingerprint(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size": path.stat().st_size}


def manifest_text(entries: Mapping[str, Any]) -> str:
    """The manifest of these files."""
    body = {"format": FORMAT_VERSION, "files": dict(entries)}
    return _dumped(body | {"manifest_sha256": _digest(body)})


def read_manifest(folder: Path) -> Entries:
    """The files of a committed folder.

    Raises Damaged when `folder` has no whole manifest, InputError for one of a newer format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise Damaged(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = parsed_json(path.read_text(encoding="utf-8"))
        version, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is not a checkpoint manifest") from error
    body = {"format": version, "files": files}
    if manifest not in (body, body | {"manifest_sha256": _digest(body)}):
        raise Damaged(
            f"{path} is not a checkpoint manifest: it is damaged; copy it again or use another step"
        )
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format {version!r}; this version reads format {FORMAT_VERSION}")
    if not isinstance(files, dict):
        raise Damaged(f"{path} is not a checkpoint manifest: its files are {files!r:.200}")
    for name in files:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise Damaged(f"{path} is not a checkpoint manifest: it lists {name!r:.200}, outside of {folder}")
    return files


def verify(folder: Path, names: Collection[str] | None = None, peers: Peers = ALONE) -> None:
    """Checks the files of a committed folder against its manifest; the ranks divide them, and agree on the result.

    names  of the files to check, as the manifest has them; None for all
    Raises Damaged, naming the first file that is missing, differs, or is a shard that the manifest does not list, and
    InputError for a newer format.
    """
    folder = Path(folder)
    entries = peers.on_first(lambda: _listed(folder))
    wanted = {name: entry for name, entry in entries.items() if names is None or name in names}
    mine = _shares(wanted, peers.size)[peers.rank]
    peers.together(lambda: [_check_file(folder, name, entries[name]) for name in mine])


def _listed(folder: Path) -> Entries:
    """The manifest's files, once it is clear that there are no shards beside them."""
    entries = read_manifest(folder)
    for path in sorted(folder.glob("*/*")):
        name = str(path.relative_to(folder))
        if SHARD.fullmatch(path.name) and name not in entries:
            raise Damaged(
                f"{folder} holds {name}, which its manifest does not list: it mixes two saves; copy it again or use "
                "another step"
            )
    return entries


def _shares(entries: Mapping[str, Mapping[str, Any]], ranks: int) -> list[list[str]]:
    """The files in shares of about equal size: the largest left goes to whoever has least."""
    shares: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(entries, key=lambda name: (-_size(entries[name]), name)):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += _size(entries[name])
    return shares


def _size(entry: Any) -> int:
    """The size that a manifest gives a file; of a malformed entry 0, which then differs from every file."""
    size = entry.get("size") if isinstance(entry, dict) else None
    return size if type(size) is int else 0


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = folder / name
    if not path.is_file():
        raise Damaged(f"{folder} lacks {name}, which its manifest lists; copy it again or use another step")
    try:
        found = fingerprint(path)
    except OSError as error:
        if error.errno != errno.EIO:  # what this user may not read, for one, is not damaged
            raise
        raise Damaged(
            f"{path} cannot be read: {error.strerror}; copy it again or use another step"
        ) from error
    if found != entry:
        raise Damaged(f"{path} differs from its manifest: it is damaged; copy it again or use another step")


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dumped(body).encode()).hexdigest()


def _dumped(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
