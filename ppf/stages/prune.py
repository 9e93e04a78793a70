"""prune: writes the model of a policy, with smaller tensors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig
from transformers import PreTrainedModel

from ppf.context.calibration import Calibration
from ppf.context.labelling import Labelling
from ppf.context.model import PrunableModel
from ppf.context.policy import checked_config, read_policy, types_of
from ppf.context.prepare import EarlyCheck, PruningContext, prepare
from ppf.errors import PPFError
from ppf.evaluation.latency import check_prompts, speeds
from ppf.export.base import Converter, Exporter
from ppf.export.loading import read_pruned
from ppf.llm import LanguageModel, Text
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.progress import say
from ppf.pruning.compensation import NoCompensation
from ppf.pruning.live import Types
from ppf.pruning.sequential import refit_sequentially
from ppf.report.scores import LogPerplexity


@dataclass(frozen=True)
class Compensated:
    """Losses of the present policy on the labelling part, nats per token.

    Args:
        one_shot: with the level bank's compensation.
        sequential: with compensation re-estimated front to back; None: not tried.
    """

    one_shot: float
    sequential: float | None = None

    @property
    def kept(self) -> str:
        """The name of the better one; "one_shot" if the loss of the other is not finite."""
        tried = self.sequential
        better = tried is not None and isfinite(tried) and not tried >= self.one_shot
        return "sequential" if better else "one_shot"


def prune(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Exports the policy's model to the folder `cfg.out`.

    With `cfg.sequential`, the better of one-shot and re-estimated compensation is exported. The
    entry `exported` of the record beside the weights has their perplexity in `cfg.dtype`.

    Returns:
        What `cfg.export` wrote, and the record.
    """
    exporter: Exporter = instantiate(cfg.export)
    exporter.check_policy(record["kept"], record["units"])
    timed = cfg.speed if cfg.latency else None
    biases = record["kept"] != record["units"] and adds_biases(checked_config(record, cfg))
    check = partial(check_export, exporter, timed, biases)
    context, record = compensated(cfg, fabric, record, exporter, timed, check)
    return exporter.write(context.model.pruner, Path(cfg.out), record), record


def adds_biases(config: DictConfig) -> bool:
    """Whether a config's compensation is known to add biases to pruned models."""
    return instantiate(config.compensation).biases


def check_export(
    exporter: Exporter, timed: DictConfig | None, biases: bool, text: Text, lm: LanguageModel
) -> None:
    """Raises PPFError if the format or the timed prompts do not fit the model; see `EarlyCheck`."""
    exporter.check_family(lm, biases=biases)
    if timed:
        check_prompts(timed, lm.model.config)


