"""prune: writes the model of a policy, with smaller tensors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig
from transformers import PreTrainedModel

from ppf.context import EarlyCheck, PruningContext, prepare
from ppf.errors import PPFError
from ppf.evaluation.latency import check_prompts, speeds
from ppf.export.base import Converter, Exporter
from ppf.export.loading import read_pruned
from ppf.export.pruned import Pruned
from ppf.labels.labelling import Labelling
from ppf.llm import LanguageModel
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.policy_file import checked_config, read_policy, types_of
from ppf.progress import say
from ppf.pruning.calibration import Calibration
from ppf.pruning.compensation import NoCompensation
from ppf.pruning.live import Types
from ppf.pruning.prunable import PrunableModel
from ppf.pruning.sequential import refit_sequentially
from ppf.report.scores import LogPerplexity
from ppf.text import Text
from ppf.text.windows import evenly

_DECIDING = 16
"""Windows of the selection part that choose between two compensations, as in search.yaml."""


@dataclass(frozen=True)
class CompensationChoice:
    """Losses of one policy under two compensations, nats per token; the lower one is kept.

    Args:
        one_shot: with the level bank's compensation.
        sequential: with compensation re-estimated front to back.
        part: of the text, on which both were measured.
        windows: number of windows of the measurement.
    """

    one_shot: float
    sequential: float
    part: Literal["labelling", "selection"]
    windows: int

    @property
    def kept(self) -> str:
        """The name of the better one; "one_shot" if the loss of the other is not finite."""
        better = isfinite(self.sequential) and not self.sequential >= self.one_shot
        return "sequential" if better else "one_shot"

    def record(self) -> dict[str, Any]:
        """The entry `choice` of `exported` in policy.json."""
        nlls = {"one_shot": self.one_shot, "sequential": self.sequential}
        scores = {name: LogPerplexity(nll).record() for name, nll in nlls.items()}
        return scores | {"part": self.part, "windows": self.windows}


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
    if not _describes(record, model):
        raise PPFError(
            f"{folder}/policy.json does not describe the weights beside it: export it again."
        )
    exporter.check_model(model)
    return exporter.write_model(model, Path(cfg.out), record), record


def _describes(record: Mapping[str, Any], model: Pruned) -> bool:
    """Whether a model has the widths that a policy names; sites without a name are whole."""
    kept, units = record["kept"], record["units"]
    found = zip(model.couplings, model.atoms, model.whole, strict=True)
    return all(
        atoms * units.get(c.name, 1) == whole * kept.get(c.name, 1) for c, atoms, whole in found
    )


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
    scores = {"one_shot": labelling.present_nll()}
    choice = chosen(context, exporter, cfg.refit_windows) if cfg.sequential else None
    return context, record | {"exported": exported(labelling, scores, choice) | known}


def chosen(
    context: PruningContext, exporter: Exporter, windows: int | None
) -> CompensationChoice | None:
    """Leaves the better compensation in the model; None: only one-shot compensation is possible.

    Re-estimation is undone if the export does not support it: it adds biases to all sites.

    Args:
        windows: number of windows that re-estimation reads; None: all of the calibration part.
    """
    if not can_refit(context.model):
        return None
    choice = keep_better(context.labelling, context.calibration, windows)
    try:
        exporter.check(context.model.pruner)
    except PPFError as error:
        if choice.kept == "one_shot":
            raise
        say(f"One-shot weights are kept, since this export cannot store the others: {error}")
        context.model.pruner.reset()
        return None
    return choice


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
    windows: int | None,
) -> Iterator[PreTrainedModel]:
    """The model at a policy.

    Args:
        kept: units that each site keeps.
        types: number formats of the sites; None: no site is rounded.
        sequential: re-estimate its compensation, if that lowers the perplexity.
        windows: number of windows that re-estimation reads; None: all of the calibration part.
    """
    with labelling.model.pruner.at(kept, types) as model:
        if sequential and can_refit(labelling.model):
            keep_better(labelling, calibration, windows)
        yield model


def keep_better(
    labelling: Labelling, calibration: Calibration, count: int | None
) -> CompensationChoice:
    """Re-estimates the present policy's blocks, and undoes it if the perplexity is not lower.

    The selection part decides. On the labelling part, the search chose the policy for its loss
    with one-shot compensation, so that loss is too low there. If labels read all windows, the
    labelling part decides.

    Args:
        count: number of windows that re-estimation reads; None: all of the calibration part.
    """
    new, model = evenly(labelling.others, _DECIDING), labelling.model
    windows = new if len(new) else labelling.windows
    before = labelling.present_nll(windows)
    read = calibration.refit_windows(count)
    refit_sequentially(model.pruner, read, calibration.first, model.compensation)
    after = labelling.present_nll(windows)
    part: Literal["labelling", "selection"] = "selection" if len(new) else "labelling"
    choice = CompensationChoice(before, after, part, len(windows))
    if choice.kept == "one_shot":
        model.pruner.reset()
    kept = "one-shot" if choice.kept == "one_shot" else "re-estimated"
    say(
        f"Sequential re-estimation: perplexity {LogPerplexity(before)} before,"
        f" {LogPerplexity(after)} after, measured on {len(windows)} windows of the"
        f" {part} part. Kept the {kept} weights."
    )
    return choice


def apply_policy(
    cfg: DictConfig, fabric: Fabric, record: dict[str, Any], check: EarlyCheck | None = None
) -> PruningContext:
    """The policy's model, loaded and pruned in place, in `cfg.dtype`.

    Args:
        check: as for `prepare`.
    """
    config = checked_config(record, cfg)
    config.sequential, config.refit_windows = cfg.sequential, cfg.refit_windows  # it takes memory
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


def exported(
    labelling: Labelling, scores: Mapping[str, float], choice: CompensationChoice | None = None
) -> dict[str, Any]:
    """The entry `exported` of policy.json; re-estimated weights are measured.

    Args:
        scores: losses on the labelling part by compensation, nats per token. The last one is that
            of the weights in the folder, unless re-estimated weights were chosen.
        choice: between one-shot and re-estimated weights; None: there was none.
    """
    piece = labelling.piece
    if choice and choice.kept == "sequential":
        scores = {**scores, "sequential": labelling.present_nll()}
    return {
        "compensation": list(scores)[-1],
        "measured": {name: LogPerplexity(nll).record() for name, nll in scores.items()},
        "choice": choice.record() if choice else None,
        "part": "labelling",
        "windows": len(piece.windows),
        "window": piece.windows.shape[1],
        "context": piece.first,
        "dtype": dtype_name(labelling.model.lm.dtype),
    }
