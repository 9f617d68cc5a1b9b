"""What a continued run may change, what follows from it, and what it may not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refimpl.errors import InputError
from refimpl.interop.run.run_folder import write_config
from refimpl.run.config import Config
from refimpl.tables import to_table
from refimpl.train.setup.resumed import (
    CHANGEABLE,
    CONSEQUENCES,
    check_changes,
    flat,
    own_settings,
    record_settings,
    settled,
    without_number,
)
from tests.train import runs

STAGES = [{"from_step": 0, "buckets": runs.BUCKETS}, {"from_step": 3, "buckets": runs.BUCKETS}]


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Callable[..., Path]:
    """folder(**sections): a run folder with its settings alone, and the checkpoints `steps` as (step, state)."""

    def make(states: dict[int, dict[str, int]] | None = None, **sections: Any) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        write_config(run, to_table(runs.config(root, run, **sections)))
        for step, state in (states or {}).items():
            place = run / "checkpoints" / f"step-{step:08d}"
            place.mkdir(parents=True)
            (place / "manifest.json").write_text("{}")
            (place / "state.json").write_text(json.dumps(state))
        return run

    return make


def changed(run: Path, section: str, **values: Any) -> Config:
    config = own_settings(run)
    return replace(config, **{section: replace(getattr(config, section), **values)})


def test_the_tables_name_settings_that_exist(root: Path, tmp_path: Path) -> None:
    known = {without_number(key) for key in flat(to_table(runs.config(root, tmp_path, stages=STAGES)))}
    assert CHANGEABLE | set(CONSEQUENCES) <= known
    # A preset may ask for more steps, and the rate follow; or for what has no effect.
    assert CHANGEABLE & set(CONSEQUENCES) == {"train.steps", "train.accumulate"}


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("train", {"steps": 9}, "train.steps: 4 → 9"),
        (
            "train",
            {"batch_size": 2},
            "train.batch_size: 4 → 2 (from step 3 on, the batches of a run that always",
        ),
        (
            "train",
            {"micro_batches": 8},
            "train.micro_batches: 2 → 8 (from step 3 on, the batches of a run that",
        ),
        (
            "train",
            {"backend": "kernel"},
            "train.backend: reference → kernel (rounds differently: from step 3 on",
        ),
        ("train", {"log_every": 7}, "train.log_every: 1 → 7"),
        (
            "train",
            {"accumulate": 3},
            "train.accumulate: 1 → 3 (no effect: the run keeps its train.micro_batches, 2)",
        ),
        (
            "optimizer",
            {"learning_rate": 0.5},
            "optimizer.learning_rate: 0.01 → 0.5 (the rate of step 3 is 0.5 ins",
        ),
        (
            "optimizer",
            {"decay": "cosine"},
            "optimizer.decay: constant → cosine (the rate of step 3 is 0.005 instead",
        ),
        ("sample", {"steps": 5}, "sample.steps: 2 → 5"),
        ("data", {"heldout": "x"}, "data.heldout:  → x (held-out losses before and after do not compare)"),
    ],
)
def test_a_deliberate_change_is_shown_with_its_consequence(
    section: str, values: dict[str, Any], line: str, folder: Callable[..., Path]
) -> None:
    run = folder({2: {"step": 2, "ranks": 2, "accumulate": 1}})
    lines = check_changes(changed(run, section, **values), run, is_deliberate=True)
    assert len(lines) == 1
    assert lines[0].startswith(line)
    assert lines[0] == line or "(" in line  # of a consequence, its beginning is enough


def test_steps_of_a_cosine_change_the_rate(folder: Callable[..., Path]) -> None:
    run = folder(
        {2: {"step": 2, "ranks": 1, "accumulate": 1}}, optimizer={"learning_rate": 1.0, "decay": "cosine"}
    )
    (line,) = check_changes(changed(run, "train", steps=8), run, is_deliberate=True)
    assert line == "train.steps: 4 → 8 (the rate of step 3 is 0.854 instead of 0.5)"


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("train", {"seed": 1}), ("unet", {"channels": 16}), ("diffusion", {"offset_noise": 0.1}),
        ("data", {"plan": "paper"}), ("data", {"folder": "x"}), ("data", {"shuffle_tags": True}),
        ("train", {"ema_decay": 0.5}), ("train", {"caption_dropout": 0.5}), ("optimizer", {"beta1": 0.5}),
        ("tag_weights", {"enabled": False}),
    ],
)  # fmt: skip
def test_what_defines_the_run_is_refused_by_name(
    section: str, values: dict[str, Any], folder: Callable[..., Path]
) -> None:
    run = folder()
    ((name, value),) = values.items()
    with pytest.raises(InputError) as error:
        check_changes(changed(run, section, **values), run, is_deliberate=True)
    assert f"{section}.{name}: the run has " in str(error.value)
    assert f", now {value!r}\nThese define the run; begin a new one" in str(error.value)


def test_settings_of_stages_are_compared_one_by_one(folder: Callable[..., Path]) -> None:
    run = folder(stages=STAGES)
    config = own_settings(run)
    stages = (config.stages[0], replace(config.stages[1], learning_rate=0.25, batch_size=2))
    lines = check_changes(replace(config, stages=stages), run, is_deliberate=True)
    assert [line.partition(" (")[0] for line in lines] == [
        "stages.1.batch_size: 0 → 2", "stages.1.learning_rate: 0.0 → 0.25",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"stages\.1\.from_step: the run has 3, now 2"):
        check_changes(replace(config, stages=(stages[0], replace(stages[1], from_step=2))), run, True)


def test_a_preset_may_not_change_what_a_user_may(folder: Callable[..., Path]) -> None:
    """It may have changed since, behind its user's back."""
    run = folder()
    assert check_changes(changed(run, "train", steps=9), run, is_deliberate=False) == []
    with pytest.raises(InputError, match=r"train\.batch_size: the run has 4, now 2$"):
        check_changes(changed(run, "train", batch_size=2), run, is_deliberate=False)


