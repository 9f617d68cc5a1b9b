"""csrc/standalone_check.cu, the program for the sanitizers, on the emulated GPU: it agrees, and sees mistakes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ops.emulator.build import CSRC, link, shared_objects


@pytest.fixture
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of object files."""
    return shared_objects(tmp_path_factory)


def check(sources: Path, folder: Path, objects: Path, layouts: int) -> subprocess.CompletedProcess[str]:
    """Compiles the program from these sources and runs its first so many layouts."""
    program = link(sorted(sources.glob("*.cu")), folder / "standalone_check", objects)
    return subprocess.run([str(program), str(layouts)], capture_output=True, text=True, check=False)


def test_all_launchers_agree_with_the_formulas(tmp_path, objects):
    result = check(CSRC, tmp_path, objects, layouts=2)
    assert result.stderr == ""
    assert result.stdout.endswith(" results compared, 0 of them wrong\n")
    assert not result.stdout.startswith("0 ")
    assert result.returncode == 0


def test_a_wrong_kernel_is_named_with_its_first_wrong_element(tmp_path, objects):
    sources = tmp_path / "csrc"
    shutil.copytree(CSRC, sources)
    kernel = sources / "noise.cu"
    right, wrong = "only_noise ? 1.0f : p.sigma.at<float>(b);", "only_noise ? 1.0f : p.alpha.at<float>(b);"
    assert right in kernel.read_text()
    kernel.write_text(kernel.read_text().replace(right, wrong))
    result = check(sources, tmp_path, objects, layouts=1)
    assert result.returncode == 1
    assert "add_noise of [2, 4, 24]: element 0 is" in result.stderr
    assert "v_loss of" not in result.stderr
