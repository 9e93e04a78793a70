"""Trains a predictor on labelled policies: `python train.py --help`."""

from ppf.cli.start import train

if __name__ == "__main__":
    train()
