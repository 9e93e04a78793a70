"""The model of a search, with the adapters of its recovery if there are any."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.agent_file import AGENT, WEIGHTS, agent_folder
from ppf.artefacts import write_json
from ppf.labels.context import PruningContext, prepare
from ppf.llm import LanguageModel
from ppf.policy_file import checked_config
from ppf.progress import say
from ppf.pruning import Compensation
from ppf.pruning.bank import ready_gib
from ppf.pruning.compensation import Bias, NoCompensation
from ppf.pruning.elastic import ADAPTERS, TRAINING, Adapters, trained_with
from ppf.records import read
from ppf.records.policy import AdaptersRecord
from ppf.space import Space


def resident(
    cfg: DictConfig,
    fabric: Fabric,
    record: Mapping[str, Any],
    *,
    adapted: bool = True,
    as_trained: bool = True,
) -> PruningContext:
    """The dense model of the search in `cfg.search`, ready for any policy.

    Args:
        record: the search's agent.json or policy.json.
        adapted: attach the adapters that lie in the folder.
        as_trained: compensate as when these adapters were trained.

    Raises:
        PPFError: the model has changed since the search, or the adapters do not fit it.
    """
    config = checked_config(record, cfg)
    wanted: Compensation = instantiate(config.compensation)
    cheap = _without_refit(wanted)
    if as_trained and trained_with(agent_folder(cfg.search)) == type(cheap).__name__:
        wanted = cheap  # adapters are trained in float32, in which the bank needs more memory
    choose = partial(_affordable, cfg.bank.max_gib, wanted)
    context = prepare(config, fabric, dtype=cfg.dtype, choose=choose)
    if adapted and has_adapters(cfg.search):
        adapters_of(cfg.search, context)
    return context


def has_adapters(search: str | Path) -> bool:
    """Whether a recovery at all ratios has left adapters in the folder of a search."""
    return (agent_folder(search) / ADAPTERS).is_file()


def adapters_of(
    search: str | Path, context: PruningContext
) -> tuple[Adapters, dict[str, Any] | None]:
    """The adapters in the folder of a search, attached to its model, and how they were trained.

    Raises:
        PPFError: they do not fit the model.
    """
    folder = agent_folder(search)
    adapters = Adapters.load(folder, context.model.pruner, adapter_identity(context))
    file = folder / TRAINING
    trained = read(file, AdaptersRecord, "train the adapters again") if file.is_file() else None
    return adapters, trained


def adapter_identity(context: PruningContext) -> dict[str, str]:
    """What adapters depend on: the compensation of the weights, and the search's signature."""
    compensation = type(context.model.compensation).__name__
    return {"compensation": compensation, "labels": context.signatures.labels}


def save_adapters(
    cfg: DictConfig, adapters: Adapters, context: PruningContext, training: Mapping[str, Any]
) -> None:
    """Writes the agent of `cfg.search` and its adapters to `cfg.out`, which can replace the search.

    Args:
        training: how the adapters were trained.
    """
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in (AGENT, WEIGHTS):
        shutil.copy(agent_folder(cfg.search) / name, out)
    adapters.save(out, adapter_identity(context))
    write_json(out / TRAINING, {key: training[key] for key in AdaptersRecord.model_fields})


def _without_refit(wanted: Compensation) -> Compensation:
    """A compensation that needs no bank, and adds biases only if `wanted` does."""
    return Bias() if wanted.biases else NoCompensation()


def _affordable(
    limit: float, wanted: Compensation, lm: LanguageModel, space: Space
) -> Compensation:
    """Returns `wanted`, or one without refits if a least-squares bank would exceed `limit` GiB."""
    if not wanted.refits:
        return wanted
    needed = ready_gib(lm, space)
    if needed <= limit:
        say(f"Using least-squares compensation: its bank needs {needed:.2f} GiB of memory.")
        return wanted
    how = "bias compensation" if wanted.biases else "no compensation"
    say(f"The bank needs {needed:.2f} GiB, more than bank.max_gib={limit}: using {how}.")
    return _without_refit(wanted)
