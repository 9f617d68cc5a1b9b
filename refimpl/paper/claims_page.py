"""docs/claims.md: every claim with its value and interval, or the reason why it has none."""

from collections import Counter
from collections.abc import Iterable, Sequence

from refimpl.paper.claims_table import KINDS, SOURCES, Claim
from refimpl.paper.computed.cropping import IMAGES as SHAPES
from refimpl.paper.computed.quantity import Quantity
from refimpl.paper.effects import (
    BLACK_FROM_INFINITY,
    BRIGHTER_FROM_14,
    COHERENT_ON_THE_WAY,
    FIRST_ESTIMATE_LOST,
    WHITE_FROM_INFINITY,
)
from refimpl.paper.results_file import Measured
from refimpl.paper.trained.autoencoders import decoder_and_jpeg
from refimpl.paper.trained.autoencoders.ema_and_batch import BATCHES
from refimpl.paper.trained.experiment import AS_PREDICTED, verdict
from refimpl.paper.trained.fresh_figures import FRESH
from refimpl.paper.trained.measures import EXPERIMENTS
from refimpl.paper.trained.recipe.factorial import SIDE, STEPS

SHOWN = 4  # significant digits
NOT_YET = "not measured yet"
KINDS_SAID = {
    "pinned": "a test holds the code to it",
    "computed": "a number with its interval, by `refimpl claims --computed`",
    "trained": "an effect on small networks, by `refimpl claims --trained`",
    "cannot": "can't be measured here, with the reason",
}
HEAD = """# The claims, one by one

<!-- Written by `refimpl claims --page`. Change refimpl/paper/claims.tsv, or measure again, and write it anew. -->

{count} testable statements of the reports and the community README that this project implements, in its own words,
each with its answer. {kinds}

Intervals are bootstrap intervals of 95 %, over photographs or over trainings, with seed 0. Two kinds are over drawn
numbers instead: those for four of N37's five distributions, over the {shapes} shapes drawn from each, and that of
N67's measured power, over draws of photographs. Numbers without an interval are exact. The photographs are those that
scikit-image and scikit-learn bundle; averages of 8 × 8 px stand for latents. An effect whose sign the interval leaves
open is called unresolved, and one of the other sign the opposite.
"""
NOTES = """
## How to read some of the numbers

**Where leakage ends (N61).** The average of h·w latents carries noise of σ/√(h·w). At 832 × 1216 px, noise and signal
are equally strong at σ = {unit}. Of the variance of the average colour, the noised canvas still tells {at_136} at
σ = 136 and {at_317} at 317: between those levels, what a network can gain by reading the average off its input falls
from about a fifth to a twentieth, and it has to take the colour from the prompt instead. An earlier estimate of these
SNRs, 28 at σ = 14.6, took a variance of 0.382 for the average; the photographs whole, each scaled to the canvas, have
{variance}. There are only 13 of them: the ends of the interval of that variance, and of an SNR, are a factor of
{snr_ends} apart, and those of the σ at which the SNR is 1, which grows as the root of the variance, one of
{unit_ends}.

**The doubling rule (N16).** For one scene enlarged the exponent is 1. For a canvas that shows more of the world it is
{new}, so that N's rule is the upper bound that N says it is. Windows of 64 to 256 px of the same photographs are
compared; other sizes and sets of photographs have given 0.86 to 0.93, the lower part of which the interval covers.

**What is trivial (N03).** At t = 962 the best linear guess leaves {eps} of eps open and {v} of v, and at 999 nothing
of eps and all of v. An earlier estimate had 0.636 for v, on photographs with more power in their lowest frequencies;
the interval includes it.

**First estimates (N12).** The small networks' prompts settle the colour of a flat picture, so that a black one is as
black from σ = 56 as from ∞. The effect is measured on shapes, whose size and place the prompt leaves open.

**Measures chosen late (N12, N20).** For these two, a first measure had the other sign on the first network: the
brightness of black for N12, the scatter of the first estimate for N20. Those in the table were chosen after that
was seen, and the first network is among the five. On five networks of other seeds, on which nothing was chosen, they
came out as {n12} and {n20}, and the other figures' effects as before
(*figures, fresh networks* below).

**Conditions that took a second design (S11, S14).** The first was 450 steps of eight pictures of 32 px. It ended
before the networks could draw boards, or place a shape of one of 30 pairs of colours: log₂ of the detail was 0.037
[−0.0003, 0.083], and shapes moved by 0.0013 [0.0001, 0.0029] px for one px. (At the learning rate of the other
networks, which silences the layer that takes in the sizes, it had been 0.002 and 0.0001.) The table has 500 steps of
32 pictures of 16 px, S14's in two colours, at the same cost. That was chosen on networks of two other seeds.

**What small autoencoders leave open (N45, S26).** They have seen too few pictures to settle, {psnr} dB of PSNR after
S26's last step. There the averaged weights lag behind weights that each step still improves, which costs more than
averaging gains; of a training that has settled, which S writes of, that says nothing. And what N45's decoders
restore, at {restored} dB, is so blurred that edges 8 px apart stand out less than in the originals, with any of the
three.

**What is answered of v against eps (N05).** A part, and at {side} px alone: after the same {steps} steps on the plain
schedule, v has the lower held-out loss, in units of v, and the truer colours. That is one point of each training, not
its speed; and numerical stability and high resolutions were not measured. Of the four cells of v and eps on both
schedules, that of eps on the rescaled one is missing, since it is refused (N02): where the SNR is 0, the noise to
predict is the input itself.

**When tags are counted (N42).** N keeps track of how often tags occur "during training" and doesn't say how. Here the
tags of a stage's whole data set are counted before its first step, so that an image's weight is the same at every
visit, on any number of ranks and in a run that is continued, and the weights have mean 1. Counts that grew from step
to step would give the first images weights near 1, come to the same shares of tags by the end of the first epoch, and
have to be summed over ranks and kept in checkpoints.

**What five networks leave open (N43, S28).** Of rare tags' colours, tag weights lower the error in the mean, and of
common ones they raise it; but the interval of the first includes 0. So does that of the contrast that offset noise
adds: without it, networks differ in their contrast by more than the effect.

**What these networks are (N05, N13, N25, N43, S32).** A text reaches them by cross-attention. The layer that takes in
the sizes and the pooled text learned so fast in them that most of the units behind it stay silent; sizes were the
same in all their pictures.

**DPM++ (N57).** The weight of the first estimate falls only as the inverse logarithm of its level: {w} even at
σ = 20000. It is 0 at ∞ alone, so a multistep sampler that starts from a huge finite level must leave it out, as the
samplers here do.

**Crops (N37).** Whether crops "usually" remove less than 32 px depends on the images: buckets 64 px apart leave up to
64 px over, which is about half of the crops for images of any shape. N's mean aspect error of 0.033 is that of images
of any shape between 1:2 and 2:1 in the buckets of N's size, not of those of a camera.

**Black and white (N09, R02).** Brightness is the mean pixel, from 0 to 1: "completely black" should have 0 and
"completely white" 1. From ∞ the small networks draw black at {black} of 255 in the mean, from 14.6 at {black_14} of
255; they come near to true black and don't reach it.
"""


