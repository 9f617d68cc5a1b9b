"""The files and the nodes in the real tools: ComfyUI, kohya's sd-scripts, Forge and A1111, from local checkouts.

`nox -s peers -- DIR` runs them; by hand, REFIMPL_PEERS=DIR python -m pytest -m peers tests/peers, where the packages
that the tools import are installed. DIR holds each checkout under its repository's name (see checkouts.py).
"""
