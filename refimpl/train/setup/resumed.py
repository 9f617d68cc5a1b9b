"""The settings of a run that is continued: its own, and what may be changed on the way."""

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps, step_folder
from refimpl.interop.run.run_folder import CONFIG, write_config
from refimpl.run.adamw import learning_rate
from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.storage.committed import MANIFEST
from refimpl.tables import flat, from_table, parsed_json, to_table
from refimpl.train.batches.shares import micro_batches

# What defines no part of the result, or is checked elsewhere. All other settings define the run.
CHANGEABLE = {
    "train.out", "train.resume", "train.accept_data", "train.steps", "train.device", "train.checkpoint_every",
    "train.keep_checkpoints", "train.keep_every", "train.save_async",
    "train.validate_every", "train.sample_every", "train.log_every", "train.tensorboard", "train.wandb_project",
    "train.accumulate", "train.threads", "train.compile", "train.channels_last", "train.activation_checkpointing",
    "data.workers", "data.cache_megabytes", "data.digest", "data.worker_timeout", "data.verify_cache",
    "data.allow_outside",
    "train.max_bad_steps", "train.step_timeout", "train.sharding", "train.zero1", "train.ranks_per_node",
    "train.step_in_backward",
}  # fmt: skip


def own_settings(run: Path, asked_by: str = "train.resume") -> Config:
    """The settings in a run's folder, with the micro-batches of a step that its checkpoints tell of.

    asked_by  the option that named the folder, for messages
    Raises InputError when there is no such folder, or when it is no run's, or one of a newer version.
    """
    if not (run / CONFIG).is_file():
        absent = "" if run.exists() else "does not exist, so it "
        # "--resume RUN" takes the folder itself, and refuses --train.out beside it
        advice = (
            "name one with --train.out" if asked_by == "train.resume" else f"name one, as in {asked_by} RUN"
        )
        raise InputError(f"{asked_by}: {str(run)!r} {absent}is not a run folder; {advice}")
    if (run / MANIFEST).exists():
        raise InputError(f"{asked_by}: {run} is a checkpoint; name its run, {run.parent.parent}")
    try:
        table = parsed_json((run / CONFIG).read_text(encoding="utf-8"))
        # Through a Config, so that a run of an earlier version gets the defaults of settings added since.
        saved = from_table(Config, table, str(run / CONFIG))
    except (OSError, ValueError) as error:
        newer = (
            "; a newer refimpl may have written it: update this one" if "unknown key" in str(error) else ""
        )
        raise InputError(
            f"{asked_by}: {run / CONFIG} cannot be read as a run's settings ({error}){newer}"
        ) from error
    return with_micro_batches(saved, saved.train.micro_batches or _of_checkpoints(run))


def settled(config: Config, world: World) -> Config:
    """The settings with the micro-batches of a step decided: as given, as a resumed run has them, or by the ranks.

    Raises InputError on every rank when there are fewer than ranks, or when there is no such run.
    """
    train = config.train

    def known() -> int:
        is_own = train.resume and train.out and not train.micro_batches
        return own_settings(Path(train.out)).train.micro_batches if is_own else train.micro_batches

    config = with_micro_batches(config, world.on_main(known))
    return with_micro_batches(config, micro_batches(config.train, world.size))


def with_micro_batches(config: Config, count: int) -> Config:
    """The same settings with `train.micro_batches`."""
    return replace(config, train=replace(config.train, micro_batches=count))


