"""Differences between files and networks: all of them, and the nearest name to each unknown one."""

from refimpl.interop.single_file.layout import unet_shapes
from refimpl.model.unet import UNetConfig
from refimpl.storage.key_report import COMPARED, differences

SHAPES = dict(unet_shapes(UNetConfig.tiny()))


def test_what_fits_has_no_differences() -> None:
    assert differences(SHAPES, SHAPES) == []
    assert differences({}, {}) == []


def test_everything_that_differs_is_listed() -> None:
    found = {key: shape for key, shape in SHAPES.items() if key != "out.2.bias"}
    found["time_embed.0.bias"] = (3,)
    found["out.3.bias"] = (4,)
    assert differences(SHAPES, found) == [
        "missing   out.2.bias [4]",
        "unknown   out.3.bias [4] (the nearest is out.2.bias)",
        f"misshapen time_embed.0.bias: the file has [3], the network needs {list(SHAPES['time_embed.0.bias'])}",
    ]


def test_every_misspelling_finds_what_it_meant() -> None:
    """Each name alone, misspelt at its start, at its end and in the middle."""
    for key in list(SHAPES)[::7]:
        middle = len(key) // 2
        for wrong in (f"x{key}", f"{key}x", key[:middle] + "~" + key[middle + 1 :], key[1:], key[:-1]):
            found = {known: shape for known, shape in SHAPES.items() if known != key} | {wrong: SHAPES[key]}
            lines = differences(SHAPES, found)
            assert lines == [
                f"missing   {key} {list(SHAPES[key])}",
                f"unknown   {wrong} {list(SHAPES[key])} (the nearest is {key})",
            ]


def test_extra_tensors_name_their_neighbour() -> None:
    found = {**SHAPES, "output_blocks.5.2.conv.weight": (1,)}
    line = differences(SHAPES, found)[0]
    assert line.startswith("unknown   output_blocks.5.2.conv.weight [1] (the nearest is output_blocks.")
    assert line.endswith(".2.conv.weight)")
    assert differences({}, {"a": ()}) == ["unknown   a []"]


def test_a_million_names_are_listed_without_comparing_each() -> None:
    lines = differences({"a": (1,)}, {f"b{number}": () for number in range(COMPARED + 3)})
    assert len(lines) == COMPARED + 4
    assert sum("the nearest is a" in line for line in lines) == COMPARED
    assert lines[-1] == f"unknown   b{COMPARED + 2} []"
