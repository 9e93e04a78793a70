"""collect: labels policies that a sampler draws, the training data of predictors."""

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.labels.collect import draw
from ppf.labels.context import PruningContext, prepare
from ppf.labels.table import Labels
from ppf.predictor.base import drawn_labels
from ppf.progress import say
from ppf.text.parts import warn_of_plain_text


def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Labels the policies that the sampler draws, and says where the labels are."""
    context = prepare(cfg, fabric)
    labels = collect(cfg, context)
    say(f"{len(labels)} labels in {context.labelling.store.folder}")


def collect(cfg: DictConfig, context: PruningContext) -> Labels:
    """Labels the policies that the sampler draws, the dense one first.

    Args:
        cfg: with sampler, labels and seed.
    """
    warn_of_plain_text(context.text, context.model.lm.tokenizer)
    drawn = draw(context.sites, instantiate(cfg.sampler), drawn_labels(cfg), cfg.seed)
    policies, store = context.labelling.artefacts.ranks.broadcast(drawn), context.labelling.store
    store.refresh()
    if all(kept in store for kept in policies.tolist()):
        say(f"Reusing {len(policies)} labels in {store.folder}.")
    return context.labelling.measure(policies, "sampler")
