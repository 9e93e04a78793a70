"""ppf-search: finds the policy of least perplexity at a pruning ratio."""

from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.progress import Stopwatch
from ppf.report.loggers import log_artifact, log_figure
from ppf.report.plots import policy_heatmap
from ppf.report.tables import print_summary
from ppf.space import check_ratio
from ppf.stages import results
from ppf.stages.collect import collect
from ppf.stages.prepare import prepare
from ppf.stages.search import search


@command("search")
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Labels and trains what is missing, searches, measures and reports."""
    check_ratio(cfg.ratio)
    clock = Stopwatch()
    with clock("preparing the model"):
        ready = prepare(cfg, fabric)
    with clock("labelling"):
        labels = collect(ready, upstream=True)
    found = search(ready, labels, clock)
    if not fabric.is_global_zero:
        return
    paths = results.write(ready, labels, found, clock.seconds, Path(cfg.paths.run))
    log_artifact(fabric.loggers, paths["policy"], "policy", "policy")
    log_figure(fabric.loggers, "policy", policy_heatmap(ready.space, found.kept), None)
    print_summary(results.entries(ready, labels, found), clock.seconds, paths)


if __name__ == "__main__":
    main()
