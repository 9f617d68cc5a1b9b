"""A GPU emulated on the CPU, on which the kernels' own source runs (cuda_runtime.h)."""
