"""How time and memory grow with the model: from the results of `benchmarks/scale.py`.

    python benchmarks/growth.py OUT/*/scale.json --png benchmarks/growth.png

prints, for each stage, CPU seconds and peak memory of each shape. The exponent is p of
seconds ∝ parameters^p, between the smallest and the largest shape. It ends with one line of JSON.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.scale import shapes
from ppf.evaluation.size import parameters
from ppf.report.numbers import duration
from ppf.report.style import OTHERS, log_scale, save_png, styled
from ppf.report.tables import Table, print_table

Run = dict[str, Any]
SHOWN = {"cpu_seconds": "CPU seconds", "peak_gib": "peak memory, GiB"}


def read(files: list[Path]) -> list[Run]:
    """The results with the number of parameters of each, the smallest first."""
    runs = [json.loads(file.read_text()) for file in files]
    for run in runs:
        with torch.device("meta"):
            config = AutoConfig.for_model(**shapes()[run["shape"]])
            run["parameters"] = parameters(AutoModelForCausalLM.from_config(config))
    return sorted(runs, key=lambda run: run["parameters"])


def exponent(runs: list[Run], stage: str, figure: str) -> float:
    """The p of figure ∝ parameters^p, between the smallest and the largest model."""
    first, last = runs[0], runs[-1]
    grown = last["stages"][stage][figure] / first["stages"][stage][figure]
    return math.log(grown) / math.log(last["parameters"] / first["parameters"])


def common(runs: list[Run]) -> list[str]:
    """The stages that all runs have finished."""
    return [name for name in runs[0]["stages"] if all(name in run["stages"] for run in runs)]


def show(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Prints the table; the exponents by stage."""
    names = [f"{run['shape']} ({run['parameters'] / 1e9:.2f} B)" for run in runs]
    found = {s: {figure: exponent(runs, s, figure) for figure in SHOWN} for s in common(runs)}
    rows: list[dict[str, str | float | None]] = []
    for stage, powers in found.items():
        row: dict[str, str | float | None] = {"stage": stage}
        for figure, power in powers.items():
            words = SHOWN[figure]
            taken = zip(names, runs, strict=True)
            row |= {f"{name}, {words}": run["stages"][stage][figure] for name, run in taken}
            row[f"exponent of {words}"] = power
        rows.append(row)
    print_table(Table(rows, {name: duration for name in rows[0] if name.endswith(", CPU seconds")}))
    return found


def plot(runs: list[Run]) -> Figure:
    """A line for each stage: CPU seconds, and peak memory, against parameters."""
    with styled():
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        panels = figure.subplots(1, len(SHOWN))
        sizes = [run["parameters"] for run in runs]
        for axes, (key, label) in zip(panels, SHOWN.items(), strict=True):
            for place, stage in enumerate(common(runs)):
                style = "-o" if place < len(OTHERS) else "--s"
                name = f"{stage}, exponent {exponent(runs, stage, key):.2f}"
                values = [run["stages"][stage][key] for run in runs]
                colour = OTHERS[place % len(OTHERS)]
                axes.loglog(sizes, values, style, color=colour, ms=4, lw=1.2, label=name)
            log_scale(axes)
            axes.set_xticks(sizes, [f"{size / 1e9:.2f}" for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set(xlabel="parameters, billions", ylabel=label)
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), fontsize=7, ncols=2)
    return figure


def main() -> None:
    """Prints a table and, last, one line of JSON; writes the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--png", type=Path, required=True)
    arguments = parser.parse_args()
    runs = read(arguments.files)
    if runs[0]["parameters"] == runs[-1]["parameters"]:
        parser.error("give the files of at least two sizes")
    exponents = show(runs)
    save_png(plot(runs), arguments.png)
    print(json.dumps({"shapes": [run["shape"] for run in runs], "exponents": exponents}))


if __name__ == "__main__":
    main()
