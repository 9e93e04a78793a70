"""ppf-train: fits the mask → perplexity predictor."""

from functools import partial
from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.errors import PPFError
from ppf.progress import say
from ppf.report.plots import scatter
from ppf.report.publish import Artifact, Published, log_artifact, publish
from ppf.report.style import save_png
from ppf.report.tables import accuracy_table, print_table
from ppf.stages.acquire import acquire, check_acquired
from ppf.stages.collect import collect
from ppf.stages.prepare import prepare
from ppf.stages.train import train


@command(check_acquired)
def main(cfg: DictConfig, fabric: Fabric) -> float | None:
    """Trains the predictor, scores it on held-out policies and draws predicted against measured."""
    context = prepare(cfg, fabric)
    fit = partial(train, context, cfg.predictor, cfg.trainer, cfg.seed, fabric.loggers)
    may_label = cfg.upstream == "make"
    labels = collect(context, cfg.sampler, cfg.labels.count, cfg.seed, may_label=may_label)
    trained = fit(acquire(context, labels, fit, cfg.labels, cfg.sampler, cfg.seed))
    predictor = trained.predictor
    if predictor.held_out is None:
        raise PPFError("this predictor needs no training: give predictor=residual or another one.")
    metric = predictor.metrics.get("test/nmse")
    if not fabric.is_global_zero:
        return metric
    figure = scatter(*(column.tolist() for column in predictor.held_out))
    picture = Path(cfg.paths.run) / "predicted_measured.png"
    save_png(figure, picture)
    table = accuracy_table(predictor.metrics, cfg.predictor.bands)
    shown = {"predictions": figure}, {"accuracy": table}
    publish(fabric.loggers, Published(dict(predictor.metrics), *shown))
    made = Artifact([trained.folder], f"{cfg.model.name}-predictor", "predictor")
    log_artifact(fabric.loggers, made)
    print_table(table)
    say(f"Predictor: {trained.folder}\nPicture:   {picture}")
    return metric
