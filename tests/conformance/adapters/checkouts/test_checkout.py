"""Single functions of a checkout, at one commit, without the rest of it."""

import subprocess
from pathlib import Path

import pytest

from refimpl.conformance.adapters.checkouts.checkout import FOLDER, Checkout
from refimpl.errors import InputError

SOURCE = """import nowhere

LIMIT = 3


@nowhere.decorated
def unused():
    pass


def scaled(x):
    return limit_of(x) * factor


def limit_of(x):
    return min(x, LIMIT)


class Manager:
    @staticmethod
    @nowhere.decorated
    def doubled(x):
        return 2 * x
"""


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository with one commit; returns the commit."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "code.py").write_text(SOURCE)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_functions_are_taken_without_the_file_s_imports(peer: str) -> None:
    checkout = Checkout("someone/theirs", peer)
    taken = checkout.take("code.py", "scaled", "limit_of", "LIMIT", factor=10)
    assert taken.scaled(7) == 30
    assert checkout.take("code.py", "Manager.doubled").doubled(4) == 8
    assert checkout.link("code.py", "scaled") == f"https://github.com/someone/theirs/blob/{peer}/code.py#L11"
    assert checkout.version == peer[:12]


def test_what_is_not_there_is_named(peer: str) -> None:
    checkout = Checkout("someone/theirs", peer)
    with pytest.raises(InputError, match="has no gone, lost"):
        checkout.take("code.py", "lost", "gone", "scaled")
    with pytest.raises(InputError, match=r"other\.py cannot be read"):
        checkout.take("other.py", "scaled")


def test_another_commit_is_refused_by_name(peer: str) -> None:
    other = "0" * 40
    with pytest.raises(InputError, match=rf"theirs is at {peer}; its adapter was written for {other}"):
        Checkout("someone/theirs", other)


def test_absence_says_how_to_get_it(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"absent is absent: in .*git clone https://github\.com/someone/absent"
    ):
        Checkout("someone/absent", peer)
    monkeypatch.delenv(FOLDER)
    with pytest.raises(InputError, match=f"set {FOLDER} to a folder in which you ran git clone"):
        Checkout("someone/theirs", peer)


def test_without_git_the_commit_is_not_verified(peer: str, tmp_path: Path) -> None:
    (tmp_path / "theirs" / ".git").rename(tmp_path / "moved")
    checkout = Checkout("someone/theirs", "0" * 40)
    assert checkout.version == "000000000000 (not verified: no git)"
