"""What matters most about the demo: its targets, and what a poor sample means."""

from collections.abc import Sequence

from refimpl.report.page import Headline, phrase
from refimpl.report.run_page import Criterion


def demo_headlines(
    criteria: Sequence[Criterion], photograph: str, photographs: int, side: int, parameters: int
) -> list[Headline]:
    """Headlines of the demo's report.

    photograph  the prompt whose samples are the poorest
    photographs  images of the data set that were cut from photographs
    side        of the canvas in pixels
    parameters  of the UNet
    """
    missed = [each for each in criteria if not each.passed]
    listed = [phrase("{}: {}, wanted {}", each.name, _number(each.measured), each.wanted) for each in missed]
    if missed:
        targets = Headline(
            "bad",
            f"{len(missed)} of {len(criteria)} targets are missed.",
            "Run the demo again without --short; if they are missed again, `refimpl doctor` checks the installation.",
            listed,
        )
    else:
        targets = Headline(
            "good",
            f"All {len(criteria)} targets are reached: the whole pipeline works on this machine.",
            "Train on your own images: `refimpl init FOLDER` writes settings for them.",
        )
    return [
        targets,
        Headline(
            "note",
            phrase("“{}” is a blur, and that is no fault: ", photograph)
            + "flat colours and shapes are what this size can draw.",
            f"The UNet has {parameters / 1e6:.1f} million parameters where SDXL has 2.6 billion, the canvas is "
            f"{side} pixels a side, and it has seen {photographs} cuts of photographs, for minutes. Noise, the same "
            "grey for every prompt, or another colour than the one asked for would be a fault.",
        ),
    ]


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"
