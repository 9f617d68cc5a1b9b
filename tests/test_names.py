"""The nearest name: what was most likely meant."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.names import LONGEST, near_path, nearest

NAMES = ("learning_rate", "warmup_steps", "weight_decay")


def test_a_mistyped_name_finds_what_was_meant() -> None:
    for name in NAMES:
        for wrong in (name[1:], name[:-1], name + "s", name.replace("_", "-"), name[:3] + name[4:]):
            assert nearest(wrong, NAMES) == [name]


def test_the_best_come_first_and_the_unlike_not_at_all() -> None:
    assert nearest("weight_decay_steps", NAMES, count=2) == ["weight_decay", "warmup_steps"]
    assert nearest("zzz", NAMES, least=0.6) == []
    assert len(nearest("zzz", NAMES)) == 1
    assert nearest("a", ()) == []


@given(st.text(), st.lists(st.text(), min_size=1))
def test_a_known_name_is_its_own_nearest(name: str, others: list[str]) -> None:
    assert nearest(name, [*others, name]) == [name]
    assert nearest(name, others)[0] in others


def test_names_of_any_length_are_compared_by_their_ends() -> None:
    begin = "x" * 10**6
    assert nearest(f"{begin}.weihgt", [f"{begin}.bias", f"{begin}.weight"]) == [f"{begin}.weight"]
    assert nearest("y" + "x" * LONGEST, ["x" * LONGEST]) == ["x" * LONGEST]


def test_a_path_that_was_probably_meant_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    (tmp_path / "vae.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert near_path("photo") == "; did you mean photos?"
    assert near_path(tmp_path / "potos") == f"; did you mean {tmp_path}/photos?"
    assert near_path("phtos/2024") == "; did you mean photos/2024?"
    assert near_path("photos/2042/") == "; did you mean photos/2024?"
    assert near_path("vae.safetensor") == "; did you mean vae.safetensors?"
    (tmp_path / ".images.index.parts").mkdir()
    assert near_path("images.index.part") == ""  # hidden, so not meant
    assert near_path(".images.index.part") == "; did you mean .images.index.parts?"
    (tmp_path / "syn.toml").touch()
    assert near_path("absent.toml") == ""  # alike in the suffix alone
    assert near_path("syns.toml") == "; did you mean syn.toml?"
    for far in ("zzz", "zzz/2024", "photos/zzz", "phtos/zzz", "vae.safetensors/x", "", "/zzz/photos"):
        assert near_path(far) == ""
