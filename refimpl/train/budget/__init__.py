"""What a run needs of its GPU, counted without one: memory by part and moment, and floating-point operations."""
