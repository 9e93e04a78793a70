"""Measures a policy or a model folder on the test text: `python evaluate.py --help`."""

from ppf.cli.start import main

if __name__ == "__main__":
    main()
