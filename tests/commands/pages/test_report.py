"""`refimpl report`: what it prints, and what it refuses."""

from pathlib import Path

import pytest

from refimpl.commands.main import dispatch, usage
from refimpl.errors import InputError
from tests.report.runs.runs import rows, write_run


def test_the_page_goes_where_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", rows(3))
    dispatch(["report", str(run), "--out", str(tmp_path / "new" / "page.html")])
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'page.html'}\n"
    assert "step 30 of 400" in (tmp_path / "new" / "page.html").read_text()
    assert not (run / "report.html").exists()
    assert "write a run's page" in usage()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        dispatch(["report", str(tmp_path), "--out", str(tmp_path)])
