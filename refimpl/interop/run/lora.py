"""The adapters of a run that trains LoRA, for export to other tools (Hu et al. 2021)."""

from pathlib import Path

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.run.run_folder import read_run
from refimpl.interop.single_file.prediction_markers import prediction_metadata


def load(path: Path | str, weights: str = "ema") -> LoRAFile:
    """The adapters of a run's newest whole checkpoint, or of a checkpoints/step-* folder.

    weights  "ema", the moving average, or "unet", the weights as trained
    returns  the adapters, with the metadata that kohya's trainer writes
    Raises InputError when something is missing or damaged, or the run trains no adapters.
    """
    found = read_run(Path(path), weights)
    if not found.lora.rank:
        raise InputError(
            f"{found.folder} is from a run that trains full weights; `refimpl export` writes those"
        )
    prediction = Prediction(
        found.diffusion.parameterisation, found.diffusion.zero_terminal_snr, "the run's configuration"
    )
    return LoRAFile(**found.states, metadata=training_metadata(prediction))


def training_metadata(prediction: Prediction) -> dict[str, str]:
    """The metadata that tools look for in a LoRA: the family of its base model, and what that predicts.

    ss_* are as kohya's trainer writes them, modelspec.* as in Stability AI's Model Metadata Standard Specification.
    """
    return {
        "ss_network_module": "networks.lora",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_v_parameterization": str(prediction.kind == "v"),
        "ss_zero_terminal_snr": str(prediction.zero_terminal_snr),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": "1024x1024",
        **prediction_metadata(prediction),
    }