def check_changes(config: Config, run: Path, is_deliberate: bool) -> list[str]:
    """Compares the settings that a run is to be continued with and its own.

    is_deliberate  whether they are the run's but for what its user has typed (`--resume RUN`). Then more may change.
    returns        what has changed, each with its consequence: "setting: was → now", for a deliberate change only
    Raises InputError naming each setting that may not be changed.
    """
    saved = own_settings(run)
    if not config.train.micro_batches:
        config = with_micro_batches(config, saved.train.micro_batches)
    was, now = flat(to_table(saved)), flat(to_table(config))
    changed = [key for key in sorted(was | now) if was.get(key) != now.get(key)]
    refused = [key for key in changed if not _is_allowed(without_number(key), is_deliberate)]
    if refused:
        listing = "\n  ".join(f"{key}: the run has {was.get(key)!r}, now {now.get(key)!r}" for key in refused)
        why = "\nThese define the run; begin a new one with --train.init-from" if is_deliberate else ""
        raise InputError(f"train.resume: {run} was made with different settings:\n  {listing}{why}")
    if not is_deliberate:
        return []
    done = max(committed_steps(run), default=0)
    lines = []
    for key in changed:
        if key not in ("train.out", "train.resume", "train.accept_data"):
            consequence = CONSEQUENCES.get(without_number(key), _none)(saved, config, done)
            lines.append(
                f"{key}: {was.get(key)} → {now.get(key)}" + (f" ({consequence})" if consequence else "")
            )
    return lines


def record_settings(config: Config, run: Path) -> None:
    """Makes the settings that a run goes on with its own, so that the next `--resume` begins from them."""
    saved = from_table(Config, parsed_json((run / CONFIG).read_text(encoding="utf-8")), str(run / CONFIG))
    train = replace(config.train, out=saved.train.out, resume=False, accept_data=False)
    if replace(config, train=train) != saved:
        write_config(run, to_table(replace(config, train=train)))


def without_number(key: str) -> str:
    """stages.batch_size for stages.2.batch_size."""
    return re.sub(r"\.\d+\.", ".", key)


def _is_allowed(key: str, is_deliberate: bool) -> bool:
    return key in CHANGEABLE or (is_deliberate and (key in CONSEQUENCES or key.startswith("sample.")))


def _of_checkpoints(run: Path) -> int:
    """The micro-batches of a step by which a run's checkpoints were made; 0 where none tells."""
    for step in reversed(committed_steps(run)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = parsed_json((step_folder(run, step) / "state.json").read_text(encoding="utf-8"))
            return int(state.get("micro_batches") or state["ranks"] * state["accumulate"])
    return 0


Consequence = Callable[
    [Config, Config, int], str
]  # (was, now, optimizer steps done) → what follows; "" for nothing


def _none(was: Config, now: Config, done: int) -> str:
    return ""


def _of_batch(was: Config, now: Config, done: int) -> str:
    return (
        f"from step {done + 1} on, the batches of a run that always had this setting: images of the epoch under way "
        "may come again or be left out, and a step is another amount of training"
    )


def _of_rate(was: Config, now: Config, done: int) -> str:
    rates = []
    for config in (was, now):
        stage = [stage for stage in config.all_stages() if stage.from_step <= done][-1]
        rates.append(learning_rate(config.optimizer, stage.learning_rate, done, config.train.steps))
    return (
        f"the rate of step {done + 1} is {rates[1]:.3g} instead of {rates[0]:.3g}"
        if rates[0] != rates[1]
        else ""
    )


def _of_arithmetic(was: Config, now: Config, done: int) -> str:
    return f"rounds differently: from step {done + 1} on, the same run only to rounding"


def _of_accumulate(was: Config, now: Config, done: int) -> str:
    return f"no effect: the run keeps its train.micro_batches, {now.train.micro_batches}"


def _of_heldout(was: Config, now: Config, done: int) -> str:
    return "held-out losses before and after do not compare"


# What may be changed deliberately besides CHANGEABLE and all of [sample], and what follows from any change.
CONSEQUENCES: dict[str, Consequence] = {
    **dict.fromkeys(
        ("train.batch_size", "train.micro_batches", "train.pixel_budget", "stages.batch_size"), _of_batch
    ),
    **dict.fromkeys(
        ("train.steps", "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.decay",
         "stages.learning_rate"), _of_rate,
    ),
    **dict.fromkeys(
        ("train.backend", "train.precision", "train.attention", "train.reduction", "train.deterministic"),
        _of_arithmetic,
    ),
    "train.accumulate": _of_accumulate,
    "data.heldout": _of_heldout,
    **dict.fromkeys(("optimizer.weight_decay", "optimizer.clip_norm"), _none),
}  # fmt: skip
