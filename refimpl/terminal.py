"""How every command ends: 0, or one message on stderr and 2 for bad input."""

import sys
from collections.abc import Callable
from typing import NoReturn

from refimpl.errors import InputError


def run_command(command: Callable[[], None]) -> NoReturn:
    """Runs a command and exits: 0, 2 with the message of an InputError, or 130 when interrupted."""
    try:
        command()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")  # in one piece: other ranks may write to the same terminal
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
