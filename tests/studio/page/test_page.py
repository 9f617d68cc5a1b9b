"""The studio's page in a browser: quick, live, readable, usable by keyboard, inert to hostile words."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refimpl.commands.data.index import build
from refimpl.data.config import BucketConfig
from refimpl.data.index.record import IndexOptions
from refimpl.run.config import Config
from refimpl.tables import from_table
from tests.data.index.test_parallel_read import build_here
from tests.report.runs.runs import HOSTILE, RIGHT_TO_LEFT, rows, write_run
from tests.studio.page.browser import chromium, looked_at, read_in_order

pytest.importorskip("starlette", reason="starlette is not installed: the extra studio has it")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra studio has it")

__all__ = ["chromium"]
MANY = 100_000  # metric rows
FIRST_PAINT = 1.0  # s
TALLEST = 16_000_000  # px of an element, half of what Chromium cuts it at
LIVE = 2.0  # s from a row written to the row on the page
TOKEN = "token"


def serving(runs: Path, index: Path | None, control: bool = False) -> tuple[str, Callable[[], None]]:
    """Address of a studio that answers from a thread, and what ends it."""
    import uvicorn

    from refimpl.studio.app import make_app
    from refimpl.studio.browsed import browse
    from refimpl.studio.run_routes import Runs
    from refimpl.studio.serve import listening

    config = replace(from_table(Config, {}, "the defaults"), buckets=BucketConfig(preset="sdxl"))
    at = listening(0)
    port = at.getsockname()[1]
    app = make_app(Runs(runs, control), browse(index, config) if index else None, TOKEN, port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))  # pyright: ignore
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()

    def end() -> None:
        server.should_exit = True
        thread.join(10)
        at.close()

    return f"http://127.0.0.1:{port}/?token={TOKEN}", end


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images whose names, captions and tags are hostile; one has since been deleted."""
    root = tmp_path_factory.mktemp("data")
    for number in range(40):
        name = f"<img src=x onerror=alert(1)>{number:02}"
        pixels = np.full((48 + number, 64, 3), 6 * number, np.uint8)
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        tag = "<script>document.title = 'hacked'<&sol;script>"
        (root / "images" / f"{name}.txt").write_text(
            f"{tag}, artist:{HOSTILE.replace('/', '')}, number {number}"
        )
    build((str(root / "images"),), root / "index", IndexOptions(), 1, show=False)
    sorted((root / "images").glob("*.png"))[2].unlink()
    return root / "index"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the newer of them hostile."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "older", rows(30), {"train": {"steps": 400, "seed": 7}})
    time.sleep(0.02)
    bad = [{"path": HOSTILE, "kind": "<i>", "reason": HOSTILE}]
    write_run(root / "<b>newer", rows(40), grids=[100, 200], quarantine=bad)
    return root


