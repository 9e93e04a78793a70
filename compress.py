"""Makes a model smaller, from search to file: `python compress.py --help`."""

from ppf.cli.start import main

if __name__ == "__main__":
    main()
