"""One safetensors file with all networks, as ComfyUI, A1111 and kohya name its tensors."""

from refimpl.interop.single_file.read_write import SCALE_SHIFT, is_refiner, load, save

__all__ = ["SCALE_SHIFT", "is_refiner", "load", "save"]
