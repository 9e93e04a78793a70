"""The loaded model with all that its pruning needs: text, order, bank, estimates, labels."""

import gc
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import Artefacts
from ppf.evaluation.size import parameters
from ppf.labels.labelling import Labelling
from ppf.labels.samplers import SampledSites
from ppf.llm import load
from ppf.llm.loading import check_division, resolve_dtype
from ppf.pruning import Bank, Compensation, LivePruner
from ppf.pruning.calibration import Calibration, UnitSites
from ppf.pruning.observed import observe
from ppf.pruning.order import ordered, orders_of, retained_importance
from ppf.pruning.prunable import PrunableModel
from ppf.pruning.signatures import Signatures, recorded, signatures
from ppf.space import Space
from ppf.text import Text


@dataclass(frozen=True)
class PruningContext:
    """A loaded model with what its pruning needs, in parts; each stage takes the parts it uses.

    Args:
        model: prunable to the policies of a space.
        text: its parts.
        calibration: estimates from the calibration part.
        sites: the space and the features of its sites.
        labelling: measures policies on the labelling part.
        config: the sections that determine the signatures, as policy.json records them.
        signatures: names of the artefacts.
    """

    model: PrunableModel
    text: Text
    calibration: Calibration
    sites: SampledSites
    labelling: Labelling
    config: DictConfig
    signatures: Signatures


def prepare(cfg: DictConfig, fabric: Fabric, *, dtype: str | None = None) -> PruningContext:
    """Loads the model and everything for pruning it; makes missing statistics, orders and banks.

    Args:
        cfg: with model, text, space, importance, compensation, labels, paths and bank.
        dtype: load the weights in another dtype than `model.dtype`, under the same order and
            statistics.

    Raises:
        PPFError: the model is missing or damaged, or the text is too short.
    """
    check_division(cfg.model, fabric.device, fabric.world_size)
    config, names = recorded(cfg, fabric.device), signatures(cfg, fabric.device)
    artefacts = Artefacts(Path(cfg.paths.artefacts), fabric)
    text, observed = observe(cfg, fabric)
    lm, scores = observed.lm, observed.scores()
    if dtype and resolve_dtype(dtype, fabric.device) != lm.dtype:
        del lm, observed.lm  # two models need not be in memory at once
        gc.collect()  # hooks of offloaded and divided layers refer to the layers
        other = DictConfig({**config.model, "dtype": dtype})
        lm = observed.lm = load(other, cfg.paths.cache, device=fabric.device)
    orders = orders_of(lm, scores)
    space: Space = instantiate(config.space, ordered(lm, orders))
    compensation: Compensation = instantiate(config.compensation)
    bank = Bank.build(
        lm,
        space,
        orders,
        observed.statistics,
        compensation,
        max_gib=cfg.bank.max_gib,
        folder=artefacts.folder / "bank" / names.bank / str(lm.dtype),
        ranks=fabric,
    )
    pruner = LivePruner(lm, space, bank)
    passes, tokenizer = dict[Hashable, int](), lm.tokenizer
    read = observed.windows, text.others("calibration", tokenizer), observed.first
    calibration = Calibration(pruner, *read, names.bank, artefacts, passes)
    model = PrunableModel(space, pruner, compensation, parameters(lm.model))
    labelling = Labelling(
        model,
        text.tokens("labelling", tokenizer),
        text.others("labelling", tokenizer),
        config.labels,
        names.labels,
        artefacts,
        passes,
    )
    sites = UnitSites(calibration, retained_importance(lm, space, scores), observed.traits())
    return PruningContext(model, text, calibration, sites, labelling, config, names)
