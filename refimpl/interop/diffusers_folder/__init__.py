"""A model as a folder of components, in diffusers' layout."""

from refimpl.interop.diffusers_folder.read_write import INDEX, load, save

__all__ = ["INDEX", "load", "save"]
