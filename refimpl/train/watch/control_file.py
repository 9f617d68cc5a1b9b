"""A run folder's control.json: what someone asks of a run that trains, once each; not from a paper.

    {"actions": ["sample", "checkpoint", "stop"]}

Whoever asks writes it whole (`ask`, or by hand); the run takes it by deleting it (`taken`). No torch is loaded here.
"""

import contextlib
import json
import os
from pathlib import Path

from refimpl.storage.atomic import replace_text
from refimpl.tables import parsed_json

CONTROL = "control.json"
SAMPLE, CHECKPOINT, STOP = ACTIONS = ("sample", "checkpoint", "stop")
MOST_BYTES = 4096


def ask(path: Path, action: str) -> list[str]:
    """Adds an action to those that a run has not taken yet, and returns all of them.

    Raises InputError when the disk refuses the write.
    """
    actions = [*asked_actions(path), action]
    wanted = [name for name in ACTIONS if name in actions]
    replace_text(path, json.dumps({"actions": wanted}) + "\n")
    return wanted


def asked_actions(path: Path) -> list[str]:
    """The actions that a control file names, in the order of ACTIONS; none where it is no such file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if path.is_symlink() or not path.is_file():
            return []
        with path.open("rb") as file:
            named = parsed_json(file.read(MOST_BYTES))["actions"]
        return [name for name in ACTIONS if name in named]
    return []


def taken(path: Path) -> frozenset[str]:
    """The actions asked for since the last call, whose file is deleted; one os.stat where nobody asked."""
    try:
        os.stat(path, follow_symlinks=False)
    except OSError:
        return frozenset()
    actions = asked_actions(path)
    try:
        os.unlink(path)
    except OSError:  # it would ask again at every step
        return frozenset()
    return frozenset(actions)
