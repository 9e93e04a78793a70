"""A repository in the local cache of the Hugging Face hub, as a download leaves it."""

import shutil
from pathlib import Path

REPOSITORY = "someone/tiny"
OLD, NEW = 40 * "a", 40 * "b"
"""Commits."""


def downloaded(folder: Path, hub: Path, commit: str, revision: str = "main") -> Path:
    """Copies a model's folder into the cache; the revision then means this commit.

    Args:
        hub: folder of the cache.

    Returns:
        The folder of the commit.
    """
    repository = hub / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return snapshot
