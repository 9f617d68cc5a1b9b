"""The Dockerfiles say what the project does: no image is built here, but every line that can be checked is.

The slow tests execute the lines outside a container: in a folder that stands for /, with this Python, and with an
environment that finds the packages of this one, so that nothing large is downloaded.
"""

import fnmatch
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
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
    assert "optimizers" in extras.split(",")  # without which two values of optimizer.kind can't run
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
    assert said == f"1 {told} install --no-build-isolation /src[report,fast,parquet,demo,hub,optimizers]\n"


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


def test_every_extra_is_in_the_table_of_the_page() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", page.partition("| extra |")[2].partition("\n\n")[0], re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(PROJECT["optional-dependencies"])


def test_every_image_is_named_in_the_documentation() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for path in FILES:
        assert f"docker/{path.name}" in page
        assert f"docker build -f docker/{path.name} " in path.read_text(encoding="utf-8")


PLACES = re.compile(r"(?<![\w.])/(?=(src|opt/refimpl)\b)")  # of the image that its lines write to
APT = re.compile(
    r"apt-get update\s+&& apt-get install --yes --no-install-recommends ([\w+ -]+?)\s+&& rm -rf /var/lib/apt/lists/\*"
)


def packages(line: str) -> list[str]:
    """The Debian packages that a line installs; none where it installs none."""
    found = APT.fullmatch(line)
    assert found or "apt-get" not in line, line
    return found[1].split() if found else []


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_packages_of_the_system_are_there(path: Path) -> None:
    """As this machine's distribution names them; apt would install them without a conflict."""
    if shutil.which("apt-get") is None:
        pytest.skip("not a machine with apt")
    wanted = sorted({name for line in runs(path) for name in packages(line)})
    assert "g++" in wanted
    simulated = ["apt-get", "--simulate", "--no-install-recommends", "install", *wanted]
    done = subprocess.run(simulated, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}(apt-get update, if it knows none of them)"


def make_environment(folder: Path) -> None:
    """An environment that finds what this one has installed, after what is installed into it."""
    if not (folder / "bin" / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (inside,) = folder.glob("lib/python*/site-packages")
    (inside / "beside.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")


def copy_tracked(folder: Path) -> None:
    """What `COPY .` takes: what git tracks, and nothing that was built here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def executed(path: Path, root: Path) -> tuple[list[str], list[str]]:
    """Executes a Dockerfile's RUN lines below `root`, with its ARG and ENV; the lines that were, and were not.

    Not executed are those that install packages of the system, the one that compiles with nvcc for minutes, which
    `nox -s nvcc` does for these sources, and what needs its result.
    """
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python3").symlink_to(sys.executable)
    environment = {"HOME": str(root), "LANG": "C.UTF-8", "PATH": f"{root}/bin:/usr/bin:/bin"}
    if "MAX_JOBS" in os.environ:
        environment["MAX_JOBS"] = os.environ["MAX_JOBS"]
    if not any("-m venv" in line for line in runs(path)):  # the image's own Python
        make_environment(root / "python")
        environment["PATH"] = f"{root}/python/bin:{environment['PATH']}"
    done: list[str] = []
    left: list[str] = []
    where = root
    for name, arguments in instructions(path):
        there = PLACES.sub(f"{root}/", arguments)
        if name in ("ARG", "ENV"):
            for word in shlex.split(there):
                key, _, value = word.partition("=")
                environment[key] = re.sub(r"\$\{PATH\}", environment["PATH"], value)
        elif (name, arguments) == ("COPY", ". /src"):
            copy_tracked(root / "src")
        elif name == "WORKDIR":
            where = root / arguments.lstrip("/")
            where.mkdir(exist_ok=True)
        elif name == "RUN":
            needs_built = "refimpl doctor" in arguments and any("REFIMPL_CUDA=1" in line for line in left)
            if packages(arguments) or "REFIMPL_CUDA=1" in arguments or needs_built:
                left.append(arguments)
                continue
            ended = subprocess.run(
                ["sh", "-c", there], cwd=where, env=environment, capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, f"{arguments}\n{ended.stdout[-4000:]}{ended.stderr[-4000:]}"
            if "-m venv" in arguments:
                make_environment(root / "opt" / "refimpl")
            done.append(arguments)
    return done, left


@pytest.mark.slow
def test_the_lines_of_the_processors_image_give_a_refimpl_that_works(tmp_path: Path) -> None:
    """Its kernels are compiled, its doctor finds nothing wrong, and what is started by default answers."""
    done, left = executed(FILES[0], tmp_path)
    assert [bool(packages(line)) for line in left] == [True]
    assert len(done) == 3
    assert not (tmp_path / "src").exists()
    refimpl = tmp_path / "python" / "bin" / "refimpl"
    told = subprocess.run(
        [refimpl, "--help"], cwd=tmp_path / "work", capture_output=True, text=True, check=True
    )
    assert "\n  train  " in told.stdout
    (kernels,) = (tmp_path / "python").glob("lib/python*/site-packages/refimpl/ops/_kernels*.so")
    assert kernels.stat().st_size > 0


@pytest.mark.slow
def test_the_lines_of_the_cards_image_that_need_no_nvcc(tmp_path: Path) -> None:
    """Its environment and the requirements of the build."""
    done, left = executed(FILES[1], tmp_path)
    assert ["-m venv" in done[0], "pip install" in done[1], len(done)] == [True, True, 2]
    assert (tmp_path / "opt" / "refimpl" / "bin" / "pip").exists()
    assert [line.split()[0] for line in left if not packages(line)] == ["REFIMPL_CUDA=1", "refimpl"]
