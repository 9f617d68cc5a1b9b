"""`python -m refimpl.train PRESET [--section.field value …]`, or under torchrun with any number of processes."""

from refimpl.commands.train import main

if __name__ == "__main__":
    main()
