"""Inputs of a ComfyUI node: their declarations, and checks against those declarations (R's nodes)."""

from collections.abc import Mapping
from typing import Any

from refimpl.checks import check_choice
from refimpl.errors import InputError

MODEL_INPUT = ("MODEL",)
TRUE_FALSE = [
    "true",
    "false",
]  # R's switches are choices of two words, not BOOLEAN, so that its workflows load unchanged


def number(
    default: float, least: float, most: float, step: float, tooltip: str
) -> tuple[str, dict[str, Any]]:
    """The declaration of a number: INT if all four values are integers, else FLOAT, entered without rounding."""
    options = {"default": default, "min": least, "max": most, "step": step, "tooltip": tooltip}
    if all(isinstance(value, int) for value in (default, least, most, step)):
        return "INT", options
    return "FLOAT", {**options, "round": False}


def choice(options: list[str], default: str, tooltip: str) -> tuple[list[str], dict[str, Any]]:
    """The declaration of a choice from a list of words."""
    return options, {"default": default, "tooltip": tooltip}


def checked(node: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node's inputs, converted to the types that its INPUT_TYPES declares.

    Numbers become int or float, switches stay words, and other inputs (models) are passed through.
    Raises InputError naming the node, the input and the value if one does not match its declaration.
    """
    declared = node.INPUT_TYPES()  # type: ignore[attr-defined]
    declared = {**declared["required"], **declared.get("optional", {})}
    name = node.__name__
    result = {}
    for key, value in values.items():
        kind, options = declared[key][0], (declared[key][1:] or ({},))[0]
        if isinstance(kind, list):
            word = str(value).lower() if kind is TRUE_FALSE else value
            if word not in kind:
                check_choice(f"{name}.{key}", str(value), kind)
            result[key] = word
        elif kind in ("INT", "FLOAT"):
            result[key] = _in_range(f"{name}.{key}", value, kind, options["min"], options["max"])
        else:
            result[key] = value
    return result


def _in_range(name: str, value: Any, kind: str, least: float, most: float) -> float:
    try:
        as_number = int(value) if kind == "INT" else float(value)
        fits = as_number == float(value) and least <= as_number <= most
    except (TypeError, ValueError, OverflowError):
        as_number, fits = 0, False
    if not fits:
        what = "a whole number" if kind == "INT" else "a number"
        raise InputError(f"{name} {value!r} is not {what} from {least:g} to {most:g}")
    return as_number
