"""Serves a search's model at any pruning ratio: `python serve.py --help`."""

from ppf.cli.start import main

if __name__ == "__main__":
    main()
