"""What a single file's empty tensors say about it (the convention of ComfyUI and A1111)."""

from refimpl.conformance.check import Measured, check
from refimpl.conformance.guarded import Guarded

CONVENTION = "the files' convention: empty tensors v_pred and ztsnr"


def _is_read(peer: Guarded, keys: list[str], prediction: str, zero_snr: bool) -> Measured:
    found = peer.markers(keys)
    wrong = (found[0] != prediction) + (found[1] != zero_snr)
    return Measured(wrong, f"{found[0]}, {'ends' if found[1] else 'does not end'} in zero SNR")


@check(cites=CONVENTION, unit="facts", limit=0)
def both(peer: Guarded) -> Measured:
    """v_pred and ztsnr together are a v-prediction model whose schedule ends in zero SNR."""
    return _is_read(peer, ["v_pred", "ztsnr"], "v", True)


@check(cites=CONVENTION, unit="facts", limit=0)
def prediction_alone(peer: Guarded) -> Measured:
    """v_pred without ztsnr is a v-prediction model on the published schedule."""
    return _is_read(peer, ["v_pred"], "v", False)


@check(cites=CONVENTION, unit="facts", limit=0)
def neither(peer: Guarded) -> Measured:
    """A file without markers is an eps model on the published schedule."""
    return _is_read(peer, [], "eps", False)
