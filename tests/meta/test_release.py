"""What names the version, or a check, says the same: package, citation, changelog, hooks, workflow."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import refimpl

ROOT = Path(__file__).parents[2]
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
YAML = [
    *sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff",
]  # fmt: skip


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_is_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_version_is_everywhere_the_same() -> None:
    assert 'dynamic = ["version"]' in text("pyproject.toml")
    assert metadata.version("refimpl") == refimpl.__version__, "install the package again: pip install -e ."
    assert yaml.safe_load(text("CITATION.cff"))["version"] == refimpl.__version__
    unreleased, *released = HEADING.findall(text("CHANGELOG.md"))
    assert unreleased == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading) for heading in released)
    assert released[0].split()[0] == refimpl.__version__


def test_both_papers_are_cited() -> None:
    references = yaml.safe_load(text("CITATION.cff"))["references"]
    assert [reference["identifiers"][0]["value"] for reference in references] == [
        "arXiv:2409.15997",
        "arXiv:2307.01952",
    ]


def test_hooks_are_what_continuous_integration_runs() -> None:
    (repository,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"  # fetches nothing
    sessions = [hook["entry"].removeprefix("nox -s ") for hook in repository["hooks"]]
    run = [word for line in text(".ci/run").splitlines() if "nox -s" in line for word in line.split()]
    assert set(sessions) <= set(run)


def test_the_workflow_runs_what_continuous_integration_runs() -> None:
    (job,) = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}


@pytest.mark.parametrize("name", ["bug.yml", "wrong_number.yml"])
def test_forms_ask_for_what_the_doctor_says(name: str) -> None:
    form = yaml.safe_load(text(f".github/ISSUE_TEMPLATE/{name}"))
    assert {"name", "description", "body"} <= form.keys()
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids)
    assert "doctor" in ids


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    table = text("CONTRIBUTING.md").partition("## Why each dependency")[2].partition("\n## ")[0]
    reasons = "\n".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    names = {re.split(r"[<>=!~\[ ]", requirement)[0] for requirement in wanted}
    assert {name for name in names if name not in reasons} == set()
