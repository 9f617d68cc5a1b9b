"""From the name of an adapter to the adapter."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from refimpl.conformance.adapter import METHODS, offers
from refimpl.errors import InputError
from refimpl.names import nearest

SHIPPED: dict[str, tuple[str, str]] = {
    "refimpl": ("refimpl.conformance.adapters.reference", "Reference"),
    "diffusers": ("refimpl.conformance.adapters.huggingface", "Diffusers"),
    "k-diffusion": ("refimpl.conformance.adapters.kdiffusion", "KDiffusion"),
    "k-diffusion-clamped": ("refimpl.conformance.adapters.kdiffusion", "KDiffusionClamped"),
    "sd-scripts": ("refimpl.conformance.adapters.checkouts.sd_scripts", "SdScripts"),
    "onetrainer": ("refimpl.conformance.adapters.checkouts.onetrainer", "OneTrainer"),
    "simpletuner": ("refimpl.conformance.adapters.checkouts.simpletuner", "SimpleTuner"),
    "comfyui": ("refimpl.conformance.adapters.checkouts.comfy", "ComfyUI"),
    "generative-models": ("refimpl.conformance.adapters.checkouts.generative_models", "GenerativeModels"),
    "naifu": ("refimpl.conformance.adapters.checkouts.naifu", "Naifu"),
    "novelai-bucketing": ("refimpl.conformance.adapters.checkouts.novelai", "NovelAIBucketing"),
}
"""Adapters that are part of this package, by the names that the command takes."""


def load_adapter(name: str) -> object:
    """The adapter of that name: one of SHIPPED, or package.module:Class, found from the working directory too.

    A class is called without arguments. Raises InputError, saying what is wrong, when there is no such adapter or it
    offers nothing, and as the adapter itself does (a checkout that is absent).
    """
    path, _, attribute = name.partition(":")
    path, attribute = SHIPPED.get(name, (path, attribute))
    if not path or not attribute:
        near = nearest(name, SHIPPED)
        raise InputError(
            f"{name!r} is no adapter: give package.module:Adapter, or one of {', '.join(SHIPPED)} (the nearest is "
            f"{near[0]!r})"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(path), attribute)
    except AttributeError as error:
        raise InputError(f"adapter {name}: {path} has no {attribute}") from error
    except InputError:
        raise
    except Exception as error:  # whatever importing their module raises
        raise InputError(
            f"adapter {name}: importing {path} raised {type(error).__name__}: {error}"
        ) from error
    adapter = _made(found, name)
    if not any(offers(adapter, method) for method in METHODS):
        raise InputError(
            f"adapter {name} offers nothing: write one of {', '.join(METHODS)} (refimpl.conformance.Adapter)"
        )
    return adapter


def title_of(adapter: object) -> str:
    """The name of what is tested, for reports."""
    own = getattr(adapter, "name", "") or getattr(adapter, "__name__", "")
    return str(own or type(adapter).__name__)


def describe(adapter: object) -> dict[str, Any]:
    """What reports say of an adapter: its title, its version, and its links by method."""
    link = getattr(adapter, "link", None)
    links = (
        {method: str(link(method)) for method in METHODS if offers(adapter, method)} if callable(link) else {}
    )
    found = {method: address for method, address in links.items() if address}
    return {"title": title_of(adapter), "version": str(getattr(adapter, "version", "")), "links": found}


def _made(found: object, name: str) -> object:
    if not inspect.isclass(found):
        return found
    try:
        return found()
    except InputError:
        raise
    except Exception as error:  # whatever their class raises
        raise InputError(f"adapter {name}: making it raised {type(error).__name__}: {error}") from error