def convert(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Writes the exported or recovered model in `cfg.path` again, in the format `cfg.export`.

    Returns:
        What `cfg.export` wrote, and the record of the policy.

    Raises:
        PPFError: the folder holds no pruned model, or the format cannot hold it.
    """
    folder, exporter = Path(cfg.path), instantiate(cfg.export)
    if not isinstance(exporter, Converter):
        raise PPFError(
            "path= is a Hugging Face folder already: give export=gguf or export=decilm with it."
        )
    record = read_policy(folder / "policy.json", cfg.trust_targets)
    model = read_pruned(folder, resolve_dtype(cfg.dtype))
    exporter.check_model(model)
    return exporter.write_model(model, Path(cfg.out), record), record


def compensated(
    cfg: DictConfig,
    fabric: Fabric,
    record: dict[str, Any],
    exporter: Exporter,
    timed: DictConfig | None = None,
    check: EarlyCheck | None = None,
) -> tuple[PruningContext, dict[str, Any]]:
    """The policy's model, ready for an export, and the record with the entry `exported`.

    Args:
        timed: how speed is measured; None: it is not measured.
        check: as for `prepare`.
    """
    context = apply_policy(cfg, fabric, record, check)
    exporter.check(context.model.pruner)
    labelling = context.labelling
    known = known_before(labelling, timed)  # before the refit: applying another policy undoes it
    if cfg.sequential and can_refit(context.model):
        scores = storable(keep_better(labelling, context.calibration), context, exporter)
    else:
        scores = Compensated(labelling.present_nll())
    found = exported(labelling, scores.kept, vars(scores))
    return context, record | {"exported": found | known}


def storable(scores: Compensated, context: PruningContext, exporter: Exporter) -> Compensated:
    """Undoes the re-estimation if the export does not support it: it adds biases to all sites."""
    try:
        exporter.check(context.model.pruner)
    except PPFError as error:
        if scores.kept == "one_shot":
            raise
        say(f"One-shot weights are kept, since this export cannot store the others: {error}")
        context.model.pruner.reset()
        return Compensated(scores.one_shot)
    return scores


def known_before(labelling: Labelling, timed: DictConfig | None) -> dict[str, Any]:
    """The dense model's perplexity, and the speed of both models if it is wanted."""
    prunable, model = labelling.model, labelling.model.lm.model
    pruned = [asdict(found) for found in speeds(model, timed)] if timed else []
    with prunable.at(prunable.space.dense.tolist()):
        dense = {"dense": LogPerplexity(labelling.present_nll()).record()}
        if not timed:
            return dense
        return dense | {
            "speed": {"dense": [asdict(x) for x in speeds(model, timed)], "pruned": pruned}
        }


@contextmanager
def pruned_to(
    labelling: Labelling,
    calibration: Calibration,
    kept: Sequence[int],
    types: Types = None,
    *,
    sequential: bool,
) -> Iterator[PreTrainedModel]:
    """The model at a policy.

    Args:
        kept: units that each site keeps.
        types: number formats of the sites; None: no site is rounded.
        sequential: re-estimate its compensation, if that lowers the perplexity.
    """
    with labelling.model.pruner.at(kept, types) as model:
        if sequential and can_refit(labelling.model):
            keep_better(labelling, calibration)
        yield model


def keep_better(labelling: Labelling, calibration: Calibration) -> Compensated:
    """Re-estimates the present policy's consumers, and undoes it if the perplexity is not lower.

    The labelling part decides: re-estimation fits the calibration part, and the test part is left
    to `evaluate`.
    """
    before, model = labelling.present_nll(), labelling.model
    refit_sequentially(model.pruner, calibration.windows, model.compensation)
    scores = Compensated(before, after := labelling.present_nll())
    if scores.kept == "one_shot":
        model.pruner.reset()
    say(
        f"Sequential re-estimation: perplexity {LogPerplexity(before)} before,"
        f" {LogPerplexity(after)} after,"
        f" measured on {len(labelling.windows)} windows of the labelling part."
        f" Kept the {'one-shot' if scores.kept == 'one_shot' else 're-estimated'} weights."
    )
    return scores


def apply_policy(
    cfg: DictConfig, fabric: Fabric, record: dict[str, Any], check: EarlyCheck | None = None
) -> PruningContext:
    """The policy's model, loaded and pruned in place, in `cfg.dtype`.

    Args:
        check: as for `prepare`.
    """
    config = checked_config(record, cfg)
    config.sequential = cfg.sequential  # it takes memory
    context = prepare(config, fabric, dtype=cfg.dtype, check=check)
    space = context.model.space
    context.model.pruner.apply(space.policy(record["kept"]), types_of(space, record))
    return context


def can_refit(model: PrunableModel) -> bool:
    """Whether the present policy's consumers can be re-estimated.

    If they cannot, prints why, unless the policy is dense.
    """
    config, pruner = model.lm.model.config, model.pruner
    if pruner.kept == pruner.space.dense.tolist() and not any(pruner.types):
        return False
    if isinstance(model.compensation, NoCompensation):
        say("No sequential re-estimation: compensation=none has nothing to re-estimate.")
        return False
    if not model.lm.adapter.adds_to_stream(config):
        say(
            f"No sequential re-estimation: blocks of the family '{config.model_type}' end in norms."
        )
        return False
    return True


def exported(labelling: Labelling, kept: str, scores: Mapping[str, float | None]) -> dict[str, Any]:
    """The entry `exported` of policy.json.

    Args:
        kept: name of the compensation in the folder.
        scores: by compensation, on the labelling part, nats per token; None: not measured.
    """
    piece = labelling.piece
    return {
        "compensation": kept,
        "measured": {
            name: LogPerplexity(nll).record() for name, nll in scores.items() if nll is not None
        },
        "part": "labelling",
        "windows": len(piece.windows),
        "window": piece.windows.shape[1],
        "context": piece.first,
        "dtype": dtype_name(labelling.model.lm.dtype),
    }
