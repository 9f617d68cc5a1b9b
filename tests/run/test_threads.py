"""How many threads compute: within the affinity mask and the cgroup's quota, and no more than a network is worth."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from refimpl.commands import demo, sample, train
from refimpl.commands.terminal import run_command
from refimpl.errors import InputError
from refimpl.run import threads
from refimpl.run.config import TrainConfig
from refimpl.run.presets import load_config
from refimpl.run.threads import (
    PARAMETERS_PER_THREAD,
    choose_threads,
    cpu_quota,
    prepare_environment,
    usable_cpus,
    use_threads,
    use_threads_for,
)

TINY = load_config("tiny")
MANY = 3  # threads that torch would use, in the tests that set them


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of the caller's is read, and the number of threads is put back."""
    for name in (*threads.WAITING, "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def torch_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of a command."""
    monkeypatch.delitem(sys.modules, "torch")


def machine(monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float = math.inf) -> None:
    """A machine on which the process has this affinity and quota."""
    monkeypatch.setattr(threads, "_affinity", lambda: affinity)
    monkeypatch.setattr(threads, "cpu_quota", lambda *_: quota)


def process(folder: Path, group: str, mount: str, files: dict[str, str]) -> Path:
    """A folder like /proc/PID, its hierarchies mounted below the same folder; `{}` in `mount` stands for that."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "cgroup").write_text(group)
    (folder / "mountinfo").write_text("22 1 0:21 / /proc rw - proc proc rw\n" + mount.format(folder) + "\n")
    return folder


VERSION_2 = "31 23 0:28 / {}/cg rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
VERSION_1 = "32 31 0:29 / {}/cg rw,relatime - cgroup cgroup rw,cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cg/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"cg/a/b/cpu.max": "max 100000\n", "cg/a/cpu.max": "200000 50000\n"}, 4),
        (
            {"cg/a/b/cpu.max": "400000 100000\n", "cg/a/cpu.max": "300000 100000\n"},
            3,
        ),  # the parent's is smaller
        ({"cg/a/b/cpu.max": "100000 100000\n", "cg/a/cpu.max": "300000 100000\n"}, 1),
        ({"cg/cpu.max": "100000 100000\n"}, 1),  # a container's root has one
        ({"cpu.max": "100000 100000\n", "cg/a/b/x": ""}, math.inf),  # outside the hierarchy
        ({"cg/other/cpu.max": "100000 100000\n", "cg/a/b/x": ""}, math.inf),  # another group's
        ({"cg/a/b/cpu.max": "max 100000\n"}, math.inf),
        ({"cg/a/b/cpu.max": "1000 100000\n"}, 0.01),
        *(
            ({"cg/a/b/cpu.max": text}, math.inf)
            for text in ("", "max", "200000", "100000 0", "0 1", "x y", "-1 5")
        ),
    ],
)
def test_the_quota_of_version_2(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    assert cpu_quota(process(tmp_path, "0::/a/b\n", VERSION_2, files)) == cpus


@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [
        ("250000", "100000", 2.5), ("-1", "100000", math.inf), ("50000", "0", math.inf), ("", "100000", math.inf),
        ("50000", "", math.inf),
    ],
)  # fmt: skip
@pytest.mark.parametrize("group", ["/a", "/a/b"])
def test_the_quota_of_version_1(tmp_path: Path, quota: str, period: str, cpus: float, group: str) -> None:
    files = {"cg/a/cpu.cfs_quota_us": quota, "cg/a/cpu.cfs_period_us": period}
    groups = f"4:memory:/m\n3:cpu,cpuacct:{group}\n1:name=systemd:/s\n0::/\n"
    assert cpu_quota(process(tmp_path, groups, VERSION_1, files)) == cpus


def test_a_container_sees_the_path_of_its_host(tmp_path: Path) -> None:
    files = {"cg/cpu.cfs_quota_us": "200000", "cg/cpu.cfs_period_us": "100000"}
    mount = VERSION_1.replace(" / ", " /docker/4f1 ")
    for group in ("/docker/4f1", "/docker/4f1/below", "/"):
        assert cpu_quota(process(tmp_path, f"3:cpu,cpuacct:{group}\n", mount, files)) == 2


def test_only_the_controller_of_cpu_time_counts(tmp_path: Path) -> None:
    files = {"cg/cpu.cfs_quota_us": "200000", "cg/cpu.cfs_period_us": "100000", "cg/cpu.max": "1 1"}
    memory = VERSION_1.replace("cpu,cpuacct", "memory")
    assert cpu_quota(process(tmp_path, "3:cpu:/\n4:memory:/\n0::/\n", memory, files)) == math.inf


def test_the_smaller_of_both_versions_counts(tmp_path: Path) -> None:
    files = {
        "cg/cpu.cfs_quota_us": "300000",
        "cg/cpu.cfs_period_us": "100000",
        "unified/cpu.max": "200000 100000",
    }
    mounts = f"{VERSION_1}\n{VERSION_2}".replace("{}/cg rw,nosuid", "{}/unified rw,nosuid").replace(
        "{}", str(tmp_path)
    )
    assert cpu_quota(process(tmp_path, "3:cpu,cpuacct:/\n0::/\n", mounts, files)) == 2


def test_no_quota_where_nothing_is_said(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == math.inf
    for group, mount in (("", ""), ("nonsense\n", "nonsense"), ("0::/\n", "1 - cgroup2"), ("0::/\n", " - ")):
        assert cpu_quota(process(tmp_path, group, mount, {})) == math.inf
    assert cpu_quota() > 0  # of this process


@pytest.mark.parametrize(
    ("affinity", "quota", "ranks", "cpus"),
    [
        (8, math.inf, None, 8),
        (8, 3.0, None, 3),
        (2, 3.0, None, 2),
        (8, 1.9, None, 1),  # a fraction is not worth a thread
        (8, 0.1, None, 1),
        (8, math.inf, "2", 4),
        (8, 6.0, "4", 1),
        (2, math.inf, "8", 1),
        *((8, math.inf, word, 8) for word in ("", "0", "1", "x", "-2")),
    ],
)
def test_usable_cpus(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float, ranks: str | None, cpus: int
) -> None:
    machine(monkeypatch, affinity, quota)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert usable_cpus() == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity masks")
def test_the_affinity_mask_counts() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"""import os
os.sched_setaffinity(0, [{one}])
from refimpl.run.threads import usable_cpus
print(usable_cpus())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("parameters", "most", "cpus", "chosen"),
    [
        (0, 8, 8, 1),
        (2 * PARAMETERS_PER_THREAD - 1, 8, 8, 1),
        (2 * PARAMETERS_PER_THREAD, 8, 8, 2),
        (10**12, 8, 4, 4),
        (10**12, 2, 4, 2),
        (10**12, 4, 1, 1),
    ],
)
def test_threads_by_the_size_of_the_network(parameters: int, most: int, cpus: int, chosen: int) -> None:
    assert choose_threads(parameters, most, cpus) == chosen


