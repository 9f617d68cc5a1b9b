"""What a run shows a person: figures and one self-contained HTML page."""
