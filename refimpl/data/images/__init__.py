"""Image files decoded to RGB pixels, safely, whatever software wrote them."""
