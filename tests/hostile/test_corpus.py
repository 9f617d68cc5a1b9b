"""Every hostile input ends in one message and the right exit code: no code is run, no escape reaches the terminal."""

import re
import time
import tracemalloc
from pathlib import Path

import pytest

from refimpl.commands.main import dispatch
from refimpl.commands.terminal import run_command
from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from tests.hostile.corpus import CANARY, CORPUS, SHOWN, images, many, replaced

SECONDS = 10.0  # of one input, on a busy machine; the slowest takes a second


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 35


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_input_is_refused_in_words(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = CORPUS[name]
    (tmp_path / "input").mkdir()
    words = hostile.build(tmp_path / "input")
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: dispatch(words))
    took = time.monotonic() - began
    out, error = capsys.readouterr()
    assert ended.value.code == hostile.code, out + error
    assert re.search(hostile.says, error if hostile.code else out), out + error
    for text in (out, error):
        assert all(letter.isprintable() or letter in "\n\t" for letter in text.replace("\r", "")), ascii(text)
    assert "Traceback" not in error
    if hostile.code:  # tyro frames its own
        assert error.startswith("error: ") or "Value error" in error
    assert not (tmp_path / CANARY).exists()
    assert took <= SECONDS


def test_a_page_shows_escapes_spelled_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caption = f"{SHOWN}, <script>alert(1)</script>"
    page = tmp_path / "page.html"
    words = images(replaced("good.txt", caption), "data", "check", "{}/images", "--html", str(page))(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: dispatch(words))
    capsys.readouterr()
    assert ended.value.code == 0
    html = page.read_text(encoding="utf-8")
    assert all(letter.isprintable() or letter in "\n\t" for letter in html)
    assert r"\x1b]0;title\x07\x1b[2J\x1b[31m\u202egnp.\x9b\x08" in html
    assert "<script" not in html


@pytest.mark.parametrize("entry", ['"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', '"t%d":0'])
def test_a_million_names_cost_neither_time_nor_memory(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    path.write_bytes(many(entry))
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(InputError, match="more than 250000 strings, too many for a model"):
        safetensors_file.read(path)
    took, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 1
    assert peak < 100e6
