"""What matters most about a run, from its rows, faults and settings."""

from collections.abc import Iterator

import numpy as np

from refimpl.report.headlines.data_set import named
from refimpl.report.page import Headline, Markup, phrase
from refimpl.report.runs.read_run import Run

RISEN = 1.1  # held-out loss, as a multiple of its least, from which a run is said to overfit
MANY_SKIPPED = 0.01  # share of the steps
STALLED = 0.2  # share of the time that waits for images
LEAST_MASS = 1e-4  # share of the loss weight on the noisiest timesteps
LATEST = 0.25  # share of the rows, the newest, that the speed is judged by
LISTED = 20
NAMED = 4  # images of a skipped step


def run_headlines(run: Run) -> list[Headline]:
    """Headlines of a run; where nothing is wrong, one that says how far it has come."""
    found = [*_rows(run), *_faults(run), *_losses(run), *_speed(run), *_terminal(run)]
    found += [Headline("note", f"{problem}.") for problem in run.problems]
    return [*found, *_progress(run, any(each.severity == "bad" for each in found))]


def _rows(run: Run) -> Iterator[Headline]:
    if not len(run.rows):
        yield Headline(
            "bad", "The run has logged no row.", "It ended before its first step; its terminal says why."
        )
    if run.rows.broken:
        yield Headline(
            "note",
            f"{run.rows.broken} lines of metrics.jsonl are no rows and are passed over.",
            "A process killed while it wrote leaves half a line; more than a few mean a damaged disk.",
        )


def _faults(run: Run) -> Iterator[Headline]:
    if run.faults:
        last = run.last("loss")
        taken = max(1, last[0] if last else 1)
        listed = [_fault(row) for row in run.faults[:LISTED]]
        yield Headline(
            "bad" if len(run.faults) > MANY_SKIPPED * taken else "warning",
            f"{len(run.faults)} of {taken:,} steps were skipped: a loss or a gradient was not finite.",
            "Look at the images listed; if they differ each time, lower optimizer.learning_rate.",
            named(listed, len(run.faults)),
        )
    if run.quarantine:
        listed = [phrase("{}: {}", row.get("path"), row.get("reason")) for row in run.quarantine[:LISTED]]
        yield Headline(
            "warning",
            f"{len(run.quarantine)} images turned out bad during the run; others took their place.",
            "Repair or remove them; when they are more than 1 % of the data set, the run ends.",
            named(listed, len(run.quarantine)),
        )


def _fault(row: object) -> Markup:
    row = row if isinstance(row, dict) else {}
    images = row.get("images")
    names = (
        [str(image.get("id")) for image in images if isinstance(image, dict)]
        if isinstance(images, list)
        else []
    )
    shown = ", ".join(["{}"] * len(names[:NAMED]) + ["…"] * (len(names) > NAMED))
    return phrase("step {}, {}: " + shown, row.get("step"), row.get("not_finite"), *names[:NAMED])


def _losses(run: Run) -> Iterator[Headline]:
    steps, losses = run.series("heldout_loss", len(run.rows) + 2)
    if len(losses) < 3:
        return
    best = int(losses.argmin())
    least, last = float(losses[best]), float(losses[-1])
    if last > RISEN * least and best < len(losses) - 1:
        yield Headline(
            "warning",
            f"The held-out loss was lowest at step {steps[best]:,} ({least:.4f}) and has risen to {last:.4f}.",
            "The run begins to learn its images by heart: take a checkpoint near that step, or give it more images.",
        )
    elif last < losses[0]:
        yield Headline(
            "good",
            f"The held-out loss fell from {losses[0]:.4f} to {last:.4f}"
            + ("." if best == len(losses) - 1 else f"; it was lowest at step {steps[best]:,} ({least:.4f})."),
        )


def _speed(run: Run) -> Iterator[Headline]:
    _, stalls = run.series("loader_stall", len(run.rows) + 2)
    if not len(stalls):
        return
    share = float(np.mean(stalls[-max(1, round(LATEST * len(stalls))) :]))
    if share > STALLED:
        yield Headline(
            "warning",
            f"{share:.0%} of the time goes into waiting for images.",
            "Raise data.workers, or encode the images once with `refimpl cache`.",
        )


def _terminal(run: Run) -> Iterator[Headline]:
    weight = run.weight_mass
    if weight is None or not run.settings.get("diffusion.zero_terminal_snr") or weight >= LEAST_MASS:
        return
    yield Headline(
        "warning",
        f"{weight:.4%} of the loss weight lies on the noisiest timesteps: the first step from pure noise is not "
        "trained.",
        "Set diffusion.loss_weight to snr_plus_one, or to floor with a diffusion.weight_floor (N §2.4).",
    )


def _progress(run: Run, is_bad: bool) -> Iterator[Headline]:
    last = max((int(step) for step in run.rows.steps), default=0)
    if run.steps is None or not last:
        return
    if last >= run.steps:
        yield Headline(
            "note" if is_bad else "good",
            f"The run has taken all of its {run.steps:,} steps.",
            "Draw images with `refimpl sample RUN`, or write it for other tools with `refimpl export RUN`.",
        )
    else:
        saved = (
            f"its newest checkpoint is of step {run.checkpoints[-1]:,}"
            if run.checkpoints
            else "it has no checkpoint"
        )
        yield Headline(
            "note",
            f"The run stands at step {last:,} of {run.steps:,}; {saved}.",
            "If it is no longer running, continue it with `refimpl train --resume RUN`.",
        )
