"""The adapters of a run that trains LoRA, for export to other tools (Hu et al. 2021)."""

from pathlib import Path

from refimpl.diffusion.config import DiffusionConfig
from refimpl.errors import InputError
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.run.run_folder import CONFIG, read_weights
from refimpl.interop.single_file.prediction_markers import prediction_metadata
from refimpl.model.lora.config import LoRAConfig
from refimpl.tables import from_table


def load(path: Path | str, weights: str = "ema") -> LoRAFile:
    """The adapters of a run's newest whole checkpoint, or of a checkpoints/step-* folder.

    weights  "ema", the moving average, or "unet", the weights as trained
    returns  the adapters, with the metadata that kohya's trainer writes
    Raises InputError when something is missing or damaged, or the run trains no adapters.
    """
    folder, _, table, states, _ = read_weights(Path(path), weights)
    where = f"{folder}/{CONFIG}"
    if not from_table(LoRAConfig, table.get("lora", {}), f"{where} [lora]").rank:
        raise InputError(f"{folder} is from a run that trains full weights; `refimpl export` writes those")
    diffusion = from_table(DiffusionConfig, table.get("diffusion"), f"{where} [diffusion]")
    prediction = Prediction(
        diffusion.parameterisation, diffusion.zero_terminal_snr, "the run's configuration"
    )
    return LoRAFile(**states, metadata=training_metadata(prediction))


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
