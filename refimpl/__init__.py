"""Reference implementation of SDXL v-prediction / zero-terminal-SNR training."""

__version__ = "0.1.0"
