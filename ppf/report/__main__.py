"""`python -m ppf.report`: the table of a multirun, or a plot of the rows of such a table."""

import argparse
from pathlib import Path

from ppf.errors import PPFError
from ppf.progress import say
from ppf.report.sweep import plot_rows, write_sweep


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser("python -m ppf.report")
    about = "sweep: table, plot and page of a multirun; plot: results.png from a results.json"
    parser.add_argument("report", choices=("sweep", "plot"), help=about)
    about = "sweep: folder of the multirun, or one above several; plot: the results.json"
    parser.add_argument("place", type=Path, help=about)
    about = "plot: draw this line under another name, and only lines that are given so"
    names = ("NAME", "LABEL")
    parser.add_argument("--line", nargs=2, action="append", default=[], metavar=names, help=about)
    given = parser.parse_args()
    try:
        if given.report == "plot":
            say(str(plot_rows(given.place, dict(given.line))))
        else:
            write_sweep(given.place)
    except PPFError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
