"""Labels saved where a predictor starts from that of another text, order or compensation.

    python experiments/predictor/transfer.py [--source "text=ptb labels.count=512"] [OVERRIDES]

The source predictor is fitted to all labels under `--source`; under the plain overrides, predictors
are then fitted to few labels, from zero and from the source, and scored on further labels.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from lightning import Fabric
from run import first, scored, unseen
from setting import configured

from ppf.labels.table import Labels
from ppf.predictor.fit import FILE as CHECKPOINT
from ppf.stages.collect import collect
from ppf.stages.prepare import prepare
from ppf.stages.train import train

FILE = Path(__file__).with_name("transfer.json")


def main() -> None:
    """Writes transfer.json: rows as in results.json, with `start: none | source`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="importance=magnitude")
    parser.add_argument("--labels", default="16,32,64,128")
    parser.add_argument("--results", type=Path, default=FILE)
    options, overrides = parser.parse_known_args()
    counts = [int(count) for count in options.labels.split(",")]
    fabric = Fabric(accelerator="cpu", devices=1)

    source = prepare(configured(*overrides, *options.source.split()), fabric)
    checkpoint = train(source, collect(source)).folder / CHECKPOINT
    source.pruner.restore()

    context = prepare(configured(*overrides), fabric)
    labels = collect(context)
    rest = max(counts)
    held_out = Labels(labels.kept[rest:], labels.nll[rest:], labels.source[rest:])
    rows = []
    for count in counts:
        some = first(labels, count)
        for start in ("none", "source"):
            given = [f"predictor.init_from={checkpoint}"] if start == "source" else []
            cfg = configured(*overrides, *given)
            predictor = train(replace(context, cfg=cfg), some).predictor
            row = next(iter(scored(predictor, context, unseen(held_out, some))))
            rows.append({"labels": len(some), "start": start, **row})
            print(f"{len(some):5} labels, start {start:<6} median {row['median']:.4f} nats")
    options.results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
