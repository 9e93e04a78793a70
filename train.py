"""Trains a predictor on labelled policies: `python train.py --help`."""

from ppf.cli.start import main

if __name__ == "__main__":
    main()
