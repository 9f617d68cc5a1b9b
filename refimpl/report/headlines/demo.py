"""What matters most about the demo: its targets, and what a poor sample means."""

from collections.abc import Sequence

from refimpl.report.page import Headline
from refimpl.report.run_page import Criterion


def demo_headlines(criteria: Sequence[Criterion], photograph: str, side: int, parameters: int) -> list[Headline]:
    """Headlines of the demo's report.

    photograph  the prompt whose samples are the poorest
    side        of the canvas in pixels
    parameters  of the UNet
    """
    missed = [each for each in criteria if not each.passed]
    listed = [f"{each.name}: {_number(each.measured)}, wanted {each.wanted}" for each in missed]
    if missed:
        targets = Headline(
            "bad",
            f"{len(missed)} of {len(criteria)} targets are missed.",
            "Run the demo again without --short; if the same ones are missed, `refimpl doctor` checks the installation.",
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
            f"“{photograph}” is a blur, and that is no fault: flat colours and shapes are what this size can draw.",
            f"The UNet has {parameters / 1e6:.1f} million parameters where SDXL has 2,570, the canvas is {side} pixels a "
            "side, and only a few hundred crops of some dozen photographs were seen, for minutes. A sample that is black, "
            "noise, or the same grey for every prompt would be a fault; so would a colour that is asked for and not drawn.",
        ),
    ]


def _number(value: str | float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else value
