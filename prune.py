"""Writes the smaller model that a policy describes: `python prune.py --help`."""

from ppf.cli.start import prune

if __name__ == "__main__":
    prune()
