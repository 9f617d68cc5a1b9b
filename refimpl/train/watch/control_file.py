"""A run folder's control.json: what someone asks of a run that trains, once each; not from a paper.

    {"actions": ["sample", "checkpoint", "stop"]}

Whoever asks writes it whole (`ask`, or by hand); the run takes it away, and then reads it (`taken`). No torch is
loaded here.
"""

import contextlib
import json
import os
import stat
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
    """The actions asked for since the last call, whose file is deleted; one os.stat where nobody asked.

    The file gets a name of this process's own first: what is asked for after that is in a new file, for the next
    call.
    """
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except OSError:
        return frozenset()
    mine = path.with_name(f".{path.name}.writing-taken-{os.getpid()}")  # which `remove_unfinished` deletes
    try:
        if stat.S_ISDIR(mode):
            return frozenset()
        os.rename(path, mine)
    except OSError:  # it would ask again at every step
        return frozenset()
    actions = asked_actions(mine)
    with contextlib.suppress(OSError):
        os.unlink(mine)
    return frozenset(actions)
