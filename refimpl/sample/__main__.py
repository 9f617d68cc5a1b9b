"""`python -m refimpl.sample RUN --prompts "…" "…"`: images from a trained model."""

from refimpl.commands.sample import main

if __name__ == "__main__":
    main()
