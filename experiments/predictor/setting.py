"""The config that the scripts of this study share."""

import tempfile

from hydra import compose, initialize_config_module
from omegaconf import DictConfig


def configured(*overrides: str) -> DictConfig:
    """A search's config; artefacts lie where those of the commands do."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("search", [f"paths.run={tempfile.mkdtemp()}", "logger=none", *overrides])
