"""prune: writes the model of a policy, with smaller tensors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig
from transformers import PreTrainedModel

from ppf.context.policy import check_signature, policy_config, read_policy, types_of
from ppf.context.prepare import PruningContext, prepare
from ppf.errors import PPFError
from ppf.evaluation.latency import speeds
from ppf.evaluation.perplexity import Piece, pieces_nll
from ppf.export.base import Converter, Exporter
from ppf.export.loading import read_pruned
from ppf.llm.loading import resolve_dtype
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


def prune(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Path:
    """Exports the policy's model to the folder `cfg.out`; returns what `cfg.export` wrote.

    With `cfg.sequential`, the better of one-shot and re-estimated compensation is exported. The
    entry `exported` of the record beside the weights has their perplexity in `cfg.dtype`.
    """
    exporter: Exporter = instantiate(cfg.export)
    timed = cfg.speed if cfg.latency else None
    context, record = compensated(cfg, fabric, record, exporter, timed)
    return exporter.write(context.pruner, Path(cfg.out), record)


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
) -> tuple[PruningContext, dict[str, Any]]:
    """The policy's model, ready for an export, and the record with the entry `exported`.

    Args:
        timed: how speed is measured; None: it is not measured.
    """
    context = apply_policy(cfg, fabric, record)
    exporter.check(context.pruner)
    known = known_before(context, timed)  # the dense model is not to be had after a refit
    if cfg.sequential and can_refit(context):
        scores = keep_better(context)
    else:
        scores = Compensated(labelling_nll(context))
    found = exported(context, scores.kept, vars(scores))
    return context, record | {"exported": found | known}


def known_before(context: PruningContext, timed: DictConfig | None) -> dict[str, Any]:
    """The dense model's perplexity, and the speed of both models if it is wanted."""
    model = context.lm.model
    pruned = [asdict(found) for found in speeds(model, timed)] if timed else []
    with context.pruner.at(context.space.dense.tolist()):
        dense = {"dense": LogPerplexity(labelling_nll(context)).record()}
        if not timed:
            return dense
        return dense | {
            "speed": {"dense": [asdict(x) for x in speeds(model, timed)], "pruned": pruned}
        }


@contextmanager
def pruned_to(
    context: PruningContext, kept: Sequence[int], types: Types = None, *, sequential: bool
) -> Iterator[PreTrainedModel]:
    """The model at a policy.

    Args:
        kept: units that each site keeps.
        types: number formats of the sites; None: no site is rounded.
        sequential: re-estimate its compensation, if that lowers the perplexity.
    """
    with context.pruner.at(kept, types) as model:
        if sequential and can_refit(context):
            keep_better(context)
        yield model


def keep_better(context: PruningContext) -> Compensated:
    """Re-estimates the present policy's consumers, and undoes it if the perplexity is not lower.

    The labelling part decides: re-estimation fits the calibration part, and the test part is left
    to `evaluate`.
    """
    before, labelling = labelling_nll(context), _labelling(context)
    refit(context)
    scores = Compensated(before, after := labelling_nll(context))
    if scores.kept == "one_shot":
        context.pruner.reset()
    say(
        f"Sequential re-estimation: perplexity {LogPerplexity(before)} before,"
        f" {LogPerplexity(after)} after,"
        f" measured on {len(labelling.windows)} windows of the labelling part."
        f" Kept the {'one-shot' if scores.kept == 'one_shot' else 're-estimated'} weights."
    )
    return scores


def apply_policy(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> PruningContext:
    """The policy's model, loaded and pruned in place, in `cfg.dtype`."""
    config = policy_config(record, cfg)
    check_signature(record, config)
    context = prepare(config, fabric, dtype=cfg.dtype)
    context.pruner.apply(context.space.policy(record["kept"]), types_of(context.space, record))
    return context


def can_refit(context: PruningContext) -> bool:
    """Whether the present policy's consumers can be re-estimated; if not, prints why."""
    config = context.lm.model.config
    if context.pruner.kept == context.pruner.space.dense.tolist() and not any(context.pruner.types):
        return False
    if isinstance(context.compensation, NoCompensation):
        say("No sequential re-estimation: compensation=none has nothing to re-estimate.")
        return False
    if not context.lm.adapter.adds_to_stream(config):
        say(
            f"No sequential re-estimation: blocks of the family '{config.model_type}' end in norms."
        )
        return False
    return True


def refit(context: PruningContext) -> None:
    """Re-estimates the present policy's consumers front to back, on the calibration part."""
    windows = context.text.tokens("calibration", context.lm.tokenizer)
    refit_sequentially(context.pruner, windows, context.compensation)


def _labelling(context: PruningContext) -> Piece:
    windows = context.text.tokens("labelling", context.lm.tokenizer)
    return Piece(windows, context.config.labels.context)


def labelling_nll(context: PruningContext) -> float:
    """The loss of the model in its present state on the labelling part, nats per token."""
    batch = context.config.labels.batch
    return pieces_nll(context.lm.model, [_labelling(context)], batch=batch)


def exported(
    context: PruningContext, kept: str, scores: Mapping[str, float | None]
) -> dict[str, Any]:
    """The entry `exported` of policy.json.

    Args:
        kept: name of the compensation in the folder.
        scores: by compensation, on the labelling part, nats per token; None: not measured.
    """
    piece = _labelling(context)
    return {
        "compensation": kept,
        "measured": {
            name: LogPerplexity(nll).record() for name, nll in scores.items() if nll is not None
        },
        "part": "labelling",
        "windows": len(piece.windows),
        "window": piece.windows.shape[1],
        "context": piece.first,
        "dtype": str(context.lm.dtype).removeprefix("torch."),
    }
