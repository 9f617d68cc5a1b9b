"""How every command begins and ends: its arguments; 0, or a message on stderr and an exit code (docs/faults.md)."""

import contextlib
import errno
import io
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO, TypeVar

from refimpl.checks import WANTED
from refimpl.data.loading.orphans import end_with_parent
from refimpl.errors import (
    BAD_INPUT,
    INTERRUPTED,
    LOST_PROCESS,
    OUT_OF_MEMORY,
    InputError,
    LostProcess,
    refused_write,
)
from refimpl.printable import LAYOUT, PrintableStream, StyledStream, printable
from refimpl.run.threads import prepare_environment

Settings = TypeVar("Settings")
# What Python's int and float refuse, quoted but for one of too many digits.
NO_NUMBER = re.compile(r"(?:with base 10|to float): (.*)|Exceeds the limit")
BROKEN_PIPE = 141  # exit status of programs that a closed pipe ends: 128 + SIGPIPE

# The disk is full, the quota is used up, or the file system or the folder refuses writes.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
# The device or the mount below a file fails.
FAILING = (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO)


def run_command(command: Callable[[], None]) -> NoReturn:
    """Runs a command and exits: with 0, or after one message with the code of what it raised.

    What it prints passes through `printable`, as its message does: names and captions come from files.
    A rank of several says its message first and then exits at once, whatever it was raised by: taking down a process
    group can wait for operations that its peers will never join, and they in turn wait for this one.
    """
    prepare_environment()  # before the command imports torch
    if "TORCHELASTIC_RUN_ID" in os.environ:  # the parent is torchrun's agent, which may be killed
        end_with_parent()
    try:
        with contextlib.redirect_stdout(PrintableStream(sys.stdout)):
            command()
            sys.stdout.flush()
    except BaseException as error:
        ending = _ending(error)
        if ending is None and not is_one_of_several():
            sys.excepthook = _say_traceback
            raise  # an error of this program: its traceback
        message, code = ending or (traceback.format_exc().rstrip(), 1)
        if isinstance(error, BrokenPipeError):  # so that flushing at exit says nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if message:
            _say(message)
        _exit(code)
    _exit(0)


def parsed(
    kind: type[Settings],
    arguments: Sequence[str],
    program: str,
    default: Settings | None = None,
    description: str = "",
) -> Settings:
    """The command line as a dataclass; default gives the fields that it leaves out. Exits as command lines do.

    Raises the InputError of a dataclass that refuses its values.
    Help and errors are styled where a terminal shows it, unless NO_COLOR is set, or an argument or a default, which
    may come from a file, holds what is not printable: then no style can be told from data, and all are spelled out.
    """
    import tyro

    given: dict[str, Any] = {} if default is None else {"default": default}
    with (
        _styled(all(_is_plain(text) for text in _texts([list(arguments), program, description, default]))),
        _own_words(),
    ):
        return tyro.cli(kind, args=arguments, prog=program, description=description or None, **given)


def parsed_in_part(
    kind: type[Settings], arguments: Sequence[str], program: str
) -> tuple[Settings, list[str]]:
    """As `parsed`, and the words of the command line that are none of its fields."""
    import tyro

    with _styled(all(_is_plain(text) for text in _texts([list(arguments), program]))), _own_words():
        return tyro.cli(kind, args=arguments, prog=program, return_unknown_args=True)


