"""The settings of a first run, chosen by looking at the images, a checkpoint and the card."""
