"""The settings of a first run: what was asked for and found becomes what is written."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace

from refimpl.commands.start.questions import Questions, one_of, whole_number
from refimpl.commands.start.written import Written
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.here.machine import machine_problems
from refimpl.run.presets import load_config
from refimpl.run.settings.paths import check_here, path_problems, refuse
from refimpl.train.budget.cards import GIB, Card
from refimpl.train.first.card import AUTO, CPU, backend_here, planned_card
from refimpl.train.first.checkpoint import Start, look_at_checkpoint
from refimpl.train.first.choose import (
    KERNEL,
    REFERENCE,
    WAYS,
    check_complete,
    from_checkpoint,
    small_from_nothing,
)
from refimpl.train.first.fitted import fitted
from refimpl.train.first.images import Images, look_at_images
from refimpl.train.speed.estimated import has_roofline

LISTED = 5  # files that can't be used, before "and n more"


@dataclass(frozen=True)
class Wishes:
    """What the command line and the first questions have decided."""

    folder: str
    """Images."""
    checkpoint: str
    """What to start from; empty for nothing."""
    way: str
    """What is trained of it; empty to ask."""
    gpu: str
    """The card, as `--gpu` names it."""
    name: str
    """What the run's files are named by."""
    fixed: frozenset[str]
    """Settings given on the command line."""
    overridden: Callable[[Config], Config]
    """Applies them."""


def first_settings(wishes: Wishes, questions: Questions) -> Written:
    """Looks at everything, asks what is left to ask, and chooses.

    Raises InputError where a run could not be made of it, saying what would help.
    """
    asked = "data.allow_outside" in wishes.fixed and wishes.overridden(load_config("tiny")).data.allow_outside
    images = look_at_images(wishes.folder, allow_outside=asked)
    start = look_at_checkpoint(wishes.checkpoint) if wishes.checkpoint else None
    card = _card(wishes.gpu, start, questions)
    if start is None:
        config, reasons = small_from_nothing(images, wishes.folder, wishes.name)
    else:
        way = wishes.way or questions.ask("Train a lora, or the whole network?", WAYS[0], one_of(WAYS))
        config, reasons = from_checkpoint(images, wishes.folder, start, way)
    if "train.steps" not in wishes.fixed:
        steps = int(questions.ask("Optimizer steps:", str(config.train.steps), whole_number))
        config = replace(config, train=replace(config.train, steps=steps))
    config = wishes.overridden(config)
    if start is not None:
        check_complete(start, config)
    lacking: list[str] = []
    if wishes.gpu in (AUTO, CPU):
        check_here(config)
    else:  # it may be meant for another machine
        refuse(path_problems(config))
        lacking = machine_problems(config)
    memory = f"card: {_name(card)}"
    if card is not None:
        if wishes.gpu == AUTO and "train.backend" not in wishes.fixed:
            config = replace(config, train=replace(config.train, backend=backend_here()))
            reasons["train.backend"] = KERNEL if config.train.backend == "kernel" else REFERENCE
        config, why, plan = fitted(config, card, wishes.fixed)
        reasons |= why
        memory += (
            f", of whose {card.memory / GIB:.1f} GiB the run needs {plan.needed / GIB:.1f} (memory plan)"
        )
    if config.lora.alpha != config.lora.rank:
        reasons.pop("lora.alpha", None)  # it speaks of the rank, which was given
    reasons = {name: why for name, why in reasons.items() if why and name not in wishes.fixed}
    found = [_images(images, wishes.folder), _start(start, config), memory]
    found += [f"before it trains: {problem}" for problem in lacking]
    options = estimate_options(config, card, wishes.gpu)
    return Written(config, reasons, "\n".join(found), [*_left_out(images), *found], options)


def estimate_options(config: Config, card: Card | None, gpu: str) -> str:
    """What `refimpl estimate` needs to say the speed: the card that was named, or steps to be measured.

    card  what `planned_card` gives for gpu
    """
    named = "" if gpu in (AUTO, CPU) else f"--gpu {shlex.quote(gpu)}"
    return named if card is not None and has_roofline(config, card) else "--measure"


def _card(gpu: str, start: Start | None, questions: Questions) -> Card | None:
    """The card that is planned for; None for the CPU, which only small networks train on unasked."""
    card = planned_card(gpu)
    if card is not None or gpu != AUTO or start is None or start.is_small:
        return card
    asked = questions.ask(
        "torch sees no GPU here. The card to train on, such as rtx4090 or 24GB:", "", _is_card
    )
    if not asked:
        raise InputError(
            f"torch sees no GPU here, and {start.path} is too large for a CPU; name the card that it will be trained "
            "on, such as --gpu rtx4090 or --gpu 24GB, or --gpu cpu to train here all the same"
        )
    return planned_card(asked)


def _is_card(answer: str) -> str | None:
    try:
        planned_card(answer)
    except InputError as error:
        return str(error)
    return None


def _images(images: Images, folder: str) -> str:
    parts = [f"{len(images)} in {folder}"]
    if images.uncaptioned:
        parts.append(f"{images.uncaptioned} without a caption, trained with an empty one")
    if images.left_out:
        parts.append(f"{len(images.left_out)} left out")
    return f"images: {', '.join(parts)}"


def _start(start: Start | None, config: Config) -> str:
    if start is None:
        return (
            "starts from: nothing; a small network is trained, its autoencoder first "
            f"({config.latents.train_steps} steps)"
        )
    what = f"a LoRA of rank {config.lora.rank}" if config.lora.rank else "its whole UNet"
    predicts = f"predicts {start.parameterisation}: {start.reason}"
    return f"starts from: {start.path} ({start.kind}, {start.stored}, {predicts}); trains {what}"


def _name(card: Card | None) -> str:
    return "none: this machine's CPU" if card is None else card.name


def _left_out(images: Images) -> list[str]:
    more = len(images.left_out) - LISTED
    return [
        *(f"left out: {line}" for line in images.left_out[:LISTED]),
        *([f"and {more} more"] if more > 0 else []),
    ]
