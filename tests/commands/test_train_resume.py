"""`refimpl train --resume RUN`: the run's own settings, what may be changed, and folders that are no run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl.commands.train import parse, train_command
from refimpl.interop.run.checkpoints import committed_steps
from tests.commands.endings import ending
from tests.train import runs


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A finished run of 4 steps to go on with, at another place than it was made."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_on_with_its_own_settings_and_keeps_the_changes(
    copy: Path, root: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ending(
        train_command, ["--resume", str(copy), "--train.steps", "6", "--train.log-every", "2"], capsys
    )
    assert code == 0
    assert "changed settings:\n  train.log_every: 1 → 2\n  train.steps: 4 → 6\n" in out
    assert committed_steps(copy) == [2, 4, 6]
    assert not runs.differing(runs.checkpoint(run(train={"steps": 6}), 6), runs.checkpoint(copy, 6))
    code, out, _ = ending(train_command, ["--train.steps", "7", "--resume", str(copy)], capsys)
    assert code == 0
    assert (
        "changed settings:\n  train.steps: 6 → 7\nrun folder" in out
    )  # the first change is the run's own by now
    assert json.loads((copy / "config.json").read_text())["train"]["steps"] == 7
    code, _, error = ending(train_command, [f"--resume={copy}"], capsys)
    assert (code, f"{copy} is already at step 7; raise train.steps 7" in error) == (2, True)


def emptied(copy: Path) -> Path:
    shutil.rmtree(copy)
    copy.mkdir()
    return copy


def newer(copy: Path) -> Path:
    table = json.loads((copy / "config.json").read_text())
    table["train"]["warp"] = 9
    (copy / "config.json").write_text(json.dumps(table))
    return copy


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda copy: copy / "nowhere", [], "nowhere' does not exist, so it is not a run folder"),
        (lambda copy: copy / "config.json", [], "config.json' is not a run folder"),
        (emptied, [], "copy' is not a run folder"),
        (lambda copy: copy / "checkpoints" / "step-00000004", [], "4 is a checkpoint; name its run, {copy}"),
        (newer, [], "unknown key train.warp"),
        (Path, [], "{copy} is already at step 4; raise train.steps 4"),
        (Path, ["--train.seed", "1", "--train.steps", "9"], "train.seed: the run has 0, now 1 These define the run"),
        (Path, ["--unet.channels", "16"], "unet.channels: the run has 8, now 16"),
        (Path, ["--train.out", "x"], "says which run goes on; leave out --train.out and --train.resume"),
        (Path, ["--train.steps", "0"], "train.steps 0 must be at least 1"),
        (Path, ["--train.micro-batches", "9", "--train.batch-size", "3"], "18 images are fewer than one global"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_the_run_stays_as_it_was(
    spoil: Callable[[Path], Path],
    options: list[str],
    message: str,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = spoil(copy)
    before = contents(copy)
    if "--train.batch-size" in options:
        options = [*options, "--train.steps", "9"]
    code, _, error = ending(train_command, ["--resume", str(place), *options], capsys)
    assert code == 2
    assert message.replace("{copy}", str(copy)) in " ".join(error.replace("│", "").split())
    assert "Traceback" not in error
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume takes the folder of a run"),
        (["--resume", "--train.steps", "9"], "--resume takes the folder of a run"),
        (["--resume="], "--resume takes the folder of a run"),
        (["tiny", "--resume", "{copy}"], "--resume {copy} reads the run's own settings; leave out 'tiny'"),
        (["--resume", "{copy}", "--train.stpes", "9"], "--train.steps"),
    ],
)
def test_bad_command_lines(
    arguments: list[str], message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = ending(train_command, [word.replace("{copy}", str(copy)) for word in arguments], capsys)
    assert code == 2
    assert message.replace("{copy}", str(copy)) in error


def test_help_shows_the_runs_values(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ending(train_command, ["--resume", str(copy), "--help"], capsys)
    assert code == 0
    assert f"essential settings, with their values in --resume {copy}:" in out
    code, out, _ = ending(train_command, ["--resume", str(copy), "--help-all"], capsys)
    assert code == 0
    assert "--train.wandb-project" in out


def test_the_run_that_is_named_is_the_one_that_goes_on(copy: Path) -> None:
    config, label = parse(["--resume", str(copy)])
    assert (config.train.out, config.train.resume, label) == (str(copy), True, "copy")
    assert config.train.batch_size == runs.table(copy, copy)["train"]["batch_size"]


def test_another_batch_is_a_change_with_a_consequence(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: list[Any] = [
        "--train.steps",
        "5",
        "--train.batch-size",
        "3",
        "--optimizer.learning-rate",
        "0.002",
    ]
    code, out, _ = ending(train_command, ["--resume", str(copy), *options], capsys)
    assert code == 0
    assert "optimizer.learning_rate: 0.01 → 0.002 (the rate of step 5 is 0.002 instead of 0.01)" in out
    assert "train.batch_size: 4 → 3 (from step 5 on, the batches of a run that always had this setting" in out
