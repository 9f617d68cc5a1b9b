"""The run folders below a folder, and the small files in them."""

import contextlib
import hashlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.train.metrics.own_files import opened_regular

CONFIG, METRICS, LOCK = "config.json", "metrics.jsonl", ".lock"
MOST_RUNS = 2000  # folders looked for
MOST_BYTES = 2**22  # of a small file


@dataclass(frozen=True)
class Run:
    """A run folder.

    id    made from its name; the only thing that a request can name it by
    name  path below the folder of runs
    """

    id: str
    name: str
    path: Path


def find_runs(root: Path) -> list[Run]:
    """The run folders: `root` itself, its folders and theirs. Links are not followed.

    Raises OSError when there is no such folder or it can't be read.
    """
    if _is_run(root):
        return [_run(root, root)]
    runs: list[Run] = []
    for folder in _folders(root):
        inner = [folder] if _is_run(folder) else [path for path in _folders_or_none(folder) if _is_run(path)]
        runs += [_run(root, path) for path in inner]
        if len(runs) >= MOST_RUNS:
            break
    return runs[:MOST_RUNS]


def _run(root: Path, path: Path) -> Run:
    name = path.name if path == root else str(path.relative_to(root))
    shown = name.encode("utf-8", "surrogateescape")
    return Run(hashlib.sha256(shown).hexdigest()[:12], shown.decode("utf-8", "replace"), path)


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() or (path / METRICS).is_file()


def _folders(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        names = [
            entry.name for entry in entries if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
        ]
    return [path / name for name in sorted(names)]


def _folders_or_none(path: Path) -> list[Path]:
    try:
        return _folders(path)
    except OSError:  # gone since, or not ours to read
        return []


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object in a file, and what is wrong with it in a line: one of the two is empty."""
    try:
        with opened_regular(path) as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it is longer than {MOST_BYTES} bytes")
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return {}, f"{path.name} can't be read ({reason})"
    return found, ""


def is_training(run: Path) -> bool:
    """Whether a process of this machine trains in a folder, by the name that it has left in the folder's lock.

    The lock itself is not tried: a run that begins just then would find it taken.
    """
    owner, problem = read_json(run / LOCK)
    pid = owner.get("pid")
    if problem or type(pid) is not int or pid < 1 or owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except OverflowError:
        return False
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def plain_file(run: Path, *names: str) -> Path | None:
    """A regular file of a run by the names that lead to it, or None: no link, nothing else that they may lead to."""
    path = run.joinpath(*names)
    with contextlib.suppress(OSError, ValueError):
        inside = [path, *path.parents][: len(names)]
        if path.relative_to(run).parts == names and path.is_file() and not any(map(Path.is_symlink, inside)):
            return path
    return None
