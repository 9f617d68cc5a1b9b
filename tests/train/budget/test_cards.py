"""Cards by name or memory, and their peaks."""

import re

import pytest

from refimpl.errors import InputError
from refimpl.train.budget.cards import CARDS, GIB, PEAKS, Card, find_card, peak_flops


@pytest.mark.parametrize("name", CARDS)
def test_cards_by_name(name: str) -> None:
    assert find_card(name) is find_card(name.upper()) is CARDS[name]
    assert CARDS[name].name in PEAKS


@pytest.mark.parametrize(
    "text", ["RTX 4090", "rtx-4090", " rtx4090\n", "GeForce RTX 4090", "NVIDIA GeForce RTX 4090"]
)
def test_a_card_by_the_names_that_people_and_drivers_give_it(text: str) -> None:
    assert find_card(text) is CARDS["rtx4090"]


def test_cards_have_less_than_what_is_sold() -> None:
    """80, 141, 40 and 24 GB; the first, third and fourth are binary."""
    sold = {"h100": 80 * GIB, "h200": 141e9 / GIB * GIB, "a100-40": 40 * GIB, "rtx4090": 24 * GIB}
    assert all(0.97 * sold[name] < card.memory < 1.07 * sold[name] for name, card in CARDS.items())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9), ("24 gb", 24 * 10**9), ("22.5GiB", int(22.5 * GIB)), ("512MiB", 512 * 2**20),
        ("16000MB", 16 * 10**9),
    ],
)  # fmt: skip
def test_cards_by_memory(text: str, size: int) -> None:
    assert find_card(text) == Card(f"a GPU of {text}", size)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24",
        "24TB",
        "-3GB",
        "0GB",
        "nanGB",
        "1e9GB",
        "h1000",
        "GB",
        "9999999999999GB",
        "٢٤GB",
        "24\nGB",
        "24,5GB",
        "inf",
        "NVIDIA",
        "GeForce",
        "RTX 4090 D",
        "NVIDIA RTX 4000",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    card = r"is neither a known card \(h100, h200, a100-40, rtx4090; the nearest is '.*'\) nor an "
    message = f"--gpu {re.escape(repr(text))} {card}amount of memory with its unit, as in 24GB or 22.5GiB"
    with pytest.raises(InputError, match=message):
        find_card(text)


def test_peaks_of_the_datasheets() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "tf32") == 494.7e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == peak_flops("NVIDIA H200", "bf16") == 989.4e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "tf32") == 156e12
    assert peak_flops("NVIDIA GeForce RTX 4090", "bf16") == 165.2e12


@pytest.mark.parametrize(
    ("name", "precision"),
    [("NVIDIA H100 80GB HBM3", "fp32"), ("NVIDIA GeForce RTX 4090 D", "bf16"), ("", "tf32")],
)
def test_unknown_peaks_are_none(name: str, precision: str) -> None:
    assert peak_flops(name, precision) is None


@pytest.mark.parametrize("text", ["1MB", "24MB", "0.02GB", "255MiB"])
def test_a_slip_of_the_unit_is_named(text: str) -> None:
    with pytest.raises(InputError, match=rf"--gpu '{text}': nothing trains in [\d,]+ bytes; check the unit"):
        find_card(text)
