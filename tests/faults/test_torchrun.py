"""Under torchrun: its agent is killed, asked to stop, or restarts the ranks."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refimpl.interop.run.checkpoints import committed_steps
from refimpl.run.config import Config
from refimpl.train.watch import restart
from refimpl.train.watch.restart import begun_run, has_finished, remember_run
from tests.faults.test_signals import ENDLESS
from tests.faults.watching import PATIENCE, children, is_alive, losses, until
from tests.train import runs

RUN = "runs/numbered-001"
Launch = Callable[..., subprocess.Popen[bytes]]


class Store(dict[str, str]):
    """The agent's store, as far as a restart needs it."""

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> Any:
        return self[key].encode()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """As torchrun's agent leaves the environment for the workers after a restart."""
    store = Store()
    monkeypatch.setattr(restart, "job_store", lambda: store)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    return store


def restarted(config: Config) -> tuple[str, bool]:
    train = begun_run(config, runs.ALONE).train
    return train.out, train.resume


def test_after_a_restart_the_run_that_was_begun_goes_on(
    store: Store, root: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered = runs.config(root, Path(), train={"out": ""})
    assert restarted(numbered) == ("", False)  # it failed before it had a folder
    remember_run(tmp_path / "run-001", runs.ALONE)
    assert restarted(numbered) == (str(tmp_path / "run-001"), False)  # … before it had written its settings
    shutil.copytree(trained, tmp_path / "run-001")
    assert restarted(numbered) == (str(tmp_path / "run-001"), True)
    store.clear()
    named = runs.config(root, trained)
    assert restarted(named) == (str(trained), True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert restarted(named) == (str(trained), False)


def test_after_a_restart_a_finished_run_has_nothing_left_to_do(
    store: Store, root: Path, trained: Path
) -> None:
    config = runs.config(root, trained, train={"resume": True})
    assert has_finished(config, runs.ALONE)
    assert not has_finished(replace(config, train=replace(config.train, steps=5)), runs.ALONE)
    assert not has_finished(replace(config, train=replace(config.train, resume=False)), runs.ALONE)


@pytest.fixture
def launch(root: Path, tmp_path: Path) -> Launch:
    """launch(*options, **sections): torchrun of two ranks, in tmp_path, that train in a numbered folder."""

    def start(*options: str, **sections: Any) -> subprocess.Popen[bytes]:
        train = {"out": "", **sections.pop("train", {})}
        toml = runs.write_toml(root, tmp_path / "numbered.toml", Path(), train=train, **sections)
        call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        with (tmp_path / "output.txt").open("wb") as output:
            return subprocess.Popen(
                [*call, "-m", "refimpl.train", toml],
                cwd=tmp_path,
                env=environment,
                stdout=output,
                stderr=output,
            )

    return start


@pytest.mark.faults
def test_ranks_and_loader_processes_end_with_their_agent(
    launch: Launch, tmp_path: Path, tally: Callable[..., None]
) -> None:
    agent = launch(train=ENDLESS, data={"workers": 1})
    until(lambda: losses(tmp_path / RUN), 2 * PATIENCE)
    ranks = children(agent.pid)
    workers = until(lambda: [worker for rank in ranks for worker in children(rank)])
    assert len(ranks) == 2
    agent.kill()
    agent.wait()
    try:
        until(lambda: not any(is_alive(process) for process in ranks + workers), 10)
        lost = 0
    except TimeoutError:
        lost = 1
    tally(tried=1, lost=lost)
    assert lost == 0


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_agent_saves_the_run(
    number: signal.Signals, launch: Launch, tmp_path: Path, tally: Callable[..., None]
) -> None:
    agent = launch(train=ENDLESS)
    until(lambda: len(losses(tmp_path / RUN)) > 2, 2 * PATIENCE)
    agent.send_signal(number)
    assert agent.wait(PATIENCE) != 0
    last = max(losses(tmp_path / RUN))
    tally(tried=1, lost=last - committed_steps(tmp_path / RUN)[-1])
    assert committed_steps(tmp_path / RUN)[-1] == last
    assert f"-m refimpl.train --resume {RUN}" in (tmp_path / "output.txt").read_text(errors="replace")


@pytest.mark.faults
def test_a_killed_rank_is_restarted_and_the_run_finishes(
    launch: Launch, root: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    steps = {"steps": 200, "checkpoint_every": 5, "validate_every": 200, "batch_size": 2}
    agent = launch("--max-restarts=1", train=steps)
    until(lambda: len(losses(tmp_path / RUN)) > 7, 2 * PATIENCE)
    os.kill(children(agent.pid)[1], signal.SIGKILL)
    code = agent.wait(4 * PATIENCE)
    printed = (tmp_path / "output.txt").read_text(errors="replace")
    tally(tried=1, lost=int(code != 0))
    assert code == 0, printed
    assert re.search(r"exitcode: -9\) local_rank: 1 ", printed)  # rank 0 may be ended before it misses rank 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["numbered-001"]
    assert committed_steps(tmp_path / RUN)[-1] == 200
    assert sorted(losses(tmp_path / RUN)) == list(range(1, 201))
