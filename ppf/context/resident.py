"""The model of a search, with the adapters of its recovery if there are any."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.context.policy import checked_config
from ppf.context.prepare import EarlyCheck, PruningContext, prepare
from ppf.pruning import Compensation
from ppf.pruning.compensation import Bias
from ppf.pruning.elastic import FILE, Adapters, trained_with
from ppf.pruning.memory import within
from ppf.records.agent import agent_folder


def resident(
    cfg: DictConfig,
    fabric: Fabric,
    record: Mapping[str, Any],
    *,
    adapted: bool = True,
    check: EarlyCheck | None = None,
) -> PruningContext:
    """The dense model of the search in `cfg.search`, ready for any policy.

    Args:
        record: the search's agent.json or policy.json.
        adapted: attach the adapters that lie in the folder.
        check: as for `prepare`.

    Raises:
        PPFError: the model has changed since the search, or the adapters do not fit it.
    """
    config = checked_config(record, cfg)
    wanted: Compensation = instantiate(config.compensation)
    if trained_with(agent_folder(cfg.search)) == Bias.__name__:
        wanted = Bias()  # adapters are trained in float32, in which the bank needs more memory
    choose = partial(within, cfg.bank.max_gib, wanted)
    context = prepare(config, fabric, dtype=cfg.dtype, choose=choose, check=check)
    folder = agent_folder(cfg.search)
    if adapted and (folder / FILE).is_file():
        Adapters.load(folder, context.model.pruner, origin(context))
    return context


def origin(context: PruningContext) -> dict[str, str]:
    """What adapters depend on: the compensation of the weights, and the search's signature."""
    compensation = type(context.model.compensation).__name__
    return {"compensation": compensation, "labels": context.signatures.labels}
