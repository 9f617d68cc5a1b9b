"""Every experiment on small networks; `refimpl claims --trained` runs them, and each resumes by the weights kept.

The third column is the CPU time in seconds that one of five seeds may take on one core, with no weights at hand: all
together 90 minutes on two cores. Experiments that share networks stand apart, so that processes beside one another
do not train the same one.
"""

from refimpl.paper.trained import fresh_figures, small_figures
from refimpl.paper.trained.autoencoders import decoder_and_jpeg, ema_and_batch
from refimpl.paper.trained.conditions import (
    bucketed_crops,
    crop_conditioning,
    size_conditioning,
    tag_weights,
)
from refimpl.paper.trained.experiment import TrainedExperiment
from refimpl.paper.trained.recipe import (
    adaptation,
    factorial,
    min_snr_policies,
    offset_noise,
    refiner,
    scale_and_shift,
)

EXPERIMENTS: dict[str, TrainedExperiment] = {
    name: TrainedExperiment(module.of_seed, module.PREDICTED, seconds)
    for name, module, seconds in (
        ("figures", small_figures, 125),
        ("factorial", factorial, 340),
        ("min_snr_policies", min_snr_policies, 110),
        ("size_conditioning", size_conditioning, 115),
        ("offset_noise", offset_noise, 115),
        ("scale_and_shift", scale_and_shift, 110),
        ("adaptation", adaptation, 115),
        ("refiner", refiner, 115),
        ("crop_conditioning", crop_conditioning, 190),
        ("tag_weights", tag_weights, 110),
        ("bucketed_crops", bucketed_crops, 200),
        ("ema_and_batch", ema_and_batch, 200),
        ("decoder_and_jpeg", decoder_and_jpeg, 170),
        ("fresh_figures", fresh_figures, 125),
    )
}
