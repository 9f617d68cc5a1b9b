"""`refimpl report`: the page of any run is whole, inert whatever the run's files say, and draws in a browser."""

import base64
import hashlib
import json
import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refimpl.commands.main import dispatch
from refimpl.errors import InputError
from refimpl.report.page import SCRIPTS, static
from refimpl.report.run_page import ReportContent, write_report
from refimpl.report.runs.read_run import MOST_GRIDS, POINTS, embedded_grids, embedded_series, read_run
from refimpl.report.runs.run_report import run_report, write_run_report
from refimpl.sample.images.picture_files import write_grid
from tests.report.runs.runs import HOSTILE, RIGHT_TO_LEFT, SETTINGS, rows, write_run
from tests.report.test_run_page import Reader
from tests.studio.page.browser import chromium, looked_at, read_in_order
from tests.tolerances import FLOAT64_ROUNDING

__all__ = ["chromium"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with samples, a fault and a quarantined image, whose words are hostile."""
    return write_run(
        tmp_path_factory.mktemp("runs") / "run",
        rows(40),
        grids=[100, 200, 300],
        faults=[
            {
                "step": 12,
                "not_finite": "loss",
                "images": [{"id": HOSTILE, "rank": 0, "timestep": 9, "loss": None}],
            }
        ],
        quarantine=[{"path": HOSTILE, "kind": "damaged", "reason": HOSTILE}],
    )


def held(markup: str) -> dict[str, Any]:
    """What the page's script reads."""
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', markup)[0])


def test_the_command_writes_a_page_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["report", str(run)])
    path = run / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    dispatch(["report", str(run)])  # a report is written anew
    shown = "".join(Reader(path.read_text()).visible)
    for words in (
        "1 of 400 steps were skipped",
        "step 12, loss: <script>",
        "1 images turned out bad",
        "taken all of its 400 steps",
        "train.seed",
    ):
        assert words in shown, words


def test_another_report_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows(3))
    write_report(folder / "report.html", ReportContent("the demo's"))
    with pytest.raises(InputError, match="another report, such as the demo's; name a file"):
        write_run_report(folder)
    assert write_run_report(folder, tmp_path / "new" / "r.html").is_file()
    assert "the demo" in (folder / "report.html").read_text()


def test_only_the_scripts_of_the_package_may_run(run: Path) -> None:
    reader = Reader(run_report(read_run(run)))
    policy = str(reader.of("meta")[1]["content"])
    allowed = {base64.b64encode(hashlib.sha256(static(name).encode()).digest()).decode() for name in SCRIPTS}
    assert set(re.findall("'sha256-(.*?)'", policy)) == allowed
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    scripts = [
        attributes for attributes in reader.of("script") if attributes.get("type") != "application/json"
    ]
    assert scripts == [{}] * len(SCRIPTS)
    assert not reader.of("img")
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]


def test_the_page_holds_every_series_with_its_extremes(tmp_path: Path) -> None:
    metrics = rows(3 * POINTS)
    metrics[4000] |= {"loss": 99.0}
    series = held(run_report(read_run(write_run(tmp_path / "run", metrics))))["series"]
    assert {"loss", "heldout_loss", "learning_rate", "images_per_second", "mfu", "loss_by_timestep/0"} <= set(
        series
    )
    assert len(series["loss"]["steps"]) == len(series["loss"]["values"]) <= POINTS
    assert max(series["loss"]["values"]) == 99.0
    assert series["loss"]["steps"][-1] == 3 * POINTS * 10


