"""What one forward pass works on: which images of a global batch, and every draw of their visit."""
