"""Checks in a process of their own: what no interruption reaches is ended, and the suite goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl.conformance import worker
from refimpl.conformance.evaluate import Effort
from refimpl.conformance.worker import Worker
from refimpl.errors import InputError

PLUGIN = "refimpl.conformance.plugin"
SUITE = "refimpl.conformance.test_conformance"  # collected by the name of its package as well
THEIRS = """
import os, signal, time, torch
print("an adapter may print")
class Adapter:
    version = "7"
    def schedule(self, zero_snr):
        if zero_snr:
            os._exit(9)
        return torch.ones(1000)
    def grid(self, kind, n):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as code does that holds the interpreter
        time.sleep(1000)
    def markers(self, keys):
        print("and go on printing")
        return "v" if "v_pred" in keys else "eps", "ztsnr" in keys
"""


def test_death_and_deafness_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_worker.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "GRACE", 2.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
    with Worker("their_worker:Adapter", Effort(examples=2, call_seconds=0.5, check_seconds=1)) as peer:
        assert (peer.title, peer.version) == ("Adapter", "7")
        assert peer.run("markers.both").status == "conforms"
        died = peer.run("schedule.zero_snr_end")
        assert (died.status, died.text) == ("deviates", "the implementation ended its process with status 9")
        assert peer.run("markers.neither").status == "conforms"  # in a new process
        deaf = peer.run("grid.native_start")
        assert (deaf.status, deaf.text) == ("deviates", "the implementation did not return within 3 s")
        assert peer.run("pool.of_several").status == "not offered"


def test_an_adapter_that_is_none_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="importing nowhere raised ModuleNotFoundError"), Worker("nowhere:A"):
        pass
    (tmp_path / "dying.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
    with pytest.raises(InputError, match="importing it ended its process"), Worker("dying:A"):
        pass


def test_pytest_runs_the_suite_on_an_implementation(tmp_path: Path) -> None:
    """As in a plain install, except that the plugin is named: there its entry point loads it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider",
               "--pyargs", SUITE, "--implementation", "tests.conformance.made_up_adapter:Adapter",
               "--examples", "5", "-k", "weight or size_ints or resume"]  # fmt: skip
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "3 failed, 5 passed, 3 skipped" in found.stdout, found.stdout
    assert "1.115 % of all weight" in found.stdout
    assert "not offered: resume, epoch" in found.stdout
    assert "Traceback" not in found.stdout


def test_the_plugin_that_every_pytest_loads_is_light() -> None:
    code = f"import sys, {PLUGIN}; sys.exit(len({{'torch', 'numpy', 'hypothesis'}} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
