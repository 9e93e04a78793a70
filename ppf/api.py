"""The commands as function calls: what `import ppf` offers."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ppf.cli.app import run
from ppf.cli.explain import sentence
from ppf.conf import plain, without_others
from ppf.errors import PPFError
from ppf.export.files import write_generation_config
from ppf.overrides import text, written
from ppf.policy_file import read_policy
from ppf.pruning.signatures import recorded

Model = str | Path | PreTrainedModel


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


@without_others()
def search(
    model: Model = "smollm2_135m",
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
    given = _written(({} if ratio is None else {"ratio": ratio}) | overrides)
    cfg = _composed("search", [*_named(model), *given])
    saved = Path(cfg.model.path) if isinstance(model, PreTrainedModel) else None
    try:
        if isinstance(model, PreTrainedModel):
            _save(model, tokenizer, cfg.model.path)
        run("search", cfg, given)
    except Exception:
        if saved and not any(Path(cfg.paths.run).glob("*.json")):  # no result names the copy
            shutil.rmtree(saved, ignore_errors=True)
        raise
    if saved and Path(cfg.model.path) != saved:  # this rank uses the copy of rank 0
        shutil.rmtree(saved.parent, ignore_errors=True)
    return SearchResult(Path(cfg.paths.run), _own_targets(plain(recorded(cfg))))


@without_others()
def prune(
    policy: SearchResult | str | Path | None = None,
    out: str | Path = "pruned",
    *,
    path: str | Path | None = None,
    search: SearchResult | str | Path | None = None,
    ratio: float | None = None,
    **overrides: Any,
) -> Path:
    """Writes the smaller model, as `prune.py` does.

    Args:
        policy: a search's result, or a policy.json.
        out: folder to write.
        path: in place of a policy: a folder that `prune` or `recover` wrote, to convert.
        search: in place of a policy: the folder or result of a search for all ratios.
        ratio: share of the budget to save, with `search`.
        overrides: keys of `prune.py`, as in `export="gguf"`.

    Returns:
        `out`.
    """
    sources = {**_sources(policy, path, search), "ratio": ratio, "out": out}
    given = _written({**sources, **overrides})
    cfg = _composed("prune", given)
    run("prune", cfg, given)
    return Path(out)


@without_others()
def recover(
    policy: SearchResult | str | Path | None = None,
    out: str | Path = "recovered",
    *,
    path: str | Path | None = None,
    search: SearchResult | str | Path | None = None,
    **overrides: Any,
) -> Path:
    """Trains a pruned model, by default by distillation from the dense model, as `recover.py` does.

    Args:
        policy: a search's result, or a policy.json, whose model is pruned first.
        out: folder to write.
        path: in place of a policy: a folder that `prune` wrote.
        search: in place of a policy: the folder or result of a search for all ratios.
        overrides: keys of `recover.py`, as in `tune="lora"`.

    Returns:
        `out`.
    """
    given = _written({**_sources(policy, path, search), "out": out, **overrides})
    cfg = _composed("recover", given)
    run("recover", cfg, given)
    return Path(out)


@without_others()
def evaluate(
    policy: SearchResult | str | Path | None = None,
    *,
    path: str | Path | Sequence[str | Path] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Measures a policy or Hugging Face folders on the test part, as `evaluate.py` does.

    Args:
        policy: a search's result, or a policy.json.
        path: a folder, or several.
        overrides: keys of `evaluate.py`, as in `latency=True`.

    Returns:
        The contents of evaluation.json: `results` has one entry per model, with nats per token
        and perplexity.
    """
    given = _written({**_sources(policy, path), **overrides})
    cfg = _composed("evaluate", given)
    run("evaluate", cfg, given)
    return json.loads((Path(cfg.paths.run) / "evaluation.json").read_text(encoding="utf-8"))


def _written(given: Mapping[str, Any]) -> list[str]:
    try:
        return [*written(given)]
    except TypeError as error:
        raise PPFError(f"{error}: give one as the value of a key.") from error


def _composed(command: str, overrides: Iterable[str]) -> DictConfig:
    """A command's config, with a new run folder in the place where the command creates its own."""
    given, folder = list(overrides), f"{command}/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
    try:
        with initialize_config_module("ppf.conf", version_base="1.3"):
            return compose(command, [f"paths.run=${{paths.outputs}}/{folder}", *given])
    except Exception as error:
        if told := sentence(error, command, given):
            raise PPFError(told) from error
        raise


def _named(model: Model) -> Iterator[str]:
    """The overrides that name a model; a loaded one is saved in the run's folder."""
    if isinstance(model, PreTrainedModel):
        yield from ("model=local", "model.path=${paths.run}/model")
    elif (Path(model) / "config.json").is_file():
        yield from ("model=local", f"model.path={text(model)}")
    else:
        yield f"model={model}"


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: str) -> None:
    """Saves a model and its tokenizer."""
    with patch.object(model, "generation_config", GenerationConfig()):
        model.save_pretrained(folder)
    write_generation_config(model, Path(folder))
    (tokenizer or AutoTokenizer.from_pretrained(model.name_or_path)).save_pretrained(folder)


def _sources(
    policy: SearchResult | str | Path | None,
    path: str | Path | Sequence[str | Path] | None,
    search: SearchResult | str | Path | None = None,
) -> dict[str, Any]:
    """The overrides that name what a command reads."""
    given: dict[str, Any] = {"policy": policy, "path": path, "search": search}
    trusted = [x.trusted for x in (policy, search) if isinstance(x, SearchResult) and x.trusted]
    if isinstance(policy, SearchResult):
        given["policy"] = policy.folder / "policy.json"
    if isinstance(search, SearchResult):
        given["search"] = search.folder
    named = {key: value for key, value in given.items() if value is not None}
    return named | ({"trust_targets": trusted[0]} if trusted else {})


def _own_targets(config: Any) -> list[str]:
    """The classes that a plain config names at any depth, without those of PPF."""
    if isinstance(config, Mapping):
        target = config.get("_target_", "ppf.")
        own = [] if target.startswith("ppf.") else [target]
        return own + [name for value in config.values() for name in _own_targets(value)]
    parts = config if isinstance(config, list) else []
    return [name for part in parts for name in _own_targets(part)]
