"""collect: labels policies that a sampler draws, the training data of predictors."""

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.commands import invocation
from ppf.labels.collect import draw
from ppf.labels.context import PruningContext, prepare
from ppf.labels.table import Labels
from ppf.plan import drawn_labels
from ppf.progress import say


def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Labels the policies that the sampler draws, and says where the labels are."""
    context = prepare(cfg, fabric)
    labels = collect(cfg, context)
    say(f"{len(labels)} labels in {context.labelling.store.folder}")


def collect(cfg: DictConfig, context: PruningContext, *, may_label: bool = True) -> Labels:
    """Labels the policies that the sampler draws, the dense one first.

    Args:
        cfg: with sampler, labels and seed.

    Raises:
        PPFError: a label is missing, and `may_label` is false.
    """
    count = drawn_labels(cfg)
    drawn = draw(context.sites, instantiate(cfg.sampler), count, cfg.seed)
    policies = context.labelling.artefacts.ranks.broadcast(drawn)
    return context.labelling.stored_or_measured(
        policies, "sampler", invocation("collect", f"labels.count={count}"), may_label=may_label
    )
