"""The parts training and validation of a text, which recovery training reads.

They share documents with calibration and labelling, but never with test.
"""

import re
from collections.abc import Collection, Iterable

import numpy as np
from jaxtyping import Int
from omegaconf import DictConfig

from ppf.progress import say
from ppf.text.files import read_file
from ppf.text.parts import Text, build_text, training_text

_RUN = 13  # words that two documents may not share


def build_training_text(
    config: DictConfig, cache: str, tested: Collection[str], foreign: Collection[str] = ()
) -> Text:
    """The parts training and validation of a `text=` config, with the documents of `training.more`.

    Documents that occur in a test part, or share 13 consecutive words with a document of `foreign`,
    are left out. So are training documents that occur in the validation part. Of `training.more`,
    those that share 13 consecutive words with a test part or the validation part are also left out.

    Args:
        config, cache: as for `build_text`.
        tested: documents of test parts.
        foreign: those of them that another text has cut into documents.

    Raises:
        PPFError: the file cannot be read.
    """
    text, more = build_text(training_text(config), cache), config.training.more
    unread = set(tested)
    for part in ("validation", "training"):
        documents = text.part(part)
        kept = [document for document in documents if document not in unread]
        if foreign:
            known = set(without_overlap(kept, foreign))
            kept = [document for document in kept if document in known]
        text.parts[part] = kept
        unread.update(kept)
        if left_out := len(documents) - len(kept):
            say(f"Left out {left_out} documents of the {part} part, found in another part.")
    if more.path:
        documents = read_file(more.path, more.column, "text.training.more")
        kept = without_overlap(documents, [*text.parts["validation"], *tested])
        say(f"{more.path}: the training part has {len(kept)} of its {len(documents)} documents.")
        text.parts["training"] += kept
    return text


def without_overlap(documents: Iterable[str], others: Iterable[str]) -> list[str]:
    """The documents that share no 13 consecutive words with the others, each of them once.

    Case and punctuation do not count. Thirteen words are the usual length in such tests (Brown et
    al. 2020, appendix C).
    """
    known = np.sort(np.concatenate([_runs(""), *map(_runs, others)]))

    def overlaps(document: str) -> bool:
        runs = _runs(document)
        places = np.searchsorted(known, runs).clip(max=len(known) - 1)
        return bool((known[places] == runs).any())

    return [document for document in dict.fromkeys(documents) if not overlaps(document)]


def _runs(document: str) -> Int[np.ndarray, " runs"]:
    """Hashes of all runs of 13 words of a document; a shorter document is one run."""
    words = re.findall(r"\w+", document.lower())
    starts = range(max(len(words) - _RUN, 0) + 1)
    return np.array([hash(tuple(words[start : start + _RUN])) for start in starts])
