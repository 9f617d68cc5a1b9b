"""From the name of an adapter to the adapter, with an answer for whatever is wrong with it."""

import sys
from pathlib import Path

import pytest

from refimpl.conformance.adapter import METHODS, Adapter, offers
from refimpl.conformance.load import SHIPPED, describe, load_adapter, title_of
from refimpl.conformance.registry import chosen_checks
from refimpl.errors import InputError


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of somebody else in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "their_module.py").write_text(
        "import refimpl.errors\n"
        "class Adapter:\n    def schedule(self, zero_snr): ...\n"
        "class Empty: pass\n"
        "class Broken:\n    def __init__(self): raise OSError('no weights')\n"
        "class Refusing:\n    def __init__(self): raise refimpl.errors.InputError('get the weights')\n"
        "def schedule(zero_snr): ...\n"
    )
    (tmp_path / "failing_module.py").write_text("import nowhere\n")
    yield tmp_path
    sys.modules.pop("their_module", None)


def test_an_adapter_needs_nothing_of_ours(theirs: Path) -> None:
    adapter = load_adapter("their_module:Adapter")
    assert [method for method in METHODS if offers(adapter, method)] == ["schedule"]
    assert title_of(adapter) == "Adapter"
    assert describe(adapter) == {"title": "Adapter", "version": "", "links": {}}
    import their_module  # pyright: ignore[reportMissingImports]

    assert offers(their_module, "schedule")  # a module is an adapter as well
    assert title_of(their_module) == "their_module"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_module", "is no adapter: give package.module:Adapter"),
        ("difusers", "nearest is 'diffusers'"),
        ("their_module:", "is no adapter"),
        (":Adapter", "is no adapter"),
        ("their_module:Missing", "their_module has no Missing"),
        ("no_such_module:Adapter", "importing no_such_module raised ModuleNotFoundError"),
        ("failing_module:Adapter", "raised ModuleNotFoundError: No module named 'nowhere'"),
        ("their_module:Empty", "offers nothing: write one of schedule, noised"),
        ("their_module:Broken", "making it raised OSError: no weights"),
        ("their_module:Refusing", "get the weights"),
    ],
)
def test_what_is_wrong_is_said(theirs: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_adapter(name)


def test_the_base_offers_nothing() -> None:
    assert not any(offers(Adapter(), method) for method in METHODS)
    for method in METHODS:
        with pytest.raises(NotImplementedError):
            getattr(Adapter(), method)(*[None] * (getattr(Adapter, method).__code__.co_argcount - 1))
    assert Adapter().link("schedule") == ""


def test_shipped_adapters_that_are_installed_load() -> None:
    assert len(SHIPPED) >= 10
    for name in ("refimpl", "diffusers", "k-diffusion", "k-diffusion-clamped"):
        described = describe(load_adapter(name))
        assert described["version"], name
        assert name == "refimpl" or all(
            link.startswith("https://github.com/") for link in described["links"].values()
        )


def test_checks_are_chosen_by_name_and_by_group() -> None:
    assert set(chosen_checks("grid.length")) == {"grid.length"}
    assert len(chosen_checks("crop")) == 7
    with pytest.raises(InputError, match="nearest is 'schedule'"):
        chosen_checks("schedul")


def test_without_hypothesis_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from refimpl.conformance import registry

    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'not installed: pip install "hypothesis>=6.120"'):
        registry.all_checks()
