"""evaluate: measures models on the test part, their size and their speed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ppf.errors import PPFError
from ppf.evaluation.latency import check_prompts, speeds
from ppf.evaluation.perplexity import Piece, pieces_loss, sliding
from ppf.evaluation.results import Evaluation, ModelResult
from ppf.evaluation.size import parameters, weight_bytes
from ppf.evaluation.tasks import Tasks
from ppf.export.loading import load_folder, read_description
from ppf.llm import LanguageModel, check_head
from ppf.llm.loading import check_window, resolve_dtype
from ppf.llm.sources import local_folder
from ppf.policy_file import policy_config, read_policy, types_of
from ppf.progress import say
from ppf.report.scores import LogPerplexity
from ppf.stages.prune import apply_policy, pruned_to
from ppf.text.identity import warn_of_shared_documents
from ppf.text.parts import Text, build_text, default_text


@dataclass(frozen=True)
class Procedure:
    """The measurements of every model of one evaluation.

    Args:
        cfg: of evaluate.yaml.
        tasks: None: none were requested.
    """

    cfg: DictConfig
    tasks: Tasks | None

    @classmethod
    def of(cls, cfg: DictConfig) -> "Procedure":
        """Loads the tasks, so that a wrong name fails before the work starts."""
        wanted = Tasks(cfg.tasks, limit=cfg.limit, batch=cfg.batch) if cfg.tasks else None
        return cls(cfg, wanted)

    def pieces(self, text: Text, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        """Windows of the test part.

        With `cfg.window` or `cfg.stride`, the whole part is cut into windows of that length and
        stride. Otherwise they are the text's own windows.

        Raises:
            PPFError: the part has no window of this length.
        """
        window, stride = self.cfg.window or text.window, self.cfg.stride
        if stride:
            tokens, leading = text.stream("test", tokenizer), text.leading(tokenizer)
            return sliding(tokens, window=window, stride=stride, leading=leading)
        if not self.cfg.window:
            return [Piece(text.tokens("test", tokenizer), 1)]
        windows = text.every_window("test", tokenizer, window)
        if not len(windows):
            raise PPFError(
                f"the test part of text={text.name} is shorter than window={window}: give a"
                " smaller window, or a longer text."
            )
        return [Piece(windows, 1)]

    def check(
        self, text: Text, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Raises PPFError if the windows of the text or the timed prompts do not fit the model."""
        self.pieces(text, tokenizer)
        check_window(self.cfg.window or text.window, config, "window")
        if self.cfg.latency:
            check_prompts(self.cfg.speed, config)

    def measure(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pieces: list[Piece],
        *,
        ratio: float | None,
        asked: float | None,
        size: int,
    ) -> ModelResult:
        """The requested measurements of one model; ratios and size as in `ModelResult`."""
        cfg = self.cfg
        say(f"Measuring {name}.")
        timed = speeds(model, cfg.speed) if cfg.latency else []
        loss = pieces_loss(model, pieces, batch=cfg.batch)
        return ModelResult(
            name,
            ratio,
            loss.nll,
            LogPerplexity(loss.nll).perplexity,
            parameters(model),
            size,
            timed,
            self.tasks.scores(model, tokenizer) if self.tasks else {},
            loss.std_error if isfinite(loss.std_error) else None,
            asked,
        )

    def evaluation(
        self, text: Text, pieces: list[Piece], results: list[ModelResult], *, rounded: bool
    ) -> Evaluation:
        """The results, with the text and the windows of the measurements."""
        windows = sum(len(piece.windows) for piece in pieces)
        window = pieces[0].windows.shape[1]
        return Evaluation(text.name, windows, window, self.cfg.stride or window, results, rounded)


