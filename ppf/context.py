"""Prepares what stages with a model need: model, text, space, order, bank."""

import dataclasses
import gc
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf

from ppf.artefacts import Artefacts, signature
from ppf.conf import plain
from ppf.evaluation.size import parameters
from ppf.labels.labelling import Labelling
from ppf.labels.samplers import SamplingContext
from ppf.llm import LanguageModel, load
from ppf.llm.divide import check_division
from ppf.llm.loading import resolve_dtype
from ppf.plan import check_capacity
from ppf.processes import processes_here
from ppf.pruning import (
    Bank,
    Compensation,
    LivePruner,
    Traits,
    order_atoms,
    retained_importance,
)
from ppf.pruning.calibration import Calibration, UnitSites
from ppf.pruning.observed import Observed, reads_spectra
from ppf.pruning.prunable import PrunableModel
from ppf.pruning.signatures import Signatures, recorded, signatures
from ppf.pruning.statistics import FIRST_TOKENS
from ppf.ranks import on_rank_0
from ppf.space import Space
from ppf.text import Text
from ppf.text.parts import PartName, build_text

Choose = Callable[[LanguageModel, Space], Compensation]
EarlyCheck = Callable[[Text, LanguageModel], object]
"""Raises a PPFError if text or model cannot be used later."""


_PARTS: tuple[PartName, ...] = ("calibration", "labelling")  # that stages up to the search read


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
        artefacts: where they lie.
    """

    model: PrunableModel
    text: Text
    calibration: Calibration
    sites: SamplingContext
    labelling: Labelling
    config: DictConfig
    signatures: Signatures
    artefacts: Artefacts


def prepare(
    cfg: DictConfig,
    fabric: Fabric,
    *,
    dtype: str | None = None,
    choose: Choose | None = None,
    check: EarlyCheck | None = None,
) -> PruningContext:
    """Loads the model and everything for pruning it; makes missing statistics, orders and banks.

    Args:
        cfg: with model, text, space, importance, compensation, labels, paths and bank.
        dtype: load the weights in another dtype than `model.dtype`, under the same order and
            statistics.
        choose: the compensation, once model and space are known; None: what `cfg` names.
        check: called with the text and the dense model before the long work; None: there is none.

    Raises:
        PPFError: the model is missing or damaged, the text is too short, or the machine too small.
    """
    check_division(cfg.model, fabric.device, fabric.world_size)
    if not choose:
        # Rank 0 compares for all, before another rank takes memory.
        on_rank_0(
            fabric,
            lambda: check_capacity(cfg, fabric.device, processes_here(fabric), dtype),
        )
    config, names = recorded(cfg, fabric.device), signatures(cfg, fabric.device)
    text, observed = observe(cfg, fabric, check)
    lm, scores = observed.lm, observed.scores()
    if dtype and resolve_dtype(dtype, fabric.device) != lm.dtype:
        model = OmegaConf.create({**plain(config.model), "dtype": dtype})
        del lm, observed.lm  # two models need not be in memory at once
        gc.collect()  # hooks of offloaded and divided layers refer to the layers
        lm = observed.lm = load(model, cfg.paths.cache, device=fabric.device)
    space: Space = instantiate(config.space, lm.adapter.prunables(lm.model))
    compensation = choose(lm, space) if choose else instantiate(config.compensation)
    bank = Bank.build(
        lm,
        space,
        order_atoms(scores),
        observed.statistics,
        compensation,
        max_gib=cfg.bank.max_gib,
        folder=Path(cfg.paths.artefacts) / "bank" / names.bank / str(lm.dtype),
        ranks=fabric,
    )
    pruner, artefacts = LivePruner(lm, space, bank), Artefacts(Path(cfg.paths.artefacts), fabric)
    prunable = PrunableModel(space, pruner, compensation, parameters(lm.model))
    passes = dict[Hashable, int]()
    windows = {part: text.tokens(part, lm.tokenizer) for part in _PARTS}
    others = {part: text.others(part, lm.tokenizer) for part in _PARTS}
    first = text.first_tokens("calibration", lm.tokenizer, FIRST_TOKENS)
    calibration = Calibration(
        pruner,
        windows["calibration"],
        others["calibration"],
        first,
        names.bank,
        artefacts,
        passes,
    )
    return PruningContext(
        prunable,
        text,
        calibration,
        UnitSites(calibration, retained_importance(lm, space, scores), observed.traits()),
        Labelling(
            prunable,
            windows["labelling"],
            others["labelling"],
            config.labels,
            names.labels,
            artefacts,
            passes,
        ),
        config,
        names,
        artefacts,
    )


def observe(
    cfg: DictConfig, fabric: Fabric, check: EarlyCheck | None = None
) -> tuple[Text, Observed]:
    """Loads text and model, and makes missing moments, importance scores and traits.

    Args:
        cfg: as for `prepare`.
        check: as for `prepare`.

    Raises:
        PPFError: the model is missing or damaged, or the text is too short.
    """
    config, names = recorded(cfg, fabric.device), signatures(cfg, fabric.device)
    text = build_text(config.text, cfg.paths.cache)
    if config.text.path:
        _ = text.parts  # damaged files are refused before the model is loaded
    lm = load(config.model, cfg.paths.cache, device=fabric.device, window=text.window)
    windows, _ = (text.tokens(part, lm.tokenizer) for part in _PARTS)
    first = text.first_tokens("calibration", lm.tokenizer, FIRST_TOKENS)
    if check:
        check(text, lm)
    fields = [field.name for field in dataclasses.fields(Traits)]
    observed = Observed(
        lm,
        windows,
        first,
        instantiate(config.importance),
        Artefacts(Path(cfg.paths.artefacts), fabric),
        statistics=names.statistics,
        order=names.order,
        traits=signature("traits", names.statistics, fields),
        spectra=reads_spectra(cfg),
    )
    observed.make()
    return text, observed
