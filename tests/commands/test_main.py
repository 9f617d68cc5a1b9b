"""`refimpl COMMAND`: every command exists, explains itself, and ends as commands do."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from refimpl.commands.main import COMMANDS, GROUPS, dispatch, usage
from refimpl.commands.terminal import run_command
from refimpl.errors import InputError, LostProcess
from tests.commands.endings import ending

NO_MEMORY = "error: not enough memory for this; lower the batch, the images' size or the network's "


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_usage_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = ending(dispatch, arguments, capsys)
    assert (code, error) == (0, "")
    for name, (_, _, what) in COMMANDS.items():
        assert any(line.split() == [name, *what.split()] for line in out.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ending(dispatch, [name, "--help"], capsys)
    assert code == 0
    assert f"refimpl {name}" in out or f"refimpl.{name}" in out
    assert len(out.split()) > 20


@pytest.mark.parametrize("name", ["trian", "", "--version", "Train"])
def test_an_unknown_command_ends_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = ending(dispatch, [name], capsys)
    assert (code, out) == (2, "")
    first, rest = error.split("\n", 1)
    assert first.startswith(f"error: {name!r} is no command; the nearest is ")
    assert rest == f"{usage()}\n"


@pytest.mark.parametrize(
    ("typed", "meant"), [("trian", "train"), ("Train", "train"), ("export-laro", "export-lora")]
)
def test_a_mistyped_command_is_told_the_nearest(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{typed!r} is no command; the nearest is {meant!r}\n" in ending(dispatch, [typed], capsys)[2]


def test_usage_groups_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ending(dispatch, ["--help"], capsys)
    groups = [block.splitlines() for block in out.split("\n\n")[1:-1]]
    named = {lines[0]: [line.split()[0] for line in lines[1:]] for lines in groups}
    assert named == {f"{title}:": list(group) for title, group in GROUPS.items()}
    assert list(GROUPS) == ["data", "train", "sample", "files", "report", "health"]


@pytest.mark.parametrize("name", ["data", "stats", "train"])
def test_a_configuration_that_is_none_ends_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = ending(dispatch, [name, "tinny"], capsys)
    assert code == 2
    assert "'tinny' is neither a preset" in error
    assert "nearest preset is 'tiny'" in error


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (InputError("x is 3"), 2, "error: x is 3\n"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "error: could not write a file: No space left on device; free space or choose another folder\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "out/a.png"),
            2,
            "error: could not write out/a.png: Permission denied; choose a folder that you may write to\n",
        ),
        (
            OSError(errno.EIO, "Input/output error", "data/a.png"),
            2,
            "error: could not read or write data/a.png: Input/output error; its disk or mount fails, see the "
            "system's log\n",
        ),
        (InputError("tensor \x1b[2J\u202e\r\nx"), 2, "error: tensor \\x1b[2J\\u202e\\r\nx\n"),
        (SystemExit("\x1b[2J"), 1, "\\x1b[2J\n"),
        (MemoryError(), 2, NO_MEMORY + "(out of memory)\n"),
        (
            RuntimeError("[1] DefaultCPUAllocator: can't allocate memory: 9 bytes\nat a.cpp"),
            2,
            NO_MEMORY + "([1] DefaultCPUAllocator: can't allocate memory: 9 bytes)\n",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB"),
            2,
            NO_MEMORY + "(CUDA out of memory. Tried 9 GiB)\n",
        ),
        (LostProcess("rank 1 has stopped"), 69, "error: rank 1 has stopped\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(), 0, ""),
        (SystemExit(75), 75, ""),
        (SystemExit("no such thing"), 1, "no such thing\n"),
        (None, 0, ""),
    ],
)
def test_endings(
    raised: BaseException | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        if raised is not None:
            raise raised

    with pytest.raises(SystemExit) as stop:
        run_command(command)
    assert stop.value.code == code
    assert capsys.readouterr().err == message


def test_a_fault_of_the_program_is_not_hidden() -> None:
    """Only bad input is one line; anything else is ours and shows its traceback."""
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: print(1 / 0))
    with pytest.raises(RuntimeError, match="sizes differ"):
        run_command(lambda: raise_("sizes differ"))


def test_what_a_command_prints_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    stdout = sys.stdout

    def command() -> None:
        print("a\x1b[2J\tb\u202e")
        tqdm.write("\x9b日本語 é")

    with pytest.raises(SystemExit):
        run_command(command)
    assert capsys.readouterr().out == "a\\x1b[2J\tb\\u202e\n\\x9b日本語 é\n"
    assert sys.stdout is stdout


def test_a_traceback_is_printable_too(tmp_path: Path) -> None:
    """A fault of this program may quote a file in its message."""
    throw = r"(_ for _ in ()).throw(TypeError('\x1b[2J\u202e'))"
    raising = f"from refimpl.commands.terminal import run_command\nrun_command(lambda: {throw})"
    done = subprocess.run(
        [sys.executable, "-c", raising], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("TypeError: \\x1b[2J\\u202e\n")
    assert done.stderr.startswith("Traceback")


def raise_(message: str) -> None:
    raise RuntimeError(message)


def test_an_error_begins_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A progress bar that was left open has its cursor at its end."""

    def command() -> None:
        bar.update()
        raise InputError("x is 3")

    with tqdm(total=2, file=sys.stderr) as bar, pytest.raises(SystemExit):
        run_command(command)
    before = capsys.readouterr().err.split("error: x is 3\n")[0]
    assert before.endswith("\r")
    assert before.rstrip("\r").endswith(" ")  # the bar was wiped


def test_the_entry_point_is_installed(tmp_path: Path) -> None:
    call = [sys.executable, "-c", "from refimpl.commands.main import main; main()", "nothing"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'nothing' is no command")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_read_enough_is_no_error(lines: int) -> None:
    """As `| head` does; whether the pipe breaks while printing or at the end."""
    loop = f"run_command(lambda: [print('x') for _ in range({lines})])"
    code = f"from refimpl.commands.terminal import run_command\n{loop}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_one_rank_of_several_ends_at_once_with_its_message() -> None:
    """Also where threads are left that would keep the process alive."""
    code = (
        "import threading, time\n"
        "from refimpl.errors import InputError, LostProcess\n"
        "from refimpl.commands.terminal import run_command\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "def command():\n"
        "    raise InputError('sizes differ')\n"
        "run_command(command)\n"
    )
    environment = {**os.environ, "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (2, b"error: sizes differ")
