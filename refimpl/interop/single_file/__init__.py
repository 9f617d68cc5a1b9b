"""One safetensors file with all networks, with the tensor names that ComfyUI, A1111 and kohya use."""

from refimpl.interop.single_file.read_write import SCALE_SHIFT, is_refiner, load, save, with_scale_shift

__all__ = ["SCALE_SHIFT", "is_refiner", "load", "save", "with_scale_shift"]
