"""How many CPU threads compute, and how they wait for each other.

A program that shares its processors must not take more of them than it may use: OpenMP's threads finish each
operation together, so one that is held up holds up all. While they wait they would spin, unless told to sleep, and
keep from the processor the very thread that they are waiting for.

Nothing here imports torch before it must: the environment is read once, when torch loads its OpenMP runtime.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from refimpl.latents.config import VAEConfig
    from refimpl.model.config import UNetConfig
    from refimpl.run.config import TrainConfig

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of them is the user's own choice
# Least weights for each thread. In the tiny preset (3 million weights) a second thread saves nothing, or a tenth at
# most; `python -m benchmarks.bench_threads` measures it.
PARAMETERS_PER_THREAD = 4_000_000
PROCESS = Path("/proc/self")


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has OpenMP's threads sleep while they wait, and keeps their number within this process's CPU quota.

    Does nothing once torch is loaded, when it would be too late, nor to a variable that the user has set.
    """
    if "torch" in sys.modules:
        return
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    cpus = usable_cpus()
    if "OMP_NUM_THREADS" not in environment and cpus < _affinity():
        environment["OMP_NUM_THREADS"] = str(cpus)  # torch itself heeds the affinity mask, but no quota


def use_threads(train: TrainConfig, unet: UNetConfig, vae: VAEConfig) -> None:
    """Sets this process's threads to `train.threads`; where that is 0, to 1 for ordered sums, else by the networks.

    Threads share out the sums within a layer, so that their number changes last bits.
    """
    import torch

    if train.threads or train.reduction == "ordered":
        torch.set_num_threads(train.threads or 1)
        return
    from refimpl.latents.vae import VAE
    from refimpl.model.unet import UNet

    with torch.device("meta"):
        networks = UNet(unet), VAE(vae)
    use_threads_for(networks)


def use_threads_for(networks: Iterable[nn.Module]) -> None:
    """Sets this process's threads by the networks that will run in it."""
    import torch

    largest = max(sum(weight.numel() for weight in network.parameters()) for network in networks)
    torch.set_num_threads(choose_threads(largest, torch.get_num_threads(), usable_cpus()))


def choose_threads(parameters: int, most: int, cpus: int) -> int:
    """The number of threads that compute, at least 1.

    parameters  weights of the largest network
    most        threads that torch would use, which heeds OMP_NUM_THREADS
    cpus        CPUs that this process may use
    """
    return max(1, min(most, cpus, parameters // PARAMETERS_PER_THREAD))


def usable_cpus() -> int:
    """CPUs that this process may use: those of its affinity mask, or its cgroup's quota, shared by the local ranks.

    A fraction of a CPU in the quota counts for nothing here: it is left to the threads that load images.
    """
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")  # set by torchrun
    share = min(_affinity(), cpu_quota()) / max(1, int(ranks) if ranks.isdecimal() else 1)
    return max(1, math.floor(share))


def cpu_quota(process: Path = PROCESS) -> float:
    """CPUs' worth of time that the process's cgroups allow, of version 1 or 2; ∞ where there is no limit.

    process  its folder under /proc
    The limit is the smallest on the way from the process's own group up to the root of the hierarchy (Linux
    documentation, cgroup-v2.rst, "cpu.max", and cgroup-v1, sched-bwc.rst, "cpu.cfs_quota_us").
    """
    try:
        groups = (process / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (process / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no Linux, or no /proc
        return math.inf
    quotas = [math.inf]
    for kind, folder in _cpu_folders(groups, mounts):
        quotas.append(_version_2(folder) if kind == "cgroup2" else _version_1(folder))
    return min(quotas)


def _cpu_folders(groups: list[str], mounts: list[str]) -> Iterator[tuple[str, Path]]:
    """(cgroup or cgroup2, folder) of each group that may limit the process's CPU time, from its own one upwards."""
    # A line of /proc/PID/cgroup is `number:controllers:path`, with number 0 and no controllers for version 2.
    paths = {"cgroup2": "", "cgroup": ""}
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    # A line of mountinfo is `id parent device root mount options … - type source options`.
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if kind not in paths or not paths[kind] or len(fields) < 5:
            continue
        if kind == "cgroup" and "cpu" not in after.split(" ")[-1].split(","):
            continue
        root, mount = PurePosixPath(fields[3]), Path(fields[4])
        own = PurePosixPath(paths[kind])
        # A container sees the host's path, but only the part below its own root is mounted.
        below = own.relative_to(root) if own.is_relative_to(root) else PurePosixPath()
        folder = mount / below
        for each in (folder, *folder.parents):
            if not each.is_relative_to(mount):
                break
            yield kind, each


def _version_2(folder: Path) -> float:
    """The limit of a version 2 group: cpu.max holds a quota and its period in µs; `max` is none."""
    return _cpus(_read(folder / "cpu.max"))


def _version_1(folder: Path) -> float:
    """The limit of a version 1 group, in µs per period in µs; −1 is none."""
    return _cpus(_read(folder / "cpu.cfs_quota_us") + " " + _read(folder / "cpu.cfs_period_us"))


def _cpus(quota_and_period: str) -> float:
    """The CPUs' worth of time in `quota period`; ∞ for anything but two positive whole numbers."""
    numbers = re.fullmatch(r"([0-9]+) ([0-9]+)", quota_and_period)
    if numbers is None or 0 in (int(numbers[1]), int(numbers[2])):
        return math.inf
    return int(numbers[1]) / int(numbers[2])


def _read(path: Path) -> str:
    """The file's text; empty where it can't be read: the group at the root has no limit, and no file for one."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _affinity() -> int:
    """CPUs in the process's affinity mask; all of the machine's where the system has no such mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
