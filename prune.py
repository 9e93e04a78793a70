"""Writes the smaller model that a policy describes: `python prune.py --help`."""

from ppf.cli.start import main

if __name__ == "__main__":
    main()
