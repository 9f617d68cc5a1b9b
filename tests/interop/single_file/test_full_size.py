"""SDXL at full size through a written single file: exact counts, and a bf16 UNet from it without a second copy."""

from pathlib import Path

import pytest
import torch

from benchmarks.bench_interop import SCRATCH, anonymous_memory, random_checkpoint
from refimpl.commands.files.inspect import describe
from refimpl.interop import single_file
from refimpl.interop.network.networks import unet_of
from refimpl.interop.single_file.layout import UNET
from tests.interop.checkpoints import PARTS, bits


@pytest.mark.slow
def test_full_size_single_file(tmp_path: Path) -> None:
    """Needs 7 GB of disk and 6 GB of memory."""
    path = tmp_path / "sdxl.safetensors"
    source = random_checkpoint()
    single_file.save(source, path)
    read = single_file.load(path)
    facts = describe(read, str(path))
    counts = {name: (sizes["tensors"], sizes["parameters"]) for name, sizes in facts["parts"].items()}
    assert counts == {
        "unet": (1680, 2_567_463_684),
        "vae": (248, 83_653_863),
        "text_l": (196, 123_060_480),
        "text_g": (517, 694_659_840),
    }
    assert facts["architecture"] == "SDXL base"
    for part in PARTS:
        one, two = getattr(source, part), getattr(read, part)
        assert one.keys() == two.keys()
        assert all(bits(one[key]) == bits(two[key]) for key in one)
    largest = max(value.numel() * 2 for value in (read.unet or {}).values())
    before = anonymous_memory()
    unet = unet_of(read, str(path), torch.bfloat16)
    assert anonymous_memory() - before <= 2 * 2_567_463_684 + largest + SCRATCH
    key = "middle_block.1.transformer_blocks.9.ff.net.0.proj.weight"
    expected = source.unet[key] if source.unet is not None else torch.empty(0)
    assert torch.equal(unet.get_parameter(key), expected.bfloat16()), UNET + key