@pytest.fixture(scope="module")
def address(runs: Path, index: Path) -> Iterator[str]:
    where, end = serving(runs, index)
    yield where
    end()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page of a browser of its own, which must say nothing on its console but what it could not load."""
    context = chromium.new_context()
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    assert "hacked" not in opened.title()
    context.close()
    assert [line for line in said if not line.startswith("Failed to load resource")] == []


def test_runs_are_read_compared_and_looked_at(page: Any, address: str, runs: Path) -> None:
    page.goto(address)
    page.get_by_role("img", name=re.compile(r"^Loss\. .*at step 400")).wait_for()
    assert page.locator(".run-list .name").all_inner_texts() == ["<b>newer", "older"]
    assert page.locator(".sample-rows .label").all_inner_texts()[1] == HOSTILE
    assert HOSTILE in page.locator(".run-box table").first.inner_text()
    looked_at(page)
    page.get_by_role("checkbox").nth(1).check()
    page.get_by_role("heading", name="Settings that differ").wait_for()
    assert "train.seed" in page.locator("table").last.inner_text()
    assert page.locator(".u-legend").first.inner_text().count("older") == 2  # its loss, and the held-out one
    looked_at(page)
    assert page.locator(".actions button").count() == 0  # only with --control


def test_words_from_right_to_left_reorder_nothing_beside_them(page: Any, tmp_path: Path) -> None:
    """Names of runs and folders, paths, prompts and tags; what orders text by itself is spelled out."""
    turned = "\u202etxt.exe"
    for number, name in enumerate((RIGHT_TO_LEFT, turned)):
        settings = {"train": {"steps": 400, "seed": number}, "sample": {"prompts": [turned, RIGHT_TO_LEFT]}}
        write_run(tmp_path / "runs" / name, rows(30), settings, grids=[100])
    images = tmp_path / RIGHT_TO_LEFT
    images.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(images / f"{name}.png")
        (images / f"{name}.txt").write_text(f"{RIGHT_TO_LEFT}, {turned}")
    (images / RIGHT_TO_LEFT).with_suffix(".png").write_bytes(b"no image")
    build_here(images, tmp_path / RIGHT_TO_LEFT[::-1], max_bad_share=1.0)
    address, end = serving(tmp_path / "runs", tmp_path / RIGHT_TO_LEFT[::-1])
    try:
        page.goto(address)
        page.get_by_role("checkbox").nth(1).check()
        page.get_by_role("heading", name="Settings that differ").wait_for()
        read_in_order(page, RIGHT_TO_LEFT)
        spelled = turned.replace("\u202e", r"\u202e")
        assert sorted(page.locator(".run-list .name").all_inner_texts()) == sorted((RIGHT_TO_LEFT, spelled))
        assert set(page.locator(".u-legend bdi").all_inner_texts()) == {RIGHT_TO_LEFT, spelled}
        assert page.locator(".sample-rows .label").all_inner_texts() == [spelled, RIGHT_TO_LEFT] * 2
        page.get_by_role("link", name="Data").click()
        page.locator("#cell-0").click()
        page.get_by_role("button", name=spelled).wait_for()
        page.get_by_text("not an image: 1 files").click()
        read_in_order(page, RIGHT_TO_LEFT)
        page.get_by_role("button", name=spelled).click()  # asks for the tag as it is
        page.get_by_text("2 images", exact=True).wait_for()
    finally:
        end()


def test_runs_by_keyboard(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("img", name=re.compile(r"^Loss\.")).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "view"
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("output").inner_text() == "step 100"
    assert slider.get_attribute("aria-valuetext") == "step 100"
    plot = page.get_by_role("img", name=re.compile(r"^Loss\.")).first
    plot.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = plot.screenshot()
    page.keyboard.press("+")
    page.wait_for_timeout(100)
    assert plot.screenshot() != before
    page.keyboard.press("0")


def test_data_by_keyboard(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="Data").click()
    page.locator(".wall img").first.wait_for()
    wall = page.get_by_role("listbox")
    assert page.locator(".wall .cell").count() <= 60
    wall.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.locator(".look .frame").wait_for()
    assert wall.get_attribute("aria-activedescendant") == "cell-0"
    look = page.locator(".look").inner_text()
    assert "<img src=x onerror=alert(1)>00" in look
    assert HOSTILE.replace("/", "") in look
    looked_at(page)
    page.keyboard.press("End")
    page.locator("#cell-39[aria-selected=true]").wait_for()
    assert wall.get_attribute("aria-activedescendant") == "cell-39"
    page.get_by_label("tag").fill("number 5")
    page.keyboard.press("Enter")
    page.get_by_text("1 image", exact=True).wait_for()


def test_millions_of_rows_fit_under_the_browsers_tallest_element(page: Any, address: str) -> None:
    """And the wheel and the keys still move by what they say."""
    many = 6_000_000

    def rows_of(route: Any) -> None:
        query = dict(part.split("=") for part in route.request.url.partition("?")[2].split("&"))
        first = int(query["from"])
        found = [
            {"row": row, "id": str(row), "width": 9, "height": 9, "enlarged": False, "thumbnail": "/none"}
            for row in range(first, min(many, first + int(query["count"])))
        ]
        route.fulfill(json={"total": many, "from": first, "rows": found})

    page.route("**/api/data/rows?*", rows_of)
    page.goto(f"{address}#data")
    page.locator("#cell-0").wait_for()
    wall = page.get_by_role("listbox")
    assert page.locator(".wall .rail").evaluate("each => each.clientHeight") < TALLEST
    wall.hover()
    page.mouse.wheel(0, 1000)
    page.locator("#cell-0").wait_for(state="detached")
    seen = [
        int(name[5:]) for name in page.locator(".wall .cell").evaluate_all("all => all.map(each => each.id)")
    ]
    assert 0 < min(seen) < 100
    wall.focus()
    page.keyboard.press("End")
    page.locator(f"#cell-{many - 1}[aria-label='{many - 1}, 9 by 9']").wait_for()
    assert page.locator(".wall .cell").count() < 200


def test_the_first_paint_with_many_rows(page: Any, tmp_path: Path) -> None:
    """And the curves come soon after, and a new row is on the page while it is looked at."""
    folder = write_run(tmp_path / "runs" / "long", [], {"train": {"steps": 2 * MANY}})
    lines = (
        f'{{"step": {step}, "loss": {1 / step:.6f}, "learning_rate": 0.001}}\n' for step in range(1, MANY + 1)
    )
    (folder / "metrics.jsonl").write_text("".join(lines))
    address, end = serving(tmp_path / "runs", None)
    try:
        page.goto(address)
        page.get_by_role("img", name=re.compile(r"^Loss\. .*at step 100000\b")).wait_for()
        drawn = page.evaluate("performance.now()") / 1000
        painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        print(f"first paint {painted:.2f} s, curves {drawn:.2f} s")
        assert painted < FIRST_PAINT
        started = time.monotonic()
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": MANY + 7, "loss": 0.5}) + "\n")
        page.get_by_role("img", name=re.compile(r"^Loss\. .*at step 100007\b")).wait_for()
        print(f"a new row after {time.monotonic() - started:.2f} s")
        assert time.monotonic() - started < LIVE
    finally:
        end()


def test_the_page_stays_up_when_a_run_vanishes(page: Any, tmp_path: Path) -> None:
    import shutil

    write_run(tmp_path / "runs" / "a", rows(3))
    write_run(tmp_path / "runs" / "b", rows(3))
    address, end = serving(tmp_path / "runs", None)
    try:
        page.goto(address)
        page.locator(".run-list li").nth(1).wait_for()
        shutil.rmtree(tmp_path / "runs" / "b")
        page.locator(".run-list li").nth(1).wait_for(state="detached")
        assert page.locator("#alive").inner_text() == "live"
    finally:
        end()
    page.get_by_text("the studio does not answer; is it still running?").wait_for()


def test_a_run_whose_rows_cannot_be_read_is_shown_without_them(page: Any, tmp_path: Path) -> None:
    """With the reason, until they can be; no longer when it isn't looked at."""
    run = write_run(tmp_path / "runs" / "a", rows(3), grids=[10])
    (run / "metrics.jsonl").rename(tmp_path / "elsewhere")
    (run / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    address, end = serving(tmp_path / "runs", None)
    line = "metrics.jsonl can't be read: links in a run folder are not followed"
    try:
        page.goto(address)
        said = page.locator("#problems").get_by_text(line)
        said.wait_for()
        page.get_by_role("slider").wait_for()
        assert page.get_by_role("checkbox").is_checked()
        page.get_by_role("checkbox").uncheck()
        said.wait_for(state="detached")
        page.get_by_role("checkbox").check()
        said.wait_for()
        (run / "metrics.jsonl").unlink()
        (tmp_path / "elsewhere").rename(run / "metrics.jsonl")
        page.get_by_role("img", name=re.compile(r"^Loss\. .*at step 30\b")).wait_for()
        said.wait_for(state="detached")
    finally:
        end()


def test_actions_are_asked_for(page: Any, tmp_path: Path) -> None:
    """Only a run that is being trained can be asked; one that has ended by then shows the server's line."""
    from tests.studio.asking import begin_training

    run = tmp_path / "runs" / "a"
    write_run(run, rows(3))
    begin_training(run)
    address, end = serving(tmp_path / "runs", None, control=True)
    try:
        page.goto(address)
        button = page.get_by_role("button", name="Sample now")
        button.click()
        page.get_by_text("asked for: sample").wait_for()
        assert json.loads((run / "control.json").read_text()) == {"actions": ["sample"]}
        (run / ".lock").unlink()
        button.wait_for(state="hidden")
    finally:
        end()
