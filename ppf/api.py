"""The commands as function calls: what `import ppf` offers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ppf.cli.app import run
from ppf.cli.explain import sentence
from ppf.conf import without_others
from ppf.errors import PPFError
from ppf.overrides import written
from ppf.policy_file import read_policy


@dataclass(frozen=True)
class SearchResult:
    """The result of a search: the files in its folder.

    Args:
        folder: of the run, with policy.json (or agent.json) and report.html.
        trusted: classes of the user's own that policy.json may name.
    """

    folder: Path
    trusted: Sequence[str] = ()

    @cached_property
    def record(self) -> dict[str, Any]:
        """The contents of policy.json.

        Raises:
            PPFError: it was a search for all ratios: use `ppf.load_agent(result.folder)`.
        """
        return read_policy(self.folder / "policy.json", self.trusted)

    @property
    def kept(self) -> dict[str, int]:
        """Units kept at each site, by the site's name, as in "3.mlp"."""
        return self.record["kept"]

    @property
    def ratio(self) -> float:
        """The pruning ratio that the policy reaches."""
        return self.record["ratio"]["achieved"]

    @property
    def perplexity(self) -> float:
        """Perplexity, measured on the labelling part of the text."""
        return self.record["measured"]["perplexity"]


Policy = SearchResult | str | Path | None


@without_others()
def search(
    model: str | Path | PreTrainedModel = "smollm2_135m",
    ratio: float | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **overrides: Any,
) -> SearchResult:
    """Searches for the policy of lowest perplexity, as `search.py` does.

    Args:
        model: a name of `conf/model`, a Hugging Face folder, or a loaded model, which is saved
            into the run's folder.
        ratio: share of the budget to save; None: 0.3, or all ratios with `mode="dynamic"|"chain"`.
        tokenizer: of a loaded model; None: the one of the folder or hub id that it came from.
        overrides: keys of `search.py`, as in `agent="ppo"` or `labels={"count": 256}`.

    Raises:
        PPFError: an override is wrong, or the model or the text cannot be read.
    """
    named: dict[str, Any] = {"model": model}
    if isinstance(model, PreTrainedModel):
        named = {"model.path": "${paths.run}/model"}
    elif (Path(model) / "config.json").is_file():
        named = {"model.path": model}
    cfg = _composed("search", named | ({} if ratio is None else {"ratio": ratio}) | overrides)
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(cfg.model.path)
        known = tokenizer or AutoTokenizer.from_pretrained(model.name_or_path)
        known.save_pretrained(cfg.model.path)
    run("search", cfg)
    return SearchResult(Path(cfg.paths.run), list(cfg.trust_targets))


@without_others()
def prune(policy: Policy = None, out: str | Path = "pruned", **overrides: Any) -> Path:
    """Writes the smaller model into the folder `out`, as `prune.py` does, and returns `out`.

    Args:
        policy: a search's result, or a policy.json.
        overrides: keys of `prune.py`, as in `export="gguf"`. In place of a policy, `path=` is a
            folder to convert; `search=` is a search for all ratios, with `ratio=`.
    """
    run("prune", _composed("prune", {"out": out, **overrides}, policy))
    return Path(out)


@without_others()
def recover(policy: Policy = None, out: str | Path = "recovered", **overrides: Any) -> Path:
    """Trains a pruned model as `recover.py` does, writes it to `out`, and returns `out`.

    Args:
        policy: a search's result, or a policy.json, whose model is pruned first.
        overrides: keys of `recover.py`, as in `tune="lora"`. In place of a policy, `path=` is a
            folder that `prune` wrote; `search=` is a search for all ratios.
    """
    run("recover", _composed("recover", {"out": out, **overrides}, policy))
    return Path(out)


@without_others()
def evaluate(policy: Policy = None, **overrides: Any) -> dict[str, Any]:
    """Measures a policy or Hugging Face folders on the test part, as `evaluate.py` does.

    Args:
        policy: a search's result, or a policy.json.
        overrides: keys of `evaluate.py`, as in `latency=True`. In place of a policy, `path=` is a
            folder, or a list of several.

    Returns:
        The contents of evaluation.json: `results` has one entry per model, with nats per token
        and perplexity.
    """
    cfg = _composed("evaluate", overrides, policy)
    run("evaluate", cfg)
    return json.loads((Path(cfg.paths.run) / "evaluation.json").read_text(encoding="utf-8"))


def _composed(command: str, given: Mapping[str, Any], policy: Policy = None) -> DictConfig:
    """A command's config, with a new run folder in the place where the command creates its own."""
    folder = f"${{paths.outputs}}/{command}/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
    values = {"paths.run": folder, **given} | ({} if policy is None else {"policy": policy})
    for key, found in list(values.items()):
        if isinstance(found, SearchResult):
            values[key] = found.folder if key == "search" else found.folder / "policy.json"
            values["trust_targets"] = list(found.trusted)
    overrides = list(written(values))
    try:
        with initialize_config_module("ppf.conf", version_base="1.3"):
            return compose(command, overrides)
    except Exception as error:
        if told := sentence(error, overrides):
            raise PPFError(told) from error
        raise
