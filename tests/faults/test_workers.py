"""Loader processes that are stopped, killed, or left behind."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from refimpl.data.index.data_set import read_folder
from refimpl.data.loading.loader import Batch, load_batches
from refimpl.data.loading.workers import dead_one, is_stopped, lost_worker
from refimpl.errors import LOST_PROCESS, LostProcess
from refimpl.run.world import lost_peers_named
from tests.data.loading.test_loader import Keyed
from tests.faults.test_signals import ENDLESS
from tests.faults.watching import children, is_alive, losses, printed, until
from tests.train import runs
from tests.train.processes import join_ranks, start_ranks

TIMEOUT = 1.0  # s


def workers_of(loading: Iterator[Batch]) -> list[int]:
    """The loader processes behind it, by number, once each has delivered a batch."""
    others = {process.pid for process in multiprocessing.active_children()}
    next(loading), next(loading)
    return [process.pid for process in multiprocessing.active_children() if process.pid not in others]  # pyright: ignore


@pytest.fixture
def loading(root: Path) -> Iterator[Iterator[Batch]]:
    index = read_folder(root / "train")
    batches = [((32, 32), [item % 18]) for item in range(2000)]
    yielding = load_batches(index, batches, 0, Keyed(), workers=2, timeout=TIMEOUT)
    yield yielding
    yielding.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_stopped_one_is_named_after_the_time_out(loading: Iterator[Batch]) -> None:
    workers = workers_of(loading)
    os.kill(workers[1], signal.SIGSTOP)
    until(lambda: is_stopped(workers[1]))
    begun = time.monotonic()
    with pytest.raises(LostProcess) as error:
        list(loading)
    assert time.monotonic() - begun < TIMEOUT + 10
    assert f"no batch from the 2 loader processes for 1 s: process {workers[1]} is stopped" in str(
        error.value
    )
    until(lambda: not any(is_alive(worker) for worker in workers))  # a stopped one does not outlive the run


@pytest.mark.parametrize("time", range(3))
def test_a_killed_one_is_named(time: int, loading: Iterator[Batch]) -> None:
    """Again and again: where torch's error falls, and what the death breaks first, differs from time to time."""
    workers = workers_of(loading)

    def lose_one() -> None:
        with lost_peers_named(runs.ALONE):
            os.kill(workers[0], signal.SIGKILL)  # torch may raise its error here already
            list(loading)

    with pytest.raises(LostProcess) as error:
        lose_one()
    assert f"loader process {workers[0]} has ended" in str(error.value)
    assert "lower data.workers" in str(error.value)


def _ends_slowly() -> None:
    """Closes what its parent watches a moment before it ends, as the kernel does with a process that is killed."""
    os.closerange(3, 256)
    time.sleep(0.3)
    os._exit(7)


@pytest.mark.parametrize(
    "broken", [ConnectionResetError(104, "reset"), RuntimeError("a thread can't be started")]
)
def test_one_that_is_still_ending_is_waited_for(broken: Exception) -> None:
    process = multiprocessing.get_context("fork").Process(target=_ends_slowly)
    process.start()
    multiprocessing.connection.wait([process.sentinel])
    assert "has ended: exit code 7" in str(dead_one([process], broken))


def test_a_killed_one_is_named_by_what_its_death_broke() -> None:
    """torch raises its error in whatever runs then, a thread's start for one, which fails in its own way."""

    def broken() -> None:
        with lost_peers_named(runs.ALONE):
            try:
                raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
            except RuntimeError:
                del {}["thread"]

    with pytest.raises(LostProcess, match="loader process 17 has ended: killed by signal: Killed"):
        broken()


def test_closing_early_ends_them_without_a_word(loading: Iterator[Batch]) -> None:
    """Else torch's handler raises its error in the caller when one of them ends, and a stopped one never does."""
    workers = workers_of(loading)
    os.kill(workers[1], signal.SIGSTOP)
    until(lambda: is_stopped(workers[1]))
    handler = signal.getsignal(signal.SIGCHLD)
    loading.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not any(is_alive(worker) for worker in workers)
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_the_signals_that_stop_a_run_leave_them_at_work(loading: Iterator[Batch]) -> None:
    """Ctrl-C and a scheduler reach every process of a job."""
    workers = workers_of(loading)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for worker in workers:
            os.kill(worker, number)
    for _ in range(20):
        next(loading)
    assert all(is_alive(worker) for worker in workers)


@pytest.mark.parametrize(
    "message", ["sizes differ", "DataLoader worker 3 raised", "worker (pid 3) is killed", "out of memory"]
)
def test_other_errors_are_not_theirs(message: str) -> None:
    assert lost_worker(RuntimeError(message)) is None


@pytest.mark.parametrize("number", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.faults)])
def test_a_run_that_loses_one_ends_with_its_name(number: signal.Signals, root: Path, tmp_path: Path) -> None:
    data = {"workers": 1, "worker_timeout": TIMEOUT * 3}
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run", train=ENDLESS, data=data)
    (rank,) = start_ranks([toml], 1, tmp_path / "output")
    until(lambda: len(losses(tmp_path / "run")) > 2)

    def hurt() -> bool:
        """One is started for each epoch; the one that is found may have done its work."""
        for worker in children(rank.pid):
            try:
                os.kill(worker, number)
            except ProcessLookupError:
                continue
        return not rank.is_alive()

    until(hurt)
    assert join_ranks([rank], 20) == [LOST_PROCESS]
    (text,) = printed(tmp_path / "output")
    assert "error: no batch from the 1 loader processes" in text or "has ended: " in text
    assert "Traceback" not in text


@pytest.mark.parametrize("workers", [1])
def test_they_end_with_a_rank_that_is_killed(workers: int, root: Path, tmp_path: Path) -> None:
    data = {"workers": workers}
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run", train=ENDLESS, data=data)
    (rank,) = start_ranks([toml], 1, tmp_path / "output")
    found = until(lambda: losses(tmp_path / "run") and children(rank.pid))
    rank.kill()
    until(lambda: not any(is_alive(worker) for worker in found), 10)
    rank.join()
