"""Labels pruning policies with the real model: `python collect.py --help`."""

from ppf.cli.start import main

if __name__ == "__main__":
    main()
