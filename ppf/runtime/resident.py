"""The model of a search, with the adapters of its recovery if there are any."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.agent_file import AGENT, WEIGHTS, agent_folder
from ppf.artefacts import write_json
from ppf.labels.context import PruningContext, prepare
from ppf.policy_file import checked_config
from ppf.pruning.elastic import ADAPTERS, TRAINING, Adapters
from ppf.records import read
from ppf.records.policy import AdaptersRecord


def resident(
    cfg: DictConfig, fabric: Fabric, record: Mapping[str, Any], *, adapted: bool = True
) -> PruningContext:
    """The dense model of the search in `cfg.search`, ready for any policy.

    Args:
        record: the search's agent.json or policy.json.
        adapted: attach the adapters that lie in the folder.

    Raises:
        PPFError: the model has changed since the search, or the adapters do not fit it.
    """
    context = prepare(checked_config(record, cfg), fabric, dtype=cfg.dtype)
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
