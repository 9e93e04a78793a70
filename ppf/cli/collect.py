"""ppf-collect: labels policies on the real model."""

from functools import partial

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.context import prepare
from ppf.progress import say
from ppf.labels.table import CATASTROPHIC
from ppf.stages.collect import check_sampler, collect


@command()
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Labels what the sampler draws."""
    context = prepare(cfg, fabric, check=partial(check_sampler, cfg))
    labels = collect(context.labelling, context.sites, cfg.sampler, cfg.labels.count, cfg.seed)
    say(f"{len(labels)} labels in {context.labelling.store.folder}")
    if wrecked := int(labels.catastrophic(float(labels.nll[0])).sum()):
        say(
            f"{wrecked} of them are catastrophic: their loss is more than {CATASTROPHIC} nats per token"
            " above the dense model, or not finite. Predictors that are fitted to random policies"
            " treat the finite ones as equally bad. Labels that are not finite are left out."
        )
