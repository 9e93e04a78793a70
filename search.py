"""Searches the best policy for a pruning ratio: `python search.py --help`."""

from ppf.cli.search import main

if __name__ == "__main__":
    main()