def test_grids_are_spread_over_the_steps_with_their_prompts(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", rows(1), grids=range(0, 600, 10)))
    grids = embedded_grids(run)
    assert len(grids) == MOST_GRIDS
    assert (grids[0]["step"], grids[-1]["step"]) == (0, 590)
    assert grids[0]["prompts"] == SETTINGS["sample"]["prompts"]
    assert (grids[0]["width"], grids[0]["height"], grids[0]["gap"]) == (100, 66, 2)


def test_a_grid_keeps_the_prompts_that_it_was_drawn_for(tmp_path: Path) -> None:
    """The settings have the prompts of the last time that the run was continued."""
    folder = write_run(tmp_path / "run", rows(1), grids=[100])
    write_grid(torch.rand(2, 1, 3, 8, 8), folder / "samples" / "step-00000050.png", ["before", HOSTILE])
    grids = embedded_grids(read_run(folder))
    assert [each["prompts"] for each in grids] == [["before", HOSTILE], SETTINGS["sample"]["prompts"]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json can't be read"),
        ("config.json", "[" * 10**5, "config.json can't be read"),
        ("metrics.jsonl", '{"step": 10, "loss": 1}\n{"step": 20, "lo\n[]\n', "2 lines of metrics.jsonl are no rows"),
        ("samples/step-00000100.png", "no picture", "taken all of its 400 steps"),
        ("faults.jsonl", '{"step": 1}\n{"images": 3}\n', "2 of 400 steps were skipped"),
    ],
)  # fmt: skip
def test_a_damaged_file_leaves_the_rest(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = write_run(tmp_path / "run", rows(40), grids=[100])
    (folder / name).write_text(content)
    assert said in "".join(Reader(run_report(read_run(folder))).visible)


def test_a_decoder_run_has_its_own_curves(tmp_path: Path) -> None:
    metrics = [{"step": step, "l1": 1 / step, "discriminator": 0.5} for step in (10, 20, 30)]
    run = read_run(write_run(tmp_path / "run", metrics, {"decoder": {"steps": 30}}))
    assert set(embedded_series(run)) == {"l1", "discriminator"}
    assert "taken all of its 30 steps" in run_report(run)


def test_a_run_that_logged_nothing_says_so(tmp_path: Path) -> None:
    assert "The run has logged no row." in run_report(read_run(write_run(tmp_path / "run", [])))


def test_a_file_is_told_from_a_missing_folder(run: Path) -> None:
    """The folder that it lies in is most likely the run's."""
    for file in (run / "metrics.jsonl", run / "samples" / "step-00000100.png"):
        with pytest.raises(
            InputError, match=f"{file} is a file; name the folder of a run, such as {file.parent}$"
        ):
            dispatch(["report", str(file)])


def test_a_folder_of_runs_names_one_of_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_run(tmp_path / "runs" / name, [])
    with pytest.raises(
        InputError, match=f"it holds runs: name one of them, such as {tmp_path / 'runs' / 'a'}$"
    ):
        dispatch(["report", str(tmp_path / "runs")])


def test_links_are_not_followed_into_the_page(tmp_path: Path) -> None:
    """The page is made to be sent: what lies outside the run folder stays there."""
    secret = write_run(tmp_path / "secret", rows(40), {"train": {"SECRET": 1}}, grids=[100],
                       faults=[{"step": 1, "not_finite": "SECRET"}], quarantine=[{"path": "SECRET"}])  # fmt: skip
    folder = write_run(tmp_path / "run", rows(3))
    (folder / "config.json").unlink()
    for name in ("config.json", "faults.jsonl", "quarantine.jsonl", "samples"):
        (folder / name).symlink_to(secret / name)
    run = read_run(folder)
    assert (
        "config.json, faults.jsonl, quarantine.jsonl, samples: links in a run folder are not followed"
        in run.problems
    )
    assert "SECRET" not in run_report(run)
    assert embedded_grids(run) == []
    (folder / "samples").unlink()
    (folder / "samples").mkdir()
    (folder / "samples" / "step-00000100.png").symlink_to(secret / "samples" / "step-00000100.png")
    assert embedded_grids(read_run(folder)) == []
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(secret / "metrics.jsonl")
    with pytest.raises(
        InputError, match=r"metrics.jsonl cannot be read: links in a run folder are not followed"
    ):
        read_run(folder)


@pytest.mark.parametrize(("make", "said"), [(False, "no such folder"), (True, "is no run folder")])
def test_what_is_no_run_is_refused(tmp_path: Path, make: bool, said: str) -> None:
    if make:
        (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match=said):
        dispatch(["report", str(tmp_path / "x")])
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        dispatch(["report", str(tmp_path / "x"), "--out", str(tmp_path)])


def test_names_from_right_to_left_in_a_browser(tmp_path: Path, chromium: Any) -> None:
    """They reorder nothing beside them; without their isolation they would."""
    images = [{"id": RIGHT_TO_LEFT}, {"id": RIGHT_TO_LEFT}]
    bad = [{"path": RIGHT_TO_LEFT, "kind": "empty", "reason": "12 bytes"}]
    folder = write_run(tmp_path / RIGHT_TO_LEFT, rows(3), quarantine=bad,
                       faults=[{"step": 7, "not_finite": "loss", "images": images}])  # fmt: skip
    page = chromium.new_page()
    page.goto(write_run_report(folder).as_uri())
    for each in page.get_by_text("Show the list").all():
        each.click()
    read_in_order(page, RIGHT_TO_LEFT)
    page.add_style_tag(content="bdi { unicode-bidi: normal !important; }")
    with pytest.raises(AssertionError):
        read_in_order(page, RIGHT_TO_LEFT)
    page.close()


def test_a_smoothed_curve(run: Path, tmp_path: Path, chromium: Any) -> None:
    """It begins at the first value, stays within the values so far, and halves a step after one half-life."""
    page = chromium.new_page()
    page.goto(write_run_report(run, tmp_path / "r.html").as_uri())

    def smoothed(values: list[float]) -> list[float]:
        return page.evaluate("refimplCharts.smoothed", values)

    half_life = 40
    assert smoothed([0.0] * 49 * half_life + [1.0] * half_life)[-1] == pytest.approx(
        0.5, rel=FLOAT64_ROUNDING
    )
    for values in ([3.0], [-1e6, 1e6, 0.0], np.random.default_rng(0).normal(size=500).tolist()):
        averaged, slack = smoothed(values), FLOAT64_ROUNDING * max(map(abs, values))
        assert len(averaged) == len(values)
        assert averaged[0] == pytest.approx(values[0], abs=slack)
        for value, least, most in zip(
            averaged, accumulate(values, min), accumulate(values, max), strict=True
        ):
            assert least - slack <= value <= most + slack
    page.close()


def test_in_a_browser(run: Path, tmp_path: Path, chromium: Any) -> None:
    """From a file, without a network: the charts are drawn, the slider moves by keys, and hostile words are text."""
    path = write_run_report(run, tmp_path / "r.html")
    page = chromium.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    assert page.locator(".chart canvas").count() >= 8
    plot = page.get_by_role("img", name=re.compile("^Loss\\. .*at step 400")).first
    assert plot.is_visible()
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("output").inner_text() == "step 200"
    assert page.locator(".sample-rows .label").all_inner_texts() == ["completely black", HOSTILE]
    looked_at(page)
    assert page.title() == "Run run"
    assert said == []
    page.close()
