"""Signals: the run finishes its step, saves, says how to go on, and has lost nothing."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl.commands.terminal import run_command
from refimpl.commands.train import train_command
from refimpl.errors import INTERRUPTED, STOPPED
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.interop.run.run_folder import CONFIG
from refimpl.train import loop
from refimpl.train.setup import prepare
from refimpl.train.watch.signals import SAME, STOPPING, Interrupted, stop_signals
from tests.faults.watching import losses, printed, until
from tests.train import runs
from tests.train.processes import join_ranks, run_ranks, start_ranks

ENDLESS = {"steps": 100_000, "checkpoint_every": 100_000, "validate_every": 100_000, "batch_size": 2}
SELDOM = {"log_every": 100, "checkpoint_every": 100, "validate_every": 100}  # so that no step is read at once
TIMES = 20  # signals of each kind, in the long form


def ending(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of training in this process."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: train_command(arguments))
    return int(stop.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize("number", STOPPING)
def test_a_run_stopped_by_a_signal_goes_on_as_if_it_had_not_been(
    number: signal.Signals,
    root: Path,
    tmp_path: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sent in step 2 of 4, heeded in step 3, where no checkpoint was due."""
    update = loop.update

    def interrupted(*given: Any) -> Any:
        if given[5] == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # torchrun's agent and the terminal, or the scheduler, both send it
            time.sleep(0.1)
        return update(*given)

    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run", train=SELDOM)
    before = signal.getsignal(number)
    monkeypatch.setattr(loop, "update", interrupted)
    code, out, _ = ending([toml], capsys)
    monkeypatch.undo()
    assert code == STOPPED
    assert signal.getsignal(number) is before
    assert f"stopped and saved: {tmp_path}/run\ngo on with: refimpl train --resume {tmp_path}/run\n" in out
    assert committed_steps(tmp_path / "run") == [3]
    assert ending([toml, "--train.resume"], capsys)[0] == 0
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(tmp_path / "run", 4))


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_before_the_first_step_leaves_nothing(
    number: signal.Signals,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def waiting(*_: Any) -> None:
        os.kill(os.getpid(), number)
        for _ in range(1000):
            time.sleep(0.01)

    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run")
    monkeypatch.setattr(prepare, "prepare", waiting)
    code, _, error = ending([toml], capsys)
    assert code == 128 + number
    assert f"interrupted by {number.name} before the first step\n" in error
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.toml"]


def test_what_a_gone_peer_raises_does_not_hide_the_signal() -> None:
    """The peer heard it first; this rank's interruption went where nothing could be interrupted."""

    def waiting() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            time.sleep(0.01)

    def before_the_first_step() -> None:
        with stop_signals():
            with pytest.raises(Interrupted):
                waiting()
            raise RuntimeError("Connection closed by peer")

    def in_a_step() -> None:
        with stop_signals() as signals, signals.noted():
            os.kill(os.getpid(), signal.SIGTERM)
            until(signals.asked)
            raise RuntimeError("Connection closed by peer")

    def where_ranks_meet() -> None:
        with stop_signals() as signals:

            def meet() -> None:
                os.kill(os.getpid(), signal.SIGTERM)
                until(signals.asked)
                raise RuntimeError("Connection closed by peer")

            with signals.noted(meet):
                pass

    for early in (before_the_first_step, where_ranks_meet):
        with pytest.raises(Interrupted, match="SIGTERM before the first step"):
            early()
    with pytest.raises(RuntimeError, match="closed by peer"):
        in_a_step()


def hang_in_step_2(arguments: list[str]) -> None:
    """Trains, and in its second step waits in one call, as for a rank that never comes."""
    update = loop.update

    def hanging(*given: Any) -> Any:
        if given[5] == 2:
            print("hangs", flush=True)
            time.sleep(60)  # goes on after a signal (PEP 475)
        return update(*given)

    loop.update = hanging  # pyright: ignore
    train_command(arguments)


def test_a_second_ctrl_c_ends_the_run_at_once(root: Path, tmp_path: Path) -> None:
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run", train=ENDLESS)
    (rank,) = start_ranks([toml], 1, tmp_path / "output", hang_in_step_2)
    until(lambda: "hangs" in "".join(printed(tmp_path / "output")))
    os.kill(rank.pid, signal.SIGINT)
    until(lambda: "SIGINT: the run stops after this step, and saves" in printed(tmp_path / "output")[0])
    time.sleep(SAME * 1.2)
    assert rank.is_alive()
    os.kill(rank.pid, signal.SIGINT)
    assert join_ranks([rank], 10) == [INTERRUPTED]
    assert "interrupted again" in printed(tmp_path / "output")[0]


def test_one_rank_that_is_asked_stops_all_after_the_same_step(
    root: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run", train=ENDLESS)
    ranks = start_ranks([toml], 2, tmp_path / "output")
    until(lambda: len(losses(tmp_path / "run")) > 2)
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert join_ranks(ranks) == [STOPPED, STOPPED], "\n".join(printed(tmp_path / "output"))
    last = max(losses(tmp_path / "run"))
    tally(tried=1, lost=last - committed_steps(tmp_path / "run")[-1])
    assert committed_steps(tmp_path / "run") == [last]
    go_on = f"go on with: torchrun --nproc-per-node=2 -m refimpl.train --resume {tmp_path}/run"
    assert [go_on in text for text in printed(tmp_path / "output")] == [True, False]


@pytest.mark.faults
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_step_is_lost_to_signals_at_random_times(
    number: signal.Signals, world: int, root: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    """One run, stopped again and again: before its first step too, where it ends with 128 + the signal's number."""
    draw, run = random.Random(world * 100 + number), tmp_path / "run"
    toml = runs.write_toml(root, tmp_path / "a.toml", run, train=ENDLESS | {"keep_checkpoints": 1})
    lost, in_steps = 0, 0
    for trial in range(TIMES):
        output = tmp_path / f"output{trial}"
        resume = ["--train.resume"] if (run / CONFIG).exists() else []
        ranks = start_ranks([toml, *resume], world, output)
        if trial:
            until(lambda where=output: any("run folder" in text for text in printed(where)))
            time.sleep(draw.uniform(0, 4))
        else:
            until(lambda: losses(run))
        for rank in ranks:  # as a terminal or a scheduler sends it
            os.kill(rank.pid, number)
        codes = join_ranks(ranks)
        assert set(codes) in ({STOPPED}, {128 + number}), (codes, printed(output))
        in_steps += codes[0] == STOPPED
        lost += max(losses(run), default=0) - max(committed_steps(run), default=0)
    last = committed_steps(run)[-1] + 3
    assert (
        run_ranks([toml, "--train.resume", "--train.steps", str(last)], world, tmp_path / "end")
        == [0] * world
    )
    whole = runs.write_toml(root, tmp_path / "b.toml", tmp_path / "whole", train=ENDLESS | {"steps": last})
    assert run_ranks([whole], world, tmp_path / "whole-output") == [0] * world
    expected, logged = losses(tmp_path / "whole"), losses(run)
    differing = sum(logged.get(step) != loss for step, loss in expected.items())
    tally(tried=TIMES, lost=lost + differing, in_steps=in_steps)
    assert lost == 0
    assert logged == expected
    assert in_steps >= TIMES / 3
