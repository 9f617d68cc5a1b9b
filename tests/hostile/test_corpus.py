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
from tests.hostile.corpus import CANARY, CORPUS, inspected, many
from tests.hostile.crafted import CRAFTED

EVERY = CORPUS | CRAFTED

REFUSAL_SECONDS, REFUSAL_BYTES = 1.0, 100e6  # of a header of a million names
SECONDS = 10.0  # of one input, on a busy machine; the slowest takes a second


def test_the_corpus_is_large() -> None:
    assert len(EVERY) == len(CORPUS) + len(CRAFTED) >= 100


@pytest.mark.parametrize("name", EVERY)
def test_a_hostile_input_is_refused_in_words(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = EVERY[name]
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


@pytest.mark.parametrize("entry", ['"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', '"t%d":0'])
def test_a_million_names_cost_neither_time_nor_memory(entry: str, tmp_path: Path) -> None:
    inspected(many(entry))(tmp_path)
    path = tmp_path / "model.safetensors"
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(InputError, match="more than 250000 strings, too many for a model"):
        safetensors_file.read(path)
    took, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < REFUSAL_SECONDS
    assert peak < REFUSAL_BYTES
