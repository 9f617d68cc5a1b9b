"""A run's checkpoint as a `Checkpoint`, from which other tools' files are written."""

from pathlib import Path

from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.network.architecture import Architecture, noted
from refimpl.interop.run.run_folder import load_model
from refimpl.model.pipeline import Model
from refimpl.text.tower_names import tower_parameters


def load(path: Path | str, weights: str = "ema") -> tuple[Checkpoint, Model]:
    """A run's newest checkpoint, or that of a checkpoints/step-* folder, and the model it was made from.

    weights  "ema", the moving average, or "unet", the weights as trained
    Raises InputError when something is missing, damaged, or does not fit.
    """
    model, _, step = load_model(Path(path), weights)
    encoder_l, encoder_g = model.encoder_l, model.encoder_g
    shapes = Architecture(
        model.unet.config, model.vae.config, encoder_l.config if encoder_l else None, encoder_g.config
    )
    diffusion = model.diffusion
    reason = f"the run's configuration, step {step}, weights {weights}"
    checkpoint = Checkpoint(
        unet=model.unet.state_dict(),
        vae=model.vae.state_dict(),
        text_l=tower_parameters(encoder_l) if encoder_l else None,
        text_g=tower_parameters(encoder_g),
        prediction=Prediction(diffusion.parameterisation, diffusion.zero_terminal_snr, reason),
        scale_shift=model.scale_shift,
        metadata=noted({}, shapes),
    )
    return checkpoint, model
