"""Nodes for ComfyUI (R, "ComfyUI Integration"; N §2.2, §2.3, App. A; arXiv 2305.08891 §3.4).

To install: install refimpl, from a clone or its source distribution, into the Python that runs ComfyUI
(docs/install.md), then copy or link this folder into `ComfyUI/custom_nodes` and restart ComfyUI. The folder there is
only a shim: it imports the nodes from the installed package, where every formula is written once, so updating refimpl
updates the nodes.
"""

import sys

try:
    from refimpl.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "refimpl":
        raise
    raise ImportError(
        f"the nodes in {__file__} need the package refimpl, which the Python that runs ComfyUI lacks (or is too "
        f"old: no {error.name}); install it there and restart: `{sys.executable} -m pip install ninja pybind11 "
        f'"setuptools>=77"`, then `{sys.executable} -m pip install --no-build-isolation PATH`, where PATH is a clone '
        "of its repository or its source distribution"
    ) from None

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