def test_the_settings_choose_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 64)
    large = load_config("sdxl_base").unet
    for settings, unet, wanted in (
        (TrainConfig(threads=2), large, 2),
        (TrainConfig(threads=2), TINY.unet, 2),
        (TrainConfig(threads=2, reduction="ordered"), large, 2),
        (TrainConfig(reduction="ordered"), large, 1),
        (TrainConfig(), TINY.unet, 1),
    ):
        torch.set_num_threads(MANY)
        use_threads(settings, unet, TINY.vae)
        assert torch.get_num_threads() == wanted


def test_a_large_network_gets_what_torch_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    large = load_config("sdxl_base")
    for cpus, wanted in ((64, MANY), (2, 2)):
        machine(monkeypatch, cpus)
        torch.set_num_threads(MANY)
        use_threads(TrainConfig(), large.unet, TINY.vae)
        assert torch.get_num_threads() == wanted


def test_the_largest_network_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 64)
    small, large = nn.Linear(2, 2), nn.Linear(2 * PARAMETERS_PER_THREAD, 1, bias=False, device="meta")
    for networks, wanted in (((small, large), 2), ((large, small), 2), ((small,), 1)):
        torch.set_num_threads(MANY)
        use_threads_for(networks)
        assert torch.get_num_threads() == wanted


@pytest.mark.usefixtures("torch_is_absent")
def test_waiting_is_passive_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    for given in ({}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "100"}, {"KMP_BLOCKTIME": "200"}):
        environment = dict(given)
        prepare_environment(environment)
        assert environment == (given or {"OMP_WAIT_POLICY": "PASSIVE"})


@pytest.mark.usefixtures("torch_is_absent")
@pytest.mark.parametrize(
    ("quota", "given", "wanted"), [(3.5, None, "3"), (8, None, None), (math.inf, None, None), (3.5, "5", "5")]
)
def test_the_quota_limits_the_threads_of_every_command(
    monkeypatch: pytest.MonkeyPatch, quota: float, given: str | None, wanted: str | None
) -> None:
    machine(monkeypatch, 8, quota)
    environment = {} if given is None else {"OMP_NUM_THREADS": given}
    prepare_environment(environment)
    assert environment.get("OMP_NUM_THREADS") == wanted


def test_the_environment_is_left_alone_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8, 1)
    environment: dict[str, str] = {}
    prepare_environment(environment)
    assert environment == {}


def test_every_command_waits_passively_before_it_imports_torch() -> None:
    code = (
        "import os, sys\nfrom refimpl.commands import demo, main, sample, train\n"
        "from refimpl.commands.terminal import run_command\n"
        "run_command(lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "PASSIVE False\n"


class Reached(InputError):
    """Raised where a command would begin its work."""


@pytest.mark.parametrize(
    ("command", "first"),
    [
        (lambda out: train.train_command(["tiny", "--train.out", str(out)]), "refimpl.train.setup.prepare.prepare"),
        (lambda out: demo.demo_command(["--out", str(out)]), "refimpl.run.stage.write_demo_data"),
    ],
)  # fmt: skip
def test_threads_are_set_before_anything_is_prepared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command, first: str
) -> None:
    found = []

    def stop(*_) -> None:
        found.append(torch.get_num_threads())
        raise Reached("here")

    monkeypatch.setattr(first, stop)
    torch.set_num_threads(MANY)
    with pytest.raises(Reached):
        command(tmp_path / "out")
    assert found == [TINY.train.threads] == [1]


def test_sampling_uses_the_threads_that_its_networks_are_worth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: Path
) -> None:
    machine(monkeypatch, 64)
    torch.set_num_threads(MANY)
    with pytest.raises(SystemExit):
        run_command(
            lambda: sample.sample_command([str(trained), "--out", str(tmp_path / "out"), "--steps", "1"])
        )
    assert torch.get_num_threads() == 1
