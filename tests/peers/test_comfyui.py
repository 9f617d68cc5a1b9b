"""ComfyUI itself: a full-size file in its checkpoint loader, a LoRA of every layer, and the nodes in its server."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bench_interop import random_checkpoint
from refimpl.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from refimpl.interop import single_file
from refimpl.interop.checkpoint import Prediction
from tests.peers.checkouts import checkout, run_in
from tests.peers.every_layer import write_lora
from tests.tolerances import FLOAT32_ROUNDING, SAMPLED_FLOAT32

pytestmark = pytest.mark.peers

COMFYUI = "Comfy-Org/ComfyUI"
COMFYUI_LAST_ABAR = 4.8973451890853435e-08
"""What ComfyUI puts in the place of zero, so that no level is infinite."""


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of every Linear and Conv2d: 794 of the UNet, 72 of CLIP-L, 193 of bigG."""
    path = tmp_path_factory.mktemp("lora") / "every_layer.safetensors"
    assert write_lora(path, is_whole=True) == {"unet": 794, "text_l": 72, "text_g": 193}
    return path


def test_a_lora_of_every_layer_loads_whole(lora: Path) -> None:
    found = run_in("comfyui_lora", checkout(COMFYUI), lora)
    assert found == {"modules": 1059, "patches": 1059, "misshapen": [], "unloaded": []}


def test_a_full_size_file_is_sdxl_with_v_and_zero_snr(lora: Path, tmp_path: Path) -> None:
    """Needs 7 GB of disk and about 12 GB of memory; takes minutes."""
    tool, path = checkout(COMFYUI), tmp_path / "sdxl.safetensors"
    single_file.save(replace(random_checkpoint(), prediction=Prediction("v", True, "given")), path)
    assert path.stat().st_size > 6.9e9
    try:
        answer = run_in("comfyui_file", tool, path, lora)
    finally:
        path.unlink()
    assert (answer["network"], answer["config"], answer["prediction"]) == ("SDXL", "SDXL", "V_PREDICTION")
    assert answer["zsnr"]
    largest = math.sqrt(1 / COMFYUI_LAST_ABAR - 1)
    assert answer["largest_sigma"] == pytest.approx(largest, rel=FLOAT32_ROUNDING)
    assert answer["unet"] == 1680
    assert answer["differing"] == []
    # Beside our two markers, which it has read, ComfyUI may miss logit_scale, which it does not use.
    told = [line for line in answer["told"] if "logit_scale" not in line]
    assert told == ["left over keys: dict_keys(['v_pred', 'ztsnr'])"]
    assert (answer["lora_patches"], answer["lora_told"]) == (1059, [])


def test_the_nodes_are_found_described_and_sample_to_the_projects_own_results(tmp_path: Path) -> None:
    answer = run_in("comfyui_nodes", checkout(COMFYUI), tmp_path)
    assert answer["builtin"]
    for name, node in NODE_CLASS_MAPPINGS.items():
        told = answer["described"][name]
        declared = node.INPUT_TYPES()  # pyright: ignore[reportAttributeAccessIssue]
        assert told["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[name]
        assert told["category"] == node.CATEGORY  # pyright: ignore[reportAttributeAccessIssue]
        assert list(told["input"]["required"]) == list(declared["required"])
        assert list(told["input"].get("optional", {})) == list(declared.get("optional", {}))
    assert {name: error for name, error in answer["errors"].items() if not error <= SAMPLED_FLOAT32} == {}