@contextlib.contextmanager
def _styled(is_plain: bool) -> Iterator[None]:
    """Makes stdout and stderr take styles of this program, where their terminal does and no data can hold one."""
    out, error = (getattr(stream, "stream", stream) for stream in (sys.stdout, sys.stderr))
    if not is_plain:
        with (
            contextlib.redirect_stdout(PrintableStream(out)),
            contextlib.redirect_stderr(PrintableStream(error)),
        ):
            yield
        return
    streams = [StyledStream(stream, _takes_styles(stream)) for stream in (out, error)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield


class _Held(io.StringIO):
    """Keeps what is written to a stream until it is known whether it is to be said."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()


@contextlib.contextmanager
def _own_words() -> Iterator[None]:
    """Raises an InputError where a dataclass refuses its values, or one is no number, which tyro tells in a box."""
    held = _Held(sys.stderr)
    refused: BaseException | None = None
    try:
        with contextlib.redirect_stderr(held):
            yield
    except SystemExit as stop:
        refused = next((e for e in _causes(stop) if isinstance(e, InputError)), None) or _no_number(stop)
        if refused is None:
            raise
    finally:
        if refused is None:
            held.stream.write(held.getvalue())
    if refused is not None:
        raise refused.with_traceback(None) from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised after, the last one first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__context__


def _no_number(stop: SystemExit) -> InputError | None:
    """The message for an option that takes a number and got none; None for whatever else tyro stops at."""
    for cause in _causes(stop):
        kind = getattr(getattr(getattr(cause, "arg", None), "field", None), "type_stripped", None)
        kinds = [one for one in (kind, *typing.get_args(kind)) if one in (int, float)]
        names = getattr(getattr(getattr(cause, "arg", None), "lowered", None), "name_or_flags", ())
        value = NO_NUMBER.search(str(getattr(cause, "message", "")))
        if kinds and names and value:
            given = f"not {value[1]}" if value[1] else "of fewer digits"
            return InputError(f"{names[-1]} must be {WANTED[kinds[0]]}, {given}")
    return None


def _takes_styles(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows them; https://no-color.org says what NO_COLOR is."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and (os.environ.get("TERM") or "dumb") != "dumb"


def _is_plain(text: str) -> bool:
    return all(letter.isprintable() or letter in LAYOUT for letter in text)


def _texts(value: object) -> Iterator[str]:
    """Every text in settings, lists and tables."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def is_one_of_several() -> bool:
    """Whether torchrun has started this process as one of several ranks."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _ending(error: BaseException) -> tuple[str, int] | None:
    """The message and the exit code for what a command raised; None for an error of this program."""
    if isinstance(error, SystemExit):
        return _of_exit(error)
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted", getattr(error, "code", INTERRUPTED)
    if isinstance(error, InputError):
        return f"error: {error}", LOST_PROCESS if isinstance(error, LostProcess) else BAD_INPUT
    if isinstance(error, BrokenPipeError):  # `| head` has read enough
        return "", BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in REFUSED:
        return f"error: {refused_write(error.filename or 'a file', error)}", BAD_INPUT
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"error: {error.filename}: {error.strerror}; give a shorter one", BAD_INPUT
    if isinstance(error, OSError) and error.errno in FAILING:
        where = error.filename or "a file"
        reason = f"could not read or write {where}: {error.strerror}; its disk or mount fails, see the system's log"
        return f"error: {reason}", BAD_INPUT
    if isinstance(error, MemoryError | RuntimeError):
        reason = (str(error) or "out of memory").splitlines()[0]
        if isinstance(error, MemoryError) or any(sign in reason for sign in OUT_OF_MEMORY):
            advice = "lower the batch, the images' size or the network's"
            return f"error: not enough memory for this; {advice} ({reason})", BAD_INPUT
    return None


def _say_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's traceback, in which a message may quote a file."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def _of_exit(error: SystemExit) -> tuple[str, int]:
    """What sys.exit was given: a code, nothing, or a message."""
    if error.code is None or isinstance(error.code, int):
        return "", error.code or 0
    return str(error.code), 1


def _exit(code: int) -> NoReturn:
    """Exits; after a failure at once if this process is one of several."""
    if code and is_one_of_several():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _say(message: str) -> None:
    """Prints lines above any remaining progress bar, in one write: other ranks may share the terminal."""
    line = f"{printable(message)}\n"
    if "tqdm" not in sys.modules:  # nobody can have drawn a bar
        sys.stderr.write(line)
        return
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr, end="")
