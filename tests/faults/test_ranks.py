"""Ranks that raise, stop or die: the others end soon, and say which one it was."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from refimpl.commands.train import train_command
from refimpl.data.loading.orphans import end_with_parent
from refimpl.errors import BAD_INPUT, INTERRUPTED, LOST_PROCESS, InputError
from refimpl.run.ranks.heartbeat import SILENCE, Heartbeat, Place
from refimpl.run.world import World, lost_peers_named
from refimpl.train.setup import out_folder
from tests.faults.test_signals import ENDLESS
from tests.faults.watching import is_alive, losses, printed, until
from tests.train import runs
from tests.train.processes import CONTEXT, join_ranks, run_ranks, start_ranks

SOON = 10.0  # s within which all ranks end
TIMEOUT = 2.0  # s, of a training step
KINDS: dict[str, tuple[Callable[[], BaseException], int, str]] = {
    "input": (lambda: InputError("this rank has failed"), BAD_INPUT, "error: this rank has failed"),
    "bug": (lambda: ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
    "interrupt": (KeyboardInterrupt, INTERRUPTED, "interrupted"),
    "memory": (MemoryError, BAD_INPUT, "error: not enough memory for this"),
    "exit": (lambda: SystemExit(3), 3, ""),
}


def raise_with_an_operation_in_flight(arguments: list[str]) -> None:
    """Rank 0 raises while an all-reduce waits for rank 1, which comes to another operation later."""
    kind, note = arguments.pop(), Path(arguments.pop())
    in_flight = []

    def fail(*_: Any) -> None:
        dist.barrier()
        if dist.get_rank() == 1:
            time.sleep(0.5)
            dist.barrier()
        in_flight.append(dist.all_reduce(torch.ones(1_000_000), async_op=True))
        note.write_text(str(time.time()))
        raise KINDS[kind][0]()

    out_folder.run_folder = fail  # pyright: ignore
    train_command(arguments)


def seconds_to_end(kind: str, number: int, tmp_path: Path) -> float:
    """From the raise to the last rank's end; asserts what each has said."""
    output, note = tmp_path / f"{kind}{number}", tmp_path / f"{kind}{number}.time"
    codes = run_ranks(
        ["tiny", "--train.device", "cpu", str(note), kind], 2, output, raise_with_an_operation_in_flight
    )
    ended = time.time() - float(note.read_text())
    said = printed(output)
    assert codes == [KINDS[kind][1], LOST_PROCESS], "\n".join(said)
    assert KINDS[kind][2] in said[0]
    assert any(
        f"rank 1 stops because rank 0 {words}" in said[1] for words in ("(before its first", "does not")
    )
    assert "Traceback" not in said[1]
    assert ("Traceback" in said[0]) == (kind == "bug")
    return ended


@pytest.mark.parametrize("kind", ["input", "bug", "interrupt"])
def test_a_raising_rank_ends_all_with_its_message(
    kind: str, tmp_path: Path, tally: Callable[..., None]
) -> None:
    seconds = seconds_to_end(kind, 0, tmp_path)
    tally(tried=1, lost=int(seconds > SOON), seconds=seconds)
    assert seconds < SOON


@pytest.mark.faults
def test_twenty_raising_ranks_end_all_with_their_message(tmp_path: Path, tally: Callable[..., None]) -> None:
    kinds = [[*KINDS][number % len(KINDS)] for number in range(20)]
    seconds = [seconds_to_end(kind, number, tmp_path) for number, kind in enumerate(kinds)]
    late = sum(each > SOON for each in seconds)
    tally(tried=len(seconds), lost=late, seconds=max(seconds))
    assert late == 0


