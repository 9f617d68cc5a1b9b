"""LoRA files in the formats of other trainers and samplers."""
