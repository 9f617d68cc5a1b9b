"""The full SDXL UNet against diffusers', once, on small latents: takes 11 GB of memory and a few minutes."""

import pytest
import torch

from refimpl.model.unet import UNet, UNetConfig
from tests.model.diffusers_unet import diffusers_unet, inputs, to_diffusers
from tests.tolerances import NETWORK_FLOAT32

SIZE_FEATURES = 256


@pytest.mark.slow
def test_full_size_equals_diffusers(request: pytest.FixtureRequest) -> None:
    if "slow" not in request.config.option.markexpr:
        pytest.skip("needs 11 GB and minutes: run with -m slow")
    config = UNetConfig.sdxl()
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        ours, theirs = UNet(config), diffusers_unet(config, SIZE_FEATURES)
    ours.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:  # gains of norms about 1, biases about 0
                parameter.normal_(float(name.endswith("weight")), 0.1, generator=generator)
    # Shared storage: two networks take the memory of one.
    theirs.load_state_dict(to_diffusers(ours.state_dict(), config), assign=True)
    call = inputs(config, 32, 32, batch=1, tokens=77, size_features=SIZE_FEATURES)
    with torch.no_grad():
        mine, oracle = call.ours(ours), call.theirs(theirs)
    assert (mine - oracle).abs().max() <= NETWORK_FLOAT32 * oracle.abs().max()