def evaluate_policy(
    cfg: DictConfig, fabric: Fabric, procedure: Procedure, record: dict[str, Any]
) -> Evaluation:
    """Measures the policy's model; with `cfg.baselines` also the dense and a uniformly pruned one.

    With `cfg.sequential`, both pruned models are re-estimated if that helps, as `prune` does.

    Raises:
        PPFError: the model has changed since the search, or text or windows do not fit.
    """
    text = _text(cfg, {"the policy": policy_config(record, cfg)})

    def check(_: Text, lm: LanguageModel) -> None:
        procedure.check(text, lm.model.config, lm.tokenizer)

    context = apply_policy(cfg, fabric, record, check)
    tokenizer = context.model.lm.tokenizer
    pieces = procedure.pieces(text, tokenizer)
    space, pruner, dtype = context.model.space, context.model.pruner, context.model.lm.dtype
    policies = {"PPF": (pruner.kept, types_of(space, record))}
    if cfg.baselines:
        uniform = record["uniform"]
        even = space.policy(uniform["kept"]), types_of(space, uniform)
        policies = {"dense": (space.dense.tolist(), None), "uniform": even} | policies
    itemsize = 2 if record.get("types") else dtype.itemsize  # a GGUF file rounds to 16 bits or less
    parts, results = (context.labelling, context.calibration), []
    for name, (kept, types) in policies.items():
        how = {"sequential": cfg.sequential, "windows": cfg.refit_windows}
        with pruned_to(*parts, kept, types, **how) as model:
            size = parameters(model) * itemsize - pruner.bytes_of_rounding
            removed = float(space.ratio(torch.tensor(kept)))
            achieved = pruner.bytes_saved if record.get("types") else removed
            asked = None if name == "dense" else record["ratio"]["asked"]
            given = {"ratio": achieved, "asked": asked}
            results.append(procedure.measure(name, model, tokenizer, pieces, **given, size=size))
    return procedure.evaluation(text, pieces, results, rounded=bool(record.get("types")))


def evaluate_folders(
    cfg: DictConfig, fabric: Fabric, procedure: Procedure, paths: list[str]
) -> Evaluation:
    """Measures Hugging Face folders, one after another.

    All are measured on one text: the given one, or that of the first pruned folder's policy.

    Raises:
        PPFError: a folder or its policy.json cannot be read, or text or windows do not fit.
    """
    folders = [Path(local_folder(path, "path")) for path in paths]
    records = [_record(folder, cfg.trust_targets) for folder in folders]
    known = {f"the policy of {x}": r for x, r in zip(folders, records, strict=True) if r}
    text = _text(cfg, {name: policy_config(record, cfg) for name, record in known.items()})
    # Of policies that round weights, the ratio is a share of bytes. A table has one kind of ratio.
    rounded = bool(known) and all(record.get("types") for record in known.values())
    trust = cfg.trust_remote_code
    for folder in [] if trust else folders:  # before the first one is measured
        procedure.check(text, *read_description(folder))
    pieces, results, first, same = list[Piece](), [], list[Piece](), True
    for name, folder, record in zip(names_of(paths), folders, records, strict=True):
        dtype = resolve_dtype(cfg.dtype, fabric.device)
        model, tokenizer = load_folder(folder, dtype, trust_remote_code=trust)
        pieces = procedure.pieces(text, tokenizer)
        first = first or pieces
        equal = (torch.equal(p.windows, q.windows) for p, q in zip(pieces, first, strict=False))
        same &= len(pieces) == len(first) and all(equal)
        alike = record and bool(record.get("types")) == rounded
        ratio = record["ratio"] if record and alike else {"achieved": None, "asked": None}
        given = {"ratio": ratio["achieved"], "asked": ratio["asked"]}
        model, size = model.eval().to(fabric.device), weight_bytes(folder)
        check_head(model, pieces[0].windows[:1, :16])
        results.append(procedure.measure(name, model, tokenizer, pieces, **given, size=size))
        del model  # before the next one is loaded
    if not same:
        say("The folders have different tokenizers: their losses per token cannot be compared.")
    return procedure.evaluation(text, pieces, results, rounded=rounded)


def names_of(paths: Sequence[str]) -> list[str]:
    """The names of folders; their paths if two folders have the same name."""
    names = [Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def _text(cfg: DictConfig, found_with: Mapping[str, DictConfig]) -> Text:
    """The given text, or that of the first policy, or the default one.

    Args:
        found_with: the config that each policy was found with, by what the policy is called.
    """
    texts = (config.text for config in found_with.values())
    text = OmegaConf.select(cfg, "text") or next(texts, None) or default_text()
    tested = OmegaConf.create({"text": text, "paths": cfg.paths})
    for policy, config in found_with.items():
        warn_of_shared_documents(tested, config, policy)
    return build_text(text, cfg.paths.cache)


def _record(folder: Path, trusted: Collection[str]) -> dict[str, Any] | None:
    """The policy of a pruned folder."""
    file = folder / "policy.json"
    return read_policy(file, trusted) if file.is_file() else None