def claims_page(claims: Sequence[Claim], measured: Measured) -> str:
    """The page as Markdown."""
    counts = Counter(claim.kind for claim in claims)
    kinds = "; ".join(f"{counts[kind]} **{kind}**: {KINDS_SAID[kind]}" for kind in KINDS) + "."
    parts = [HEAD.format(count=len(claims), kinds=kinds, shapes=f"{SHAPES:,}")]
    for letter, source in SOURCES.items():
        rows = [_row(claim, measured) for claim in claims if claim.id.startswith(letter)]
        table = ["| | where | statement | answer | how |", "| --- | --- | --- | --- | --- |", *rows]
        parts.append(f"\n## {letter}: {source}\n\n" + "\n".join(table) + "\n")
    parts.append(NOTES.format(**_noted(measured)))
    parts += [_measures(measured)]
    return "".join(parts)


def answer_of(claim: Claim, measured: Measured) -> str:
    """What stands in the answer's column: the value with its interval, the reason, or that it is not measured yet.

    A pinned claim with a measure has both, first the pinned value.
    """
    quantities = measured.get(claim.measure, ())
    if not quantities:
        return claim.answer or NOT_YET
    shown = _telling(claim, quantities)
    said = "; ".join([*filter(None, [claim.answer]), *(f"{each.name}: {judged(each)}" for each in shown)])
    said += f"; {REMARKS[claim.id]}" if claim.id in REMARKS else ""
    return said if len(shown) == len(quantities) else f"{said} ([all](#{_anchor(claim.measure)}))"


def judged(quantity: Quantity) -> str:
    """A number with its interval, and where it is an effect without the predicted sign, the verdict on it."""
    predicted = {name for experiment in EXPERIMENTS.values() for name in experiment.predicted}
    said = verdict(quantity) if quantity.name in predicted else AS_PREDICTED
    return interval(quantity) + (f" ({said})" if said != AS_PREDICTED else "")


def interval(quantity: Quantity) -> str:
    """A number with its interval, which an exact one does not have."""
    value, low, high = (f"{x:.{SHOWN}g}" for x in (quantity.value, quantity.low, quantity.high))
    return value if quantity.is_exact else f"{value} [{low}, {high}]"


