"""Labels pruning policies with the real model: `python collect.py --help`."""

from ppf.cli.collect import main

if __name__ == "__main__":
    main()
