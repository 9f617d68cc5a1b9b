"""A folder of components, as diffusers writes it."""

from refimpl.interop.diffusers_folder.read_write import INDEX, load, save

__all__ = ["INDEX", "load", "save"]
