"""What matters most about a data set before it is trained on (N §4.1)."""

from collections.abc import Sequence

from refimpl.data.survey.plan_survey import PlannedEpoch
from refimpl.data.survey.survey import Survey
from refimpl.report.page import Headline, phrase

MANY_ENLARGED = (
    0.1  # share of the images from which enlarging is a warning: what is learned there is the blur
)
FEWEST_BUCKETS = 3  # buckets; of fewer, each is the narrowest or the widest
MANY_DROPPED = 0.05  # share of an epoch's images


def data_headlines(
    found: Survey, listed: int, plans: Sequence[PlannedEpoch] = (), no_plan: str = ""
) -> list[Headline]:
    """Headlines of a survey; where nothing stands in the way of training, one that says so.

    listed   how many files of a kind to name
    no_plan  why no plan of the first epoch could be made; empty where one was
    """
    headlines = [*_refused(found, listed, no_plan), *_enlarged(found), *_pruned(found, listed)]
    if found.uncaptioned:
        headlines.append(
            Headline(
                "warning",
                f"{found.uncaptioned} of {found.images} images have no caption.",
                "They teach what a picture without a prompt looks like. Give them captions, or leave them if that is "
                "meant.",
                named(found.uncaptioned_paths, found.uncaptioned),
            )
        )
    headlines += _extreme(found)
    headlines += [
        Headline(
            "note",
            f"Each epoch leaves out {each.report.dropped.size} of {found.images} images in plan mode {each.mode}.",
            "They don't fill a batch. A smaller train.batch_size leaves out fewer; other epochs draw other images.",
            named(each.dropped, each.report.dropped.size),
        )
        for each in plans
        if each.report.dropped.size > MANY_DROPPED * found.images
    ]
    if not any(each.severity in ("bad", "warning") for each in headlines):
        headlines.append(
            Headline(
                "good",
                f"Nothing stands in the way of training on these {found.images} images.",
                "Start with `refimpl train CONFIG`; `refimpl estimate CONFIG` says before how long it will take.",
            )
        )
    return headlines


def _refused(found: Survey, listed: int, no_plan: str) -> list[Headline]:
    headlines = []
    if not found.images:
        headlines.append(Headline("bad", "There is no usable image.", "Name a folder or an index of images."))
    if no_plan:
        headlines.append(
            Headline(
                "bad", f"No first epoch can be planned: {no_plan}", "Lower train.batch_size, or add images."
            )
        )
    bad = [problem for problems in found.problems.values() for problem in problems]
    if bad:
        kinds = ", ".join(f"{len(problems)} {kind}" for kind, problems in sorted(found.problems.items()))
        headlines.append(
            Headline(
                "bad",
                f"{len(bad)} files can't be used: {kinds}.",
                "Repair or remove them, index the images again, and check again.",
                named([phrase("{}: {}", each.path, each.reason) for each in bad[:listed]], len(bad)),
            )
        )
    return headlines


def _enlarged(found: Survey) -> list[Headline]:
    if not found.small:
        return []
    return [
        Headline(
            "warning" if found.small > MANY_ENLARGED * found.images else "note",
            f"{found.small} of {found.images} images are enlarged: they are smaller than their bucket.",
            "Enlarged images teach blur. Use larger originals, buckets of a smaller area (buckets.max_area), or "
            "leave them out.",
            named(found.small_paths, found.small),
        )
    ]


def _extreme(found: Survey) -> list[Headline]:
    if not found.extreme or len(found.buckets) < FEWEST_BUCKETS:
        return []
    return [
        Headline(
            "note",
            f"{found.extreme} of {found.images} images are in the narrowest or the widest bucket.",
            "What is narrower or wider still is cropped to it. Look at them, and crop them or add a bucket "
            "(buckets.extra) where too much is lost.",
            named(found.extreme_paths, found.extreme),
        )
    ]


def _pruned(found: Survey, listed: int) -> list[Headline]:
    if not found.pruned:
        return []
    files = [
        phrase("{} ({} × {} px)", path, width, height) for path, width, height, _ in found.pruned[:listed]
    ]
    return [
        Headline(
            "warning",
            f"{len(found.pruned)} of {found.images} images are left out: no bucket is near their aspect.",
            "Crop them, add a bucket (buckets.extra), or raise data.max_aspect_error.",
            named(files, len(found.pruned)),
        )
    ]


def named(names: Sequence[str], count: int) -> list[str]:
    """The names, and how many more there are where they are not all."""
    return [*names, f"and {count - len(names)} more"] if names and count > len(names) else list(names)
