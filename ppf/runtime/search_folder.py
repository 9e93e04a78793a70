"""What a search run's folder holds: policy.json of a static search, agent.json of a dynamic one."""

from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.errors import PPFError
from ppf.runtime.memory import within
from ppf.runtime.policies import FoundPolicy, Policies
from ppf.space import Space
from ppf.stages.policy import check_signature, policy_config, read_policy
from ppf.stages.prepare import Prepared, prepare


def read_search(cfg: DictConfig, fabric: Fabric) -> tuple[Prepared, Policies]:
    """The model of the search in `cfg.search`, dense, and who answers ratios for it.

    Raises:
        PPFError: there is no search, or the model is not that of the search any more.
    """
    folder = Path(cfg.search)
    if not (folder / "policy.json").is_file():
        raise PPFError(
            f"search={folder} holds no policy.json: give the folder of a run of search.py."
        )
    record = read_policy(str(folder / "policy.json"))
    config = policy_config(record, cfg)
    check_signature(record, config)
    choose = partial(within, cfg.bank.max_gib, instantiate(config.compensation))
    ready = prepare(config, fabric, dtype=cfg.dtype, choose=choose)
    return ready, _policies(record, ready.space)


def _policies(record: dict[str, Any], space: Space) -> Policies:
    predicted = record["predicted"]
    prediction = (predicted["nll"], predicted["std"])
    return FoundPolicy(record["ratio"]["asked"], space.policy(record["kept"]), prediction)
