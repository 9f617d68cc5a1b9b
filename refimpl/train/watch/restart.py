"""torchrun --max-restarts: the workers that replace failed ones go on with the run that those had begun."""

import os
from dataclasses import replace
from pathlib import Path

from refimpl.interop.run.checkpoints import committed_steps
from refimpl.interop.run.run_folder import CONFIG
from refimpl.run.config import Config
from refimpl.run.ranks.heartbeat import job_store
from refimpl.run.ranks.restarts import restarts
from refimpl.run.world import World

RUN = "refimpl/run"  # key in the job's store


def remember_run(run: Path, world: World) -> None:
    """Leaves the run folder's name where the workers after a restart find it: in the store that the agent holds."""
    if world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        job_store().set(RUN, str(run))


def begun_run(config: Config, world: World) -> Config:
    """After a restart, the settings that continue the run of the workers before; else those given.

    A run that had failed before its settings were written begins anew in the same folder.
    """
    if not restarts():
        return config
    run = world.on_main(lambda: _remembered() or config.train.out)
    if not run:
        return config
    has_begun = world.on_main(lambda: (Path(run) / CONFIG).is_file())
    return replace(config, train=replace(config.train, out=run, resume=has_begun))


def has_finished(config: Config, world: World) -> bool:
    """Whether there is nothing left to do after a restart: the workers failed behind the last checkpoint."""
    if not (restarts() and config.train.resume):
        return False
    return world.on_main(
        lambda: max(committed_steps(Path(config.train.out)), default=0) >= config.train.steps
    )


def _remembered() -> str:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return ""
    store = job_store()
    return store.get(RUN).decode() if store.check([RUN]) else ""
