"""`python -m ppf.report sweep FOLDER`: the table of a multirun, from the files of its jobs."""

import argparse
from pathlib import Path

from ppf.errors import PPFError
from ppf.progress import say
from ppf.report.sweep_page import write_sweep


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser("python -m ppf.report")
    reports = parser.add_subparsers(required=True)
    sweep = reports.add_parser("sweep", help="table, plot and page of a multirun")
    sweep.add_argument("folder", type=Path, help="folder of the multirun, or one above several")
    try:
        for name, path in write_sweep(parser.parse_args().folder).items():
            say(f"{name:<6}  {path}")
    except PPFError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
