"""Headlines of a run: each says what is wrong with its numbers, and a run in which all goes well says so."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from refimpl.report.headlines.run import run_headlines
from refimpl.report.page import Headline
from refimpl.report.runs.read_run import read_run
from tests.report.runs.runs import RIGHT_TO_LEFT, rows, write_run
from tests.report.test_run_page import shown


def told(folder: Path, metrics: Sequence[dict[str, Any]], **more: Any) -> list[Headline]:
    return run_headlines(read_run(write_run(folder / "run", metrics, **more)))


def only(headlines: Sequence[Headline], words: str) -> Headline:
    (found,) = [each for each in headlines if words in each.text]
    return found


def test_a_finished_run(tmp_path: Path) -> None:
    found = told(tmp_path, rows(40))
    assert {each.severity for each in found} == {"good"}
    assert only(found, "fell from 1.1000 to").severity == "good"
    assert "refimpl sample" in only(found, "taken all of its 400 steps").next


def test_a_run_on_its_way(tmp_path: Path) -> None:
    found = only(told(tmp_path, rows(12)), "stands at step 120 of 400; it has no checkpoint")
    assert (found.severity, "refimpl train --resume" in found.next) == ("note", True)


def test_a_heldout_loss_that_rises(tmp_path: Path) -> None:
    metrics = [
        {"step": step, "heldout_loss": loss} for step, loss in ((1, 1.0), (2, 0.5), (3, 0.54), (4, 0.56))
    ]
    found = only(told(tmp_path, metrics), "lowest at step 2 (0.5000) and has risen to 0.5600")
    assert (found.severity, "checkpoint near that step" in found.next) == ("warning", True)


def test_a_heldout_loss_that_wavers_is_no_warning(tmp_path: Path) -> None:
    metrics = [{"step": step, "heldout_loss": loss} for step, loss in ((1, 1.0), (2, 0.5), (3, 0.54))]
    assert (
        only(told(tmp_path, metrics), "fell from 1.0000 to 0.5400; it was lowest at step 2").severity
        == "good"
    )


@pytest.mark.parametrize(("faults", "severity"), [(4, "warning"), (5, "bad")])
def test_skipped_steps(tmp_path: Path, faults: int, severity: str) -> None:
    listed = [
        {"step": n, "not_finite": "loss", "images": [{"id": f"i{k}"} for k in range(6)]}
        for n in range(faults)
    ]
    found = only(told(tmp_path, rows(40), faults=listed), f"{faults} of 400 steps were skipped")
    assert found.severity == severity
    assert shown(found.listed[0]) == f"step {faults - 1}, loss: i0, i1, i2, i3, …"


def test_what_a_file_names_is_isolated(tmp_path: Path) -> None:
    """Letters that are read from right to left must not reorder the numbers and words beside them."""
    faults = [{"step": 7, "not_finite": "loss", "images": [{"id": f"{RIGHT_TO_LEFT}<b>"}, {"id": "b"}]}]
    bad = [{"path": RIGHT_TO_LEFT, "kind": "empty", "reason": "12 bytes"}]
    found = told(tmp_path, rows(40), faults=faults, quarantine=bad)
    (step,) = only(found, "were skipped").listed
    isolated = f"<bdi>{RIGHT_TO_LEFT}&lt;b&gt;</bdi>"
    assert step == f"step <bdi>7</bdi>, <bdi>loss</bdi>: {isolated}, <bdi>b</bdi>"
    (image,) = only(found, "turned out bad").listed
    assert image == f"<bdi>{RIGHT_TO_LEFT}</bdi>: <bdi>12 bytes</bdi>"


def test_quarantined_images_are_listed(tmp_path: Path) -> None:
    bad = [{"path": f"{n}.png", "kind": "empty", "reason": "empty"} for n in range(30)]
    found = only(told(tmp_path, rows(40), quarantine=bad), "30 images turned out bad")
    assert (found.severity, shown(found.listed[0]), found.listed[-1]) == (
        "warning",
        "29.png: empty",
        "and 10 more",
    )


def test_waiting_for_images(tmp_path: Path) -> None:
    metrics = [row | {"loader_stall": 0.4} if row["step"] > 200 else row for row in rows(40)]
    assert only(told(tmp_path, metrics), "40% of the time goes into waiting").severity == "warning"


def test_a_terminal_step_without_weight(tmp_path: Path) -> None:
    metrics = [{"step": 0, "weight_mass": {"from_timestep": 950, "share": 1e-6}}, *rows(40)[1:]]
    assert (
        only(told(tmp_path, metrics), "0.0001% of the loss weight lies on the noisiest").severity == "warning"
    )
    (tmp_path / "b").mkdir()
    settings = {"train": {"steps": 400}, "diffusion": {"zero_terminal_snr": False}}
    assert not [each for each in told(tmp_path / "b", metrics, settings=settings) if "noisiest" in each.text]


def test_nothing_logged(tmp_path: Path) -> None:
    assert only(told(tmp_path, []), "has logged no row").severity == "bad"