def _telling(claim: Claim, quantities: Sequence[Quantity]) -> Sequence[Quantity]:
    """The quantities that stand in the table: those that a claim names by a word, else the first two."""
    words = TELLING.get(claim.id, ())
    return [each for each in quantities if any(word in each.name for word in words)] or quantities[:2]


# Words of the names of the quantities that answer a claim most directly.
TELLING = {
    "N03": ("t = 962", "t = 999"),
    "N05": ("eps less v",),
    "N09": ("contrast", BLACK_FROM_INFINITY, WHITE_FROM_INFINITY),
    "N13": ("with v",),
    "N37": ("log-uniform 1:2 to 2:1, novelai_v3", "cameras, novelai_v3"),
    "N49": ("missing from x₁ at σ₀ = 20000", "missing from x₁ at σ₀ = ∞"),
    "N57": ("weight of the estimate at σ = 20000", "weight of the estimate at σ = ∞"),
    "N60": ("SNR of the canvas mean at σ = 14.6", "SNR of the canvas mean at σ = 20000"),
    "N61": ("σ = 136", "σ = 317"),
    "N67": ("78224",),
    "N45": ("blockiness",),
    "N69": ("correlation", "white"),
    "R02": (BLACK_FROM_INFINITY,),
    "S14": ("pixels that the shape moves", "less for the middle"),
    "S26": ("less last", "batch 16 less 4"),
    "R26": ("euler",),
    "S28": ("less without",),
}

# What a row says beside its numbers: how to read them, and what they leave of the statement.
REMARKS = {
    "N05": f"at {SIDE} px, after {STEPS} steps; numerical stability and high resolutions were not measured",
    "N09": "0 and 1 were asked for",
    "R02": "true black is 0",
    "S28": "on small networks, by `refimpl claims --trained`",
}


def _row(claim: Claim, measured: Measured) -> str:
    how = f"`{claim.command}`" if claim.command else "—"
    test = f"tests/{claim.test}"
    if claim.test and test not in how:
        how += f"<br>`{test}`"
    return f"| {claim.id} | {claim.section} | {claim.statement} | {answer_of(claim, measured)} | {how} |"


def _measures(measured: Measured) -> str:
    """Every measure with all its numbers."""
    parts = ["\n## All measured numbers\n"]
    for name, quantities in measured.items():
        rows = [f"| {each.name} | {judged(each)} |" for each in quantities]
        parts.append(f"\n### {name}\n\n| | |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def _anchor(measure: str) -> str:
    return measure.lower().replace(" ", "-")


def _noted(measured: Measured) -> dict[str, str]:
    """The numbers that the notes quote."""
    by_name = {each.name: each for quantities in measured.values() for each in quantities}
    area = 104 * 152
    snr, unit = by_name["SNR of the canvas mean at σ = 14.6"], by_name[_unit_name()]
    black, brighter = by_name[BLACK_FROM_INFINITY].value, by_name[BRIGHTER_FROM_14].value
    return {
        "unit": interval(unit),
        "snr_ends": f"{snr.high / snr.low:.0f}",
        "unit_ends": f"{unit.high / unit.low:.1f}",
        "side": str(SIDE),
        "steps": str(STEPS),
        "at_136": f"{by_name['share told of the canvas mean at σ = 136'].value:.0%}",
        "at_317": f"{by_name['share told of the canvas mean at σ = 317'].value:.0%}",
        "variance": f"{snr.value * 14.6**2 / area:.3f}",
        "black": f"{255 * black:.0f}",
        "black_14": f"{255 * (black + brighter):.0f}",
        "n12": interval(by_name[FIRST_ESTIMATE_LOST + FRESH]),
        "n20": interval(by_name[COHERENT_ON_THE_WAY + FRESH]),
        "psnr": _span(by_name[f"PSNR in dB at batch {batch}, last weights"].value for batch in BATCHES),
        "restored": _span(
            each.value for each in measured[decoder_and_jpeg.MEASURE] if each.name.startswith("PSNR")
        ),
        "new": interval(by_name["exponent of σ_max in the side, new content"]),
        "eps": interval(by_name["eps left open at t = 962"]),
        "v": interval(by_name["v left open at t = 962"]),
        "w": f"{by_name[_weight_name()].value:.1%}",
    }


def _span(values: Iterable[float]) -> str:
    """Values as they stand in a sentence: one if they are the same in whole numbers, else the ends."""
    ends = sorted({round(value) for value in values})
    return f"{ends[0]}" if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"


def _unit_name() -> str:
    return "σ at which the SNR of the canvas mean is 1"


def _weight_name() -> str:
    return "DPM++ 2M's weight of the estimate at σ = 20000"
