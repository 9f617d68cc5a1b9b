"""The demo's report and the data check's page in a browser: readable at every width, in both colour schemes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl.report.data_page import survey_page
from refimpl.report.headlines.demo import demo_headlines
from refimpl.report.noised_image import example_image
from refimpl.report.run_page import Criterion, Grid, render_report
from tests.data.survey.test_survey import BUCKETS, survey, table_of
from tests.report.test_run_page import HOSTILE, full_content
from tests.studio.page.browser import chromium, looked_at

__all__ = ["chromium"]


def test_reports_are_readable(chromium: Any, tmp_path: Path) -> None:
    table = table_of([(64, 64), (20, 400), (9, 9)], bad={HOSTILE: "empty"})
    criteria = [Criterion("a", 0.1, "< 1", True), Criterion("b", 2.0, "< 1", False)]
    full = full_content(HOSTILE)
    told = demo_headlines(criteria, "photograph, cat", 78, 64, 3_000_000)
    pages = {
        "demo": render_report(replace(full, criteria=criteria, headlines=told, noised=example_image(128),
                                      samples=[Grid("g", full.originals, ["x" * 90] * 3)])),
        "data": survey_page("x" * 200, survey(table, BUCKETS), 5),
    }  # fmt: skip
    page = chromium.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    for name, markup in pages.items():
        (tmp_path / f"{name}.html").write_text(markup)
        page.goto((tmp_path / f"{name}.html").as_uri())
        looked_at(page)
    page.close()
    assert said == []
