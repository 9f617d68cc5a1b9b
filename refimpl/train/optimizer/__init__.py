"""How a step is taken by an optimizer other than AdamW, or on weights other than float32."""