@pytest.mark.parametrize(
    ("states", "train", "count"),
    [
        ({}, {}, 0),  # nothing is known before the first checkpoint of an earlier version
        ({}, {"micro_batches": 6}, 6),
        ({2: {"ranks": 2, "accumulate": 3}, 4: {"ranks": 1, "accumulate": 6}}, {}, 6),
        ({2: {"ranks": 3, "micro_batches": 7}}, {"accumulate": 9}, 7),
        ({2: {"ranks": 2, "accumulate": 3}, 4: {"step": 4}}, {}, 6),
    ],
)
def test_the_runs_own_micro_batches_are_found(
    states: dict[int, dict[str, int]], train: dict[str, int], count: int, folder: Callable[..., Path]
) -> None:
    run = folder(states, train=train)
    assert own_settings(run).train.micro_batches == count
    config = changed(run, "train", out=str(run), resume=True, micro_batches=0, accumulate=5)
    assert settled(config, runs.ALONE).train.micro_batches == (count or 5)
    given = replace(config, train=replace(config.train, micro_batches=3))
    assert settled(given, runs.ALONE).train.micro_batches == 3
    another = replace(config, train=replace(config.train, resume=False))
    assert settled(another, runs.ALONE).train.micro_batches == 5


def test_a_new_run_keeps_what_its_ranks_make_it(root: Path, tmp_path: Path) -> None:
    config = runs.config(root, tmp_path, train={"accumulate": 3})
    assert settled(config, runs.ALONE).train.micro_batches == 3
    few = runs.config(root, tmp_path, train={"micro_batches": 2})
    many = SimpleNamespace(size=3, on_main=lambda action: action())
    with pytest.raises(InputError, match=r"train\.micro_batches 2 are fewer than the 3 ranks"):
        settled(few, many)  # pyright: ignore


def test_what_the_run_goes_on_with_is_recorded(folder: Callable[..., Path]) -> None:
    run = folder()
    before = (run / "config.json").read_bytes()
    record_settings(changed(run, "train", resume=True, accept_data=True, out="elsewhere"), run)
    assert (run / "config.json").read_bytes() == before
    record_settings(changed(run, "train", resume=True, steps=9), run)
    assert own_settings(run).train.steps == 9
    assert not own_settings(run).train.resume


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.json").unlink(), r"run' is not a run folder; name one"),
        (lambda run: (run / "config.json").write_text("{"), r"config\.json cannot be read as a run's settings"),
        (lambda run: (run / "config.json").write_text("[]"), r"config\.json cannot be read as a run's settings"),
        (lambda run: (run / "config.json").write_text('{"train": {"warp": 9}}'), r"unknown key train\.warp.*newer"),
        (lambda run: (run / "manifest.json").write_text("{}"), r"run is a checkpoint; name its run, "),
    ],
)  # fmt: skip
def test_folders_without_settings_are_named(
    spoil: Callable[[Path], Any], message: str, folder: Callable[..., Path]
) -> None:
    run = folder()
    spoil(run)
    with pytest.raises(InputError, match=message):
        own_settings(run)
    with pytest.raises(InputError, match=r"--resume: '.*nowhere' does not exist, so it is not a run folder"):
        own_settings(run / "nowhere", "--resume")
