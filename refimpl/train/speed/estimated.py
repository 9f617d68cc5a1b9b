"""The speed of a run from a card's datasheet, and the time to its last step."""

from dataclasses import dataclass
from itertools import pairwise

from refimpl.run.config import Config
from refimpl.run.stage import images_at
from refimpl.train.batches.shares import micro_batches
from refimpl.train.budget.cards import Card, peak_flops
from refimpl.train.budget.flops import bucket_flops
from refimpl.train.budget.plan import Work
from refimpl.train.scale.table import SHARES

HOUR = 3600.0
LEAST_CHANNELS = 320  # SDXL's (S Tab. 1)


@dataclass(frozen=True)
class Speed:
    """Images per second, and how that is known."""

    images_per_second: float
    """Of all ranks together."""
    bucket: tuple[int, int]
    """Width and height, px, of the images that it is for."""
    how: str
    """Where it comes from, human-readable."""


def roofline_speed(config: Config, work: Work, card: Card) -> Speed | None:
    """The card's peak arithmetic times the share of it that an H200 has reached; None where either is unknown.

    The share was reached by SDXL's UNet; a much smaller one waits for memory and launches instead of arithmetic.
    """
    precision = config.train.precision
    if not has_roofline(config, card):
        return None
    peak, share = peak_flops(card.name, precision), SHARES[precision]
    assert peak is not None
    of_one = peak * share / bucket_flops(config, work.bucket)
    how = (
        f"from the roofline, nothing measured: {share:.1%} of the card's {peak / 1e12:g} TFLOP/s, the share that an "
        "H200 reached at 1024²"
    )
    if work.ranks > 1:
        how += f", times {work.ranks} ranks without what they lose to one another"
    return Speed(of_one * work.ranks, work.bucket, how)


def has_roofline(config: Config, card: Card) -> bool:
    """Whether `roofline_speed` knows the speed of these networks on this card."""
    precision = config.train.precision
    is_large = config.unet.channels >= LEAST_CHANNELS
    return is_large and peak_flops(card.name, precision) is not None and precision in SHARES


def seconds_to_the_end(config: Config, speed: Speed, ranks: int) -> float:
    """Time of all training steps, each stage at the speed that its largest images allow."""
    seconds = 0.0
    for number, steps in enumerate(stage_lengths(config)):
        stage = config.all_stages()[number]
        largest = max(stage.buckets.sizes(), key=lambda size: size[0] * size[1])
        effort = bucket_flops(config, largest) / bucket_flops(config, speed.bucket)
        images = steps * step_images(config, number, largest, ranks)
        seconds += images * effort / speed.images_per_second
    return seconds


def stage_lengths(config: Config) -> list[int]:
    """Optimizer steps of each stage; 0 for one that begins after the last step."""
    starts = [min(stage.from_step, config.train.steps) for stage in config.all_stages()]
    return [after - start for start, after in pairwise([*starts, config.train.steps])]


def step_images(config: Config, number: int, bucket: tuple[int, int], ranks: int) -> int:
    """Images of an optimizer step of all ranks in a stage, at a bucket (width, height)."""
    return images_at(config.train, config.all_stages()[number], bucket) * micro_batches(config.train, ranks)


def speed_lines(config: Config, speed: Speed | None, card: Card, ranks: int) -> str:
    """The speed and how it is known, and the hours to the end."""
    if speed is None:
        return (
            f"speed: not known for this network on {card.name} in {config.train.precision}; --measure takes steps on "
            "this machine"
        )
    train, latents = config.train, config.latents
    first = step_images(config, 0, speed.bucket, ranks)
    length = spent(seconds_to_the_end(config, speed, ranks))
    lines = [
        f"speed: {speed.images_per_second:.3g} images/s, {speed.how}",
        f"to the end: {length} for {train.steps:,} steps of {first:,} images; samples, held-out loss and checkpoints "
        "come on top",
    ]
    if latents.train_steps and not latents.weights:
        lines.append(
            f"before it: {latents.train_steps:,} steps of the autoencoder, unless {latents.folder} has one"
        )
    return "\n".join(lines)


def spent(seconds: float) -> str:
    """A length of time in the unit in which it is easily read."""
    for limit, unit, name in (
        (90.0, 1.0, "seconds"),
        (90 * 60.0, 60.0, "minutes"),
        (100 * HOUR, HOUR, "hours"),
    ):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / HOUR:,.0f} hours ({seconds / HOUR / 24:.1f} days)"
