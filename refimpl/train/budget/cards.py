"""Memory and peak arithmetic of known GPUs (NVIDIA's datasheets)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refimpl.errors import InputError
from refimpl.names import nearest

if TYPE_CHECKING:
    import torch

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU: its name and its memory in bytes, as torch reports them."""

    name: str
    memory: int


SOLD = (
    23.5 / 24
)  # of a card's memory as it is sold, in GiB, what torch reports; the least of those seen below


def _sold(name: str, gigabytes: int) -> Card:
    """A card of which no report is at hand: its memory as sold, less the largest part that others keep back."""
    return Card(name, int(gigabytes * SOLD * GIB))


# h100, h200, a100-40 and rtx4090, of 80, 141, 40 and 24 GB, have what `torch.cuda.get_device_properties` gives as
# total_memory; the least that torch's out-of-memory messages in public issues show ("has a total capacity of …"),
# since it differs by driver and ECC.
CARDS = {
    "h100": Card("NVIDIA H100 80GB HBM3", int(79.1 * GIB)),
    "h100-pcie": _sold("NVIDIA H100 PCIe", 80),
    "h200": Card("NVIDIA H200", int(139.7 * GIB)),
    "a100-40": Card("NVIDIA A100-SXM4-40GB", int(39.3 * GIB)),
    "a100-80": _sold("NVIDIA A100-SXM4-80GB", 80),
    "a100-pcie-40": _sold("NVIDIA A100-PCIE-40GB", 40),
    "a100-pcie-80": _sold("NVIDIA A100 80GB PCIe", 80),
    "rtx3090": _sold("NVIDIA GeForce RTX 3090", 24),
    "rtx4080": _sold("NVIDIA GeForce RTX 4080", 16),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", int(23.5 * GIB)),
}

# Operations per second on tensor cores without sparsity, with float32 sums, by name of the device and by precision.
# H100 and H200: NVIDIA H100 Tensor Core GPU Architecture (whitepaper), Tab. 3, and the H200 datasheet, whose figures
# with sparsity are twice these; A100: NVIDIA A100 datasheet; RTX 3090: NVIDIA Ampere GA102 GPU Architecture
# (whitepaper), App. A; RTX 4080 and 4090: NVIDIA Ada GPU Architecture (whitepaper), App. A.
_HOPPER = {"tf32": 494.7e12, "bf16": 989.4e12}
_HOPPER_PCIE = {"tf32": 378e12, "bf16": 756e12}
_AMPERE = {"tf32": 156e12, "bf16": 312e12}
_AMPERE_3090 = {"tf32": 35.6e12, "bf16": 71e12}
_ADA_4080 = {"tf32": 48.7e12, "bf16": 97.5e12}
_ADA_4090 = {"tf32": 82.6e12, "bf16": 165.2e12}
PEAKS = {
    "NVIDIA H100 80GB HBM3": _HOPPER,
    "NVIDIA H100 PCIe": _HOPPER_PCIE,
    "NVIDIA H200": _HOPPER,
    "NVIDIA A100-SXM4-40GB": _AMPERE,
    "NVIDIA A100-PCIE-40GB": _AMPERE,
    "NVIDIA A100-SXM4-80GB": _AMPERE,
    "NVIDIA A100 80GB PCIe": _AMPERE,
    "NVIDIA GeForce RTX 3090": _AMPERE_3090,
    "NVIDIA GeForce RTX 4080": _ADA_4080,
    "NVIDIA GeForce RTX 4090": _ADA_4090,
}

LEAST = 2**28  # bytes; torch's own code takes as much of a card, so that less is a slip of the unit
# GB and MB are how cards are sold, in binary and with what the driver keeps; GiB and MiB are what torch reports.
_UNITS = {"gb": SOLD * GIB, "gib": GIB, "mb": SOLD * 2**20, "mib": 2**20}
_AMOUNT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([a-z]*)")
_UNITLESS = ("", "g", "m")


def find_card(text: str) -> Card:
    """The card of that name, or one with that much memory: "24GB", "79.1GiB", "16384MiB".

    A card may also be named as the driver does ("NVIDIA GeForce RTX 4090"), and spaces and hyphens don't matter.
    "24GB" is a card that is sold as one of 24 GB, of which torch reports a little less than 24 GiB.

    Raises InputError for anything else, naming the nearest card, the cards that a name may mean, or the unit that an
    amount lacks; and for too little memory to load torch.
    """
    text = text.strip()
    for short, card in CARDS.items():
        if _plain(text) in (_plain(short), _plain(card.name)):
            return card
    amount = _AMOUNT.fullmatch(text.lower())
    if amount and amount[2] in _UNITS and float(amount[1]) > 0:
        memory = int(float(amount[1]) * _UNITS[amount[2]])
        if memory < LEAST:
            raise InputError(
                f"--gpu {text!r}: nothing trains in {memory:,} bytes; check the unit, as in 24GB or 22.5GiB"
            )
        return Card(f"a GPU of {text}", memory)
    if amount and amount[2] in _UNITLESS:
        unit = (amount[2] or "g").upper()
        raise InputError(
            f"--gpu {text!r}: an amount of memory needs its unit, as in {amount[1]}{unit}B or {amount[1]}{unit}iB"
        )
    meant = [short for short in CARDS if short.startswith(f"{_plain(text)}-")]
    if len(meant) > 1:
        raise InputError(f"--gpu {text!r}: there are several; name one of {', '.join(meant)}")
    raise InputError(
        f"--gpu {text!r} is neither a known card ({', '.join(CARDS)}; the nearest is "
        f"{nearest(text, CARDS)[0]!r}) nor an amount of memory with its unit, as in 24GB or 22.5GiB"
    )


def _plain(name: str) -> str:
    """A card's name without its maker, brand, spaces, hyphens and capitals."""
    return re.sub(r"^(nvidia|geforce)+", "", re.sub(r"[ -]", "", name.lower()))


def this_card(device: torch.device) -> Card:
    """The GPU that torch sees as this device."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    return Card(properties.name, properties.total_memory)


def peak_flops(name: str, precision: str) -> float | None:
    """Operations per second that a card can do in `train.precision`; None where no datasheet's figure is known."""
    return PEAKS.get(name, {}).get(precision)
