"""evaluate: what models score on the test part, and how large they are."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ppf.evaluation.perplexity import mean_nll
from ppf.evaluation.results import Evaluation, Measured
from ppf.evaluation.size import parameters, weight_bytes
from ppf.llm.loading import local_folder, resolve_dtype
from ppf.llm.text import Text, build_text, default_text
from ppf.progress import say
from ppf.space import uniform
from ppf.stages.policy import policy_config, read_policy
from ppf.stages.prune import apply_policy, refit


def evaluate_policy(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Evaluation:
    """The policy's live-pruned model; with `cfg.baselines` also dense and uniformly pruned.

    With `cfg.sequential` both pruned ones are re-estimated, as `prune` does.
    """
    ready = apply_policy(cfg, fabric, record)
    text = _text(cfg, ready.text)
    windows = text.tokens("test", ready.lm.tokenizer)
    policies = {"PPF": ready.pruner.kept}
    if cfg.baselines:
        ratio = torch.tensor([record["ratio"]["asked"]], dtype=torch.double)
        baselines = {"dense": ready.space.dense, "uniform": uniform(ready.space, ratio)[0]}
        policies = {name: kept.tolist() for name, kept in baselines.items()} | policies
    results = []
    for name, kept in policies.items():
        say(f"Measuring {name}.")
        with ready.pruner.at(kept) as model:
            if cfg.sequential:
                refit(ready)
            size = parameters(model) * ready.lm.dtype.itemsize
            achieved = float(ready.space.ratio(torch.tensor(kept)))
            results.append(_measure(name, achieved, model, windows, cfg.batch, size))
    return Evaluation(text.name, len(windows), windows.shape[1], results)


def evaluate_folder(cfg: DictConfig, fabric: Fabric) -> Evaluation:
    """A Hugging Face folder; a pruned one is scored on its policy's text unless `text` is given."""
    folder = Path(local_folder(cfg.path, "path"))
    pruned = (folder / "policy.json").is_file()
    record = read_policy(str(folder / "policy.json")) if pruned else None
    # Only code that our own export wrote beside the weights is run.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=resolve_dtype(cfg.dtype), trust_remote_code=pruned
    )
    own = policy_config(record, cfg).text if record else default_text()
    text = _text(cfg, build_text(own, cfg.paths.cache))
    windows = text.tokens("test", AutoTokenizer.from_pretrained(folder))
    model = model.eval().to(fabric.device)
    ratio = record["ratio"]["achieved"] if record else None
    result = _measure(folder.name, ratio, model, windows, cfg.batch, weight_bytes(folder))
    return Evaluation(text.name, len(windows), windows.shape[1], [result])


def write_results(folder: Path, evaluation: Evaluation) -> Path:
    """evaluation.json: the results and the text they hold on."""
    path = folder / "evaluation.json"
    path.write_text(json.dumps(asdict(evaluation), indent=2) + "\n", encoding="utf-8")
    return path


def _text(cfg: DictConfig, own: Text) -> Text:
    given = OmegaConf.select(cfg, "text")
    return build_text(given, cfg.paths.cache) if given else own


def _measure(
    name: str,
    ratio: float | None,
    model: PreTrainedModel,
    windows: torch.Tensor,
    batch: int,
    size: int,
) -> Measured:
    nll = mean_nll(model, windows, batch=batch)
    perplexity = float(torch.tensor(nll, dtype=torch.double).exp())
    return Measured(name, ratio, nll, perplexity, parameters(model), size)
