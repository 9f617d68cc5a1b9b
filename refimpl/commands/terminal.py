"""How every command ends: 0, or one message on stderr and 2 for bad input."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from refimpl.errors import OUT_OF_MEMORY, InputError
from refimpl.run.threads import prepare_environment

BROKEN_PIPE = 141  # exit status of programs that a closed pipe ends: 128 + SIGPIPE

# The disk is full, the quota is used up, or the file system or the folder refuses writes.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def run_command(command: Callable[[], None]) -> NoReturn:
    """Runs a command and exits: 0, 2 for an InputError or too little memory or disk, 130 when interrupted."""
    prepare_environment()  # before the command imports torch
    try:
        command()
        sys.stdout.flush()
    except InputError as error:
        _say(str(error))
        _fail()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that flushing at exit says nothing
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        _say(
            f"could not write {error.filename or 'a file'}: {error.strerror}; free space or choose another folder"
        )
        _fail()
    except (MemoryError, RuntimeError) as error:
        reason = (str(error) or "out of memory").splitlines()[0]
        if not isinstance(error, MemoryError) and not any(sign in reason for sign in OUT_OF_MEMORY):
            raise
        _say(f"not enough memory for this; lower the batch, the images' size or the network's ({reason})")
        _fail()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _fail() -> NoReturn:
    """Exits with 2, immediately if this process is one of several (torchrun).

    Shutting down torch's process group and its threads can wait for the other ranks while they wait for this one.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)
    sys.exit(2)


def _say(message: str) -> None:
    """Prints a line of its own above any remaining progress bar, in one write: other ranks may share the terminal."""
    line = f"error: {message}\n"
    if "tqdm" not in sys.modules:  # nobody can have drawn a bar
        sys.stderr.write(line)
        return
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr, end="")
