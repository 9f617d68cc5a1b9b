"""All of SDXL from single file to diffusers folder and back, bitwise: 14 GB of disk, next to no memory."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.bench_interop import anonymous_memory, random_checkpoint
from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.diffusers_folder.weights import read_json
from refimpl.storage import safetensors_file
from tests.interop.checkpoints import PARTS, same_bits

MOST_MEMORY = (
    256 << 20
)  # bytes beside the mapped files: bigG's transposed projection, pieces, Python's objects


@pytest.mark.slow
def test_the_whole_of_sdxl_goes_through_both_formats(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as place:  # pytest would keep 14 GB of the last three runs
        check_both_formats(Path(place))


def check_both_formats(place: Path) -> None:
    source = replace(random_checkpoint(), prediction=Prediction("v", True, "given"))
    folder, file = place / "folder", place / "sdxl.safetensors"
    before = anonymous_memory()
    diffusers_folder.save(source, folder)
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        with torch.device("meta"):
            theirs = kind.from_config(dict(read_json(folder / part / "config.json"))).state_dict()
        ours, _ = safetensors_file.read(folder / part / "diffusion_pytorch_model.safetensors")
        assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}
    single_file.save(diffusers_folder.load(folder), file)
    assert anonymous_memory() - before <= MOST_MEMORY
    found = single_file.load(file)
    assert found.prediction.zero_terminal_snr
    for part in PARTS:
        state, expected = getattr(found, part), getattr(source, part)
        assert state.keys() == expected.keys()
        # a tensor at a time: the files are larger than the memory
        assert all(same_bits({key: state[key]}, {key: expected[key]}) for key in expected)
