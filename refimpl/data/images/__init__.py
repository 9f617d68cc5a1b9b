"""Image files to RGB pixels, safely, whatever wrote them."""
