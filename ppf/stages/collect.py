"""collect: labels for the policies that the sampler draws."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from ppf.commands import invocation
from ppf.labels.collect import draw
from ppf.labels.groups import groups, too_few
from ppf.labels.labelling import Labelling
from ppf.labels.samplers import SamplingContext
from ppf.labels.table import Labels
from ppf.llm import LanguageModel
from ppf.space import Space
from ppf.text import Text


def check_sampler(cfg: DictConfig, text: Text, lm: LanguageModel) -> None:
    """Raises PPFError if the sampler has policies of another space; see `EarlyCheck`."""
    space: Space = instantiate(cfg.space, lm.adapter.prunables(lm.model))
    instantiate(cfg.sampler).check(space)


def collect(
    labelling: Labelling,
    sites: SamplingContext,
    sampler: DictConfig,
    count: int,
    seed: int,
    *,
    folds: int = 0,
    may_label: bool = True,
) -> Labels:
    """Labels the policies that the sampler draws, the dense one first.

    Args:
        labelling: measures them.
        sites: of the space that is sampled.
        sampler: config of the sampler.
        count: of policies.
        seed: of the sampler.
        folds: that a predictor will split the labels into; 0: it will not split them.

    Raises:
        PPFError: a label is missing, and `may_label` is false; or there are fewer groups of
            policies than folds.
    """
    drawn = draw(sites, instantiate(sampler), count, seed)
    if (number := len(groups(sites.space, drawn).unique())) < folds:
        raise too_few(len(drawn), number, folds)
    policies = labelling.artefacts.ranks.broadcast(drawn)
    return labelling.stored_or_measured(
        policies, "sampler", invocation("collect", f"labels.count={count}"), may_label=may_label
    )
