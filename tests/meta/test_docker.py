"""The Dockerfiles say what the project does: no image is built here, but every line that can be checked is."""

import fnmatch
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KNOWN = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "CMD"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, with lines that end in a backslash joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def runs(path: Path) -> list[str]:
    return [arguments for name, arguments in instructions(path) if name == "RUN"]


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_instruction_is_one(path: Path) -> None:
    found = instructions(path)
    assert {name for name, _ in found} <= KNOWN
    assert next(name for name, _ in found if name != "ARG") == "FROM"
    for line in runs(path):
        done = subprocess.run(["sh", "-n", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    for name, arguments in found:
        if name == "CMD":
            assert re.fullmatch(r'\["refimpl", "--help"\]', arguments)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_installed_is_what_the_project_says(path: Path) -> None:
    """torch as constraints.txt pins it, the requirements of the build, and extras that there are."""
    text = path.read_text(encoding="utf-8")
    pinned = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pinned is not None
    assert f"ARG TORCH={pinned[1]}\n" in text
    (build,) = (line for line in runs(path) if "torch==" in line)
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    wanted = {re.split(r"[<>=]", requirement)[0] for requirement in system["requires"]}
    assert wanted <= {re.split(r"[<>=]", word)[0] for word in shlex.split(build)}
    (extras,) = re.findall(r'"/src\[([\w,]+)\]"', text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert any("refimpl doctor" in line for line in runs(path))


def test_the_image_of_the_processor_has_a_python_that_is_supported() -> None:
    (base,) = (arguments for name, arguments in instructions(FILES[0]) if name == "FROM")
    minor = int(re.match(r"python:3\.(\d+)-", base)[1])  # type: ignore[index]
    least, below = (int(part) for part in re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    assert least <= minor < below


@pytest.mark.parametrize(("arches", "told"), [("", "unset"), ("8.0;9.0+PTX", "8.0;9.0+PTX")])
def test_the_architectures_reach_the_build(arches: str, told: str, tmp_path: Path) -> None:
    """The line that compiles, with a pip that says what it was given."""
    (line,) = (line for line in runs(FILES[1]) if "REFIMPL_CUDA=1" in line)
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$REFIMPL_CUDA ${TORCH_CUDA_ARCH_LIST-unset} $*"\n')
    pip.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ARCHES": arches}
    said = subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said == f"1 {told} install --no-build-isolation /src[report,fast,parquet,demo,hub]\n"


def test_what_is_copied_is_what_the_build_needs() -> None:
    """`COPY . /src` leaves out what .dockerignore names, and that is nothing that git tracks."""
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
        if line[:1] not in "#"
    ]
    assert "**/*.so" in ignored
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in listed:
        for pattern in filter(None, ignored):
            parts = [name, *(str(parent) for parent in Path(name).parents)]
            assert not any(fnmatch.fnmatch(part, pattern) for part in parts), f"{name} by {pattern}"


def test_every_image_is_named_in_the_documentation() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for path in FILES:
        assert f"docker/{path.name}" in page
        assert f"docker build -f docker/{path.name} " in path.read_text(encoding="utf-8")
