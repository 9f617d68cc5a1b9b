"""What the documentation site adds to Sphinx: each module is one directive, or one kind of generated page."""
