"""What a recovery reads, and what names its training."""

import copy
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppf.artefacts import signature
from ppf.conf import plain
from ppf.digests import digest, with_code
from ppf.evaluation.perplexity import mean_nll
from ppf.llm import LanguageModel, load_description
from ppf.recovery.training import TrainingRun, Windows
from ppf.text.identity import (
    documents_identity,
    file_identity,
    text_identity,
    warn_of_shared_documents,
)
from ppf.text.parts import PartName, build_text
from ppf.text.training import build_training_text, training_text

_PARTS: tuple[PartName, ...] = ("training", "validation")
_WITHOUT_EFFECT = ("_target_", "micro_batch")
# Values of options that are gone. They keep the names of trainings that earlier versions made.
_FORMER = {"warmup": 0.05, "weight_decay": 0.0, "patience": None, "ema": 0.0}
_FORMER_KL = {"top_k": 0}


class RecoveryText:
    """The text that a recovery reads.

    Args:
        cfg: the config of the recovery.
        found_with: the config that the policy was found with. Documents of its test part are left
            out, as are those of the test part of `cfg`.

    Attributes:
        name, training_name: of the text, without and with the documents that `cfg` adds.
    """

    def __init__(self, cfg: DictConfig, found_with: DictConfig) -> None:
        self.cfg = cfg
        if cfg.report_test:
            warn_of_shared_documents(cfg, found_with)
        self.name, more = cfg.text.name, cfg.text.training.more.path
        self.training_name = f"{self.name} + {Path(more).name}" if more else self.name
        own, other = (documents_identity(given, "test") for given in (cfg, found_with))
        self._tested = [cfg] if own == other else [cfg, found_with]

    def read(self, model: DictConfig) -> tuple[Windows, list[Int[Tensor, "_ window"]]]:
        """What is trained on, and what is measured: validation, and test if `report_test` asks.

        Args:
            model: the section `model`, whose tokenizer matters.

        Raises:
            PPFError: the text is too short.
        """
        cfg = self.cfg
        _, tokenizer = load_description(model, cfg.paths.cache)
        texts = [build_text(given.text, cfg.paths.cache) for given in self._tested]
        own, *others = [text.parts.get("test", []) for text in texts]
        foreign = list(chain.from_iterable(others))
        text = build_training_text(cfg.text, cfg.paths.cache, [*own, *foreign], foreign)
        windows = Windows(*(text.tokens(part, tokenizer) for part in _PARTS))
        tested = [texts[0].tokens("test", tokenizer)] if cfg.report_test else []
        return windows, [windows.validation, *tested]

    def identity(self) -> list[Any]:
        """What determines the windows of training and validation."""
        cfg, more = self.cfg, plain(self.cfg.text.training.more)
        own = OmegaConf.create({"text": training_text(cfg.text), "paths": cfg.paths})
        found: list[Any] = [text_identity(own, part) for part in _PARTS]
        found += [documents_identity(given, "test") for given in self._tested]
        if path := more.pop("path"):
            cache = Path(cfg.paths.cache)
            found.append({**more, **file_identity(path, "text.training.more.path", cache)})
        return found


def weights_identity(folder: Path, cfg: DictConfig) -> list[Any]:
    """What determines a training of the weights in a folder: they themselves, and the tuner."""
    cache = Path(cfg.paths.cache)
    files = [digest(file, cache) for file in sorted(folder.glob("*.safetensors"))]
    return [files, [*with_code(cfg.tune, cache).items()]]


def training_folder(text: RecoveryText, trained: Sequence[Any]) -> Path:
    """The folder of a training, named by a hash of everything that determines it.

    Args:
        trained: plain values that determine the model, and what is trained of it.
    """
    cfg = text.cfg
    losses = with_code(cfg.loss, Path(cfg.paths.cache))
    if "kl" in losses:
        losses["kl"] = _FORMER_KL | losses["kl"]
    recovery, trainer = (
        {key: value for key, value in plain(cfg[section]).items() if key not in _WITHOUT_EFFECT}
        for section in ("recovery", "trainer")
    )
    parts = (text.identity(), losses, _FORMER | recovery, trainer, cfg.seed, *trained)
    return Path(cfg.paths.artefacts) / "recovery" / signature("recovery", *parts)


def training_run(
    text: RecoveryText, fabric: Fabric, windows: Windows, trained: Sequence[Any]
) -> TrainingRun:
    """A training; arguments as for `training_folder`."""
    cfg = text.cfg
    return TrainingRun(
        instantiate(cfg.recovery),
        instantiate(cfg.trainer),
        fabric,
        {key: cfg.fabric[key] for key in ("accelerator", "devices", "num_nodes")},
        training_folder(text, trained),
        windows,
        cfg.seed,
    )


def mean_nlls(
    model: PreTrainedModel, parts: Sequence[Int[Tensor, "_ window"]], dtype: torch.dtype, batch: int
) -> list[float]:
    """Mean negative log-likelihood of each part, nats per token.

    Args:
        dtype: number format to which the weights are rounded.
        batch: windows that are scored at a time.
    """
    model = _rounded(model, dtype)
    return [mean_nll(model, part, batch=batch) for part in parts]


def labelling_nll(lm: LanguageModel, found_with: DictConfig, dtype: torch.dtype) -> float:
    """Mean negative log-likelihood on the labelling part of a search, nats per token.

    Args:
        found_with: the config of the search.
        dtype: number format to which the weights are rounded.
    """
    windows = build_text(found_with.text, found_with.paths.cache).tokens("labelling", lm.tokenizer)
    return mean_nll(_rounded(lm.model, dtype), windows, batch=found_with.labels.batch)


def _rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model with rounded weights. Rotary frequencies are buffers and stay in float32."""
    if model.dtype == dtype:
        return model
    rounded = {id(p): nn.Parameter(p.to(dtype), False) for p in model.parameters()}
    return copy.deepcopy(model, rounded)
