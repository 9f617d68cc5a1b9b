"""LoRA files, as the other trainers and samplers name them."""
