"""How a command ends, for tests that run it in this process."""

from collections.abc import Callable, Sequence

import pytest

from refimpl.commands.terminal import run_command


def ending(
    command: Callable[[list[str]], None], arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command with these arguments."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command(list(arguments)))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
