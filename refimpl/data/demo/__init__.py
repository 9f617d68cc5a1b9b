"""The images of the demo data set: drawings and photographs, with captions."""
