"""What a recovery reads, what names its training, and how much memory it takes."""

import gc
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ppf.artefacts import signature
from ppf.errors import PPFError, out_of_memory
from ppf.identity import (
    documents_identity,
    file_identity,
    plain,
    text_identity,
    warn_of_shared_documents,
    with_code,
)
from ppf.llm import LanguageModel
from ppf.llm.text import PartName, Text, build_text, build_training_text, training_text
from ppf.llm.windows import check_window
from ppf.progress import say
from ppf.recovery.training import RecoverySettings, Windows

T = TypeVar("T")
_PARTS: tuple[PartName, ...] = ("training", "validation")
# Values of options that are gone. They keep the names of trainings that earlier versions made.
_FORMER = {"warmup": 0.05, "weight_decay": 0.0, "patience": None, "ema": 0.0}


class RecoveryText:
    """The windows that a recovery reads.

    Args:
        cfg: the config of the recovery.
        found_with: the config that the policy was found with. Documents of its test part are left
            out, as are those of the test part of `cfg`.
    """

    def __init__(self, cfg: DictConfig, found_with: DictConfig) -> None:
        self.cfg, self._read = cfg, dict[str, Windows]()
        if cfg.report_test:
            warn_of_shared_documents(cfg, found_with)
        own, other = (documents_identity(given, "test") for given in (cfg, found_with))
        self._tested = [cfg] if own == other else [cfg, found_with]

    def check(self, _: Text, lm: LanguageModel) -> None:
        """Refuses too little text; see `EarlyCheck`."""
        self.windows(lm)
        self.test(lm)
