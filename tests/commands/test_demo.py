"""The demo judges itself by the figures it promises."""

from dataclasses import replace
from pathlib import Path

import pytest

from refimpl.commands import demo
from refimpl.commands.demo import (
    AROUND,
    COLOUR_PROMPTS,
    OTHER_STEPS,
    DemoCommand,
    demo_command,
    demo_config,
    expected_seconds,
    judge,
)
from refimpl.errors import InputError
from refimpl.sample.grids import scale_sigma_max
from tests.tolerances import FLOAT64_ROUNDING

BLACK, WHITE, RED = [0.01, 0.02, 0.03], [0.97, 0.98, 0.96], [0.95, 0.05, 0.04]
ROWS = [{"step": 0, "heldout_loss": 0.98}, {"step": 10, "loss": 0.5}, {"step": 20, "heldout_loss": 0.3}]


def samples(infinite: list[list[float]], finite: list[list[float]]) -> dict:
    return {"infinite": {"mean_rgb": infinite}, "finite": {"mean_rgb": finite, "start_sigma": 0.9125}}


def good() -> dict:
    return samples([BLACK, WHITE, RED], [[0.4] * 3, [0.6] * 3, [0.5, 0.4, 0.4]])


def missed(rows: list, psnr: list[float], drawn: dict) -> list[str]:
    criteria, _ = judge(rows, psnr, drawn, 24.0)
    return [criterion.name for criterion in criteria if not criterion.passed]


def test_a_good_run_passes_every_criterion() -> None:
    criteria, measured = judge(ROWS, [25.0, 24.0], good(), 24.0)
    assert all(criterion.passed for criterion in criteria)
    assert len(criteria) == 8
    assert set(measured["mean_rgb_from_infinity"]) == set(COLOUR_PROMPTS)


@pytest.mark.parametrize(
    ("rows", "psnr", "infinite", "finite", "name"),
    [
        (ROWS, [23.9], [BLACK, WHITE, RED], [[0.4] * 3, [0.6] * 3, RED], "PSNR"),
        (ROWS, [25.0], [[0.12] * 3, WHITE, RED], [[0.4] * 3, [0.6] * 3, RED], "black"),
        (ROWS, [25.0], [BLACK, [0.88] * 3, RED], [[0.4] * 3, [0.6] * 3, RED], "white"),
        (ROWS, [25.0], [BLACK, WHITE, [0.75, 0, 0]], [[0.4] * 3, [0.6] * 3, RED], "red"),
        (ROWS, [25.0], [BLACK, WHITE, [0.9, 0.3, 0]], [[0.4] * 3, [0.6] * 3, RED], "green"),
        (ROWS, [25.0], [BLACK, WHITE, [0.9, 0, 0.3]], [[0.4] * 3, [0.6] * 3, RED], "blue"),
        (ROWS, [25.0], [BLACK, WHITE, RED], [BLACK, WHITE, RED], "finite start"),
        (
            [*ROWS, {"step": 30, "heldout_loss": 0.49}],
            [25.0],
            [BLACK, WHITE, RED],
            [[0.4] * 3] * 2 + [RED],
            "loss",
        ),
    ],
)
def test_each_criterion_can_be_missed(rows: list, psnr: list[float], infinite, finite, name: str) -> None:
    names = missed(rows, psnr, samples(infinite, finite))
    assert len(names) == 1
    assert name in names[0]


@pytest.mark.parametrize("short", [False, True])
def test_the_promise_is_the_measured_steps_times_their_number(
    short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.train.setup.pace.autoencoder_step", lambda *_: "autoencoder")
    monkeypatch.setattr("refimpl.train.setup.pace.training_step", lambda *_: "training")
    monkeypatch.setattr(
        "refimpl.train.setup.pace.seconds_per_step", {"autoencoder": 0.25, "training": 0.5}.__getitem__
    )
    steps = {False: (1500, 2400), True: (700, 1300)}[short]
    wanted = AROUND * (steps[0] * 0.25 + (steps[1] + OTHER_STEPS) * 0.5)
    assert expected_seconds(demo_config(DemoCommand(short=short))) == pytest.approx(wanted)


def test_the_first_line_is_the_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise InputError("far enough")

    monkeypatch.setattr(demo, "expected_seconds", lambda _: 754.0)
    monkeypatch.setattr(demo, "_stage", stop)
    with pytest.raises(InputError, match="far enough"):
        demo_command(["--out", str(tmp_path / "demo")])
    first = capsys.readouterr().out.splitlines()[0]
    assert (
        first == f"demo in {tmp_path}/demo: 5 stages, about 13 minutes on this machine, by ten steps measured"
    )


def test_a_folder_in_use_is_refused_by_the_name_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError) as refused:
        demo_command(["--out", str(tmp_path)])
    assert str(refused.value) == f"--out {tmp_path} holds another run; choose an empty folder"
    with pytest.raises(
        InputError, match=r"^--out /proc/x/y cannot be made or read: .*; choose another folder$"
    ):
        demo_command(["--out", "/proc/x/y"])


def test_a_run_without_numbers_does_not_pass() -> None:
    nan = float("nan")
    assert len(missed(ROWS, [nan], samples([[nan] * 3] * 3, [[nan] * 3] * 3))) == 7
    assert any("loss" in name for name in missed([], [25.0], good()))


def test_the_short_demo_is_the_demo_with_fewer_steps() -> None:
    full, short = demo_config(DemoCommand()), demo_config(DemoCommand(short=True))
    assert short.train.steps < full.train.steps
    assert short.latents.train_steps < full.latents.train_steps
    same_latents = replace(short.latents, train_steps=full.latents.train_steps)
    assert replace(short, train=full.train, latents=same_latents) == full


def test_the_finite_start_is_the_papers_rule() -> None:
    assert scale_sigma_max(14.6, 8, 8, base=128) == pytest.approx(0.9125, rel=FLOAT64_ROUNDING)
