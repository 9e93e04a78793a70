"""Searches the best policy for a pruning ratio: `python search.py --help`."""

from ppf.cli.start import main

if __name__ == "__main__":
    main()
