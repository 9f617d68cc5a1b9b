"""`refimpl data`, `refimpl cache` and `refimpl stats`: what a run would be trained on."""
