"""The demo's pictures: drawings and photographs, with captions."""