@pytest.mark.parametrize(
    ("number", "rank"),
    [
        (signal.SIGSTOP, 1),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.faults),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.faults),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.faults),
    ],
)
def test_a_rank_that_is_stopped_or_killed_is_named(
    number: signal.Signals, rank: int, root: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    """Where rank 0 holds the store, nothing can be asked when it is gone; torchrun's agent holds it otherwise."""
    toml = runs.write_toml(
        root, tmp_path / "a.toml", tmp_path / "run", train=ENDLESS | {"step_timeout": TIMEOUT}
    )
    ranks = start_ranks([toml], 2, tmp_path / "output")
    until(lambda: len(losses(tmp_path / "run")) > 2)
    os.kill(ranks[rank].pid, number)
    begun = time.monotonic()
    ranks[1 - rank].join(TIMEOUT + SOON)
    seconds = time.monotonic() - begun
    ranks[rank].kill()
    codes = join_ranks(ranks)
    tally(tried=1, lost=int(codes[1 - rank] != LOST_PROCESS), seconds=seconds)
    assert codes[1 - rank] == LOST_PROCESS, "\n".join(printed(tmp_path / "output"))
    said = printed(tmp_path / "output")[1 - rank]
    last = max(losses(tmp_path / "run"))
    places = [f"{when} step {step}" for when in ("in", "after") for step in range(last - 1, last + 2)]
    named = [f"rank {rank} (last heard of {place}) has stopped" for place in places]
    assert any(name in said for name in named) or (rank == 0 and "rank 0 does not answer" in said), said
    assert "Traceback" not in said


class Words:
    """A store that answers with what the other ranks are made to have said, each beat a new one unless silent."""

    def __init__(self, places: dict[int, Place], silent: set[int] = frozenset()) -> None:  # pyright: ignore
        self.places, self.silent, self.beats = places, silent, 0

    def set(self, key: str, value: str) -> None:
        self.beats += 1

    def check(self, keys: list[str]) -> bool:
        return all(int(key) in self.places for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        beats = {rank: 0 if rank in self.silent else self.beats for rank in self.places}
        return [json.dumps([beats[int(key)], *self.places[int(key)]]).encode() for key in keys]


def beat(store: Any, size: int = 3) -> Heartbeat:
    """Rank 0's, whose thread judges nobody: it would end this process."""
    heart = Heartbeat(0, size, store)
    heart.end()
    return heart


def judged(heart: Heartbeat, seconds: float) -> str:
    """What rank 0 concludes after it has been in its place for so long, asked twice as its thread does."""
    own = heart._place
    heart._judged(1.0, own)
    heart._since -= seconds
    for rank, (beats, seen) in heart._heard.items():
        heart._heard[rank] = beats, seen - seconds
    heart._store.set("0", "")  # a beat has passed
    return heart._judged(1.0, own)


def test_a_silent_rank_is_told_from_a_slow_one() -> None:
    ahead, behind, saving = Place(7, 0, False), Place(6, 1, False), Place(6, 1, True)
    for places, silent, wanted in (
        ({1: ahead, 2: behind}, {2}, "rank 2 (last heard of after step 6) has stopped"),
        (
            {1: ahead, 2: ahead},
            {1, 2},
            "rank 1 (last heard of in step 7) and rank 2 (last heard of in step 7) have stopped",
        ),
        ({1: ahead, 2: behind}, set(), "rank 2 (last heard of after step 6) has not come further, but"),
        ({1: ahead, 2: ahead}, set(), "all ranks are alive and wait for one another"),
        ({1: ahead, 2: saving}, set(), ""),
    ):
        heart = beat(Words(places, silent))
        heart.at(7, 0, 1.0)
        verdict = judged(heart, SILENCE + 2)
        assert verdict.startswith(wanted)
        assert bool(verdict) == bool(wanted)


def test_a_rank_that_saves_may_be_silent_for_the_whole_time_out() -> None:
    """Writing a large file can keep its heartbeat's thread waiting."""
    heart = beat(Words({1: Place(6, 1, True)}, {1}), 2)
    heart.at(7, 0, 100.0)
    heart._judged(100.0, heart._place)
    heart._heard = {1: (0, time.monotonic() - 50)}
    assert heart._judged(100.0, heart._place) == ""
    heart._heard = {1: (0, time.monotonic() - 101)}
    assert heart._judged(100.0, heart._place) == "rank 1 (last heard of after step 6) has stopped"


def test_a_rank_first_heard_of_while_one_listens_has_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words({1: Place(6, 0, True)}, {1})
    heart = beat(words)

    def begin(_: float) -> None:
        words.places[2] = Place(0, 0, True)

    monkeypatch.setattr(time, "sleep", begin)
    assert heart.lost() == "rank 1 (last heard of in step 6) has stopped"


@pytest.mark.parametrize(
    "message",
    [
        "[pair.cc:534] Connection closed by peer [127.0.0.1]:1234",
        "Read error [127.0.0.1]:1234: Connection reset by peer",
        "Timed out waiting 1800000ms for recv operation to complete",
        "Application timeout caused pair closure",
        "NCCL error: remote process exited or there was a network error, ncclRemoteError",
        "NCCL communicator was aborted on rank 1.",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE)",
    ],
)
def test_the_words_of_gloo_and_nccl_are_known(message: str) -> None:
    with (
        pytest.raises(InputError, match="rank 1 stops because another rank has stopped"),
        lost_peers_named(World(1, 2, torch.device("cpu"))),
    ):
        raise RuntimeError(message)


def test_other_errors_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="sizes differ"),
        lost_peers_named(World(1, 2, torch.device("cpu"))),
    ):
        raise RuntimeError("sizes differ")


def be_a_parent(note: Path) -> None:
    """Starts a process that ends with this one, and is killed."""
    if os.fork() == 0:
        end_with_parent()
        note.write_text(str(os.getpid()))
    time.sleep(60)


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    agent = CONTEXT.Process(target=be_a_parent, args=(tmp_path / "note",))
    agent.start()
    worker = int(until(lambda: (tmp_path / "note").exists() and (tmp_path / "note").read_text()))
    agent.kill()
    until(lambda: not is_alive(worker), SOON)
    agent.join()
