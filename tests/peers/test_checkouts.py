"""A checkout that is absent, or at another commit, skips its tests and is named."""

import subprocess
from pathlib import Path

import pytest

from refimpl.conformance.adapters.checkouts.checkout import FOLDER
from tests.peers.checkouts import COMMITS, OTHER_TRANSFORMERS, checkout, other_transformers


@pytest.mark.parametrize("repository", COMMITS)
def test_what_is_absent_is_skipped_by_name(
    repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=repository.partition("/")[2]):
        checkout(repository)
    place = tmp_path / repository.partition("/")[2]
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost", "-C", str(place)]
    place.mkdir()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another"], check=True)
    with pytest.raises(pytest.skip.Exception, match="was written for " + COMMITS[repository]):
        checkout(repository)


def test_another_transformers_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OTHER_TRANSFORMERS, raising=False)
    with pytest.raises(pytest.skip.Exception, match=OTHER_TRANSFORMERS):
        other_transformers()
