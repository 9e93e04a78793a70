"""What determines the windows and the documents of a part of a text."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppf.conf import plain
from ppf.digests import digests, source_identity
from ppf.errors import PPFError
from ppf.progress import say
from ppf.text.files import files
from ppf.text.parts import PartName, local_splits, mixture, spans


def text_identity(cfg: DictConfig, part: PartName) -> dict[str, Any]:
    """What determines the windows of one part of a text; the other parts do not count."""
    text = plain(cfg.text)
    text.pop("training", None)  # a text of its own: see `training_text`
    text.pop("mixture", None)
    if text.get("loss_on") == "all":  # artefacts keep the names of earlier versions
        del text["loss_on"]
    if mixed := mixture(cfg.text):
        each = [OmegaConf.create({"text": one, "paths": cfg.paths}) for one, _ in mixed]
        return {
            "mixture": [documents_identity(one, part) for one in each],
            "weights": [weight for _, weight in mixed],
            **{key: text[key] for key in ("window", "bos", "loss_on") if key in text},
            "windows": text["windows"][part],
        }
    source = _documents(text, Path(cfg.paths.cache))
    path, splits, windows = text.pop("path"), text.pop("splits"), text.pop("windows")[part]
    del text["name"]
    if path:
        splits = local_splits(splits)
    else:
        del text["column"]  # of files only
    target = source.get("_target_", "")
    if target != "ppf.text.corpora.wikipedia_sample":  # which has no duplicates
        text["duplicates"] = "removed"
    if target.startswith("ppf.text.corpora."):  # artefacts keep the names of earlier versions
        source["_target_"] = target.replace("ppf.text.", "ppf.llm.")
    return text | {"source": source, "documents": spans(splits, part), "windows": windows}


def documents_identity(cfg: DictConfig, part: PartName) -> dict[str, Any]:
    """What determines the documents of one part of a text, but not its windows."""
    windows = ("window", "windows", "bos", "loss_on")
    return {k: value for k, value in text_identity(cfg, part).items() if k not in windows}


def file_identity(path: str, key: str, cache: Path) -> dict[str, Any]:
    """What determines the documents of local files: their content, and their type unless .jsonl.

    Raises:
        PPFError: there is no file at `path`, which the config names under `key`.
    """
    named = files(path)
    if not named[0].is_file():
        raise PPFError(
            f"{key}={path} does not exist: give {key} another value. If a policy.json or agent.json"
            " names this path, change it in that file."
        )
    found = [
        {"content": content} | ({} if file.suffix == ".jsonl" else {"type": file.suffix})
        for file, content in zip(named, digests(named, cache), strict=True)
    ]
    return found[0] if len(found) == 1 else {"files": found}


def _documents(text: dict[str, Any], cache: Path) -> dict[str, Any]:
    """What determines the documents of all parts of a plain `text=` config."""
    if text["path"]:
        return file_identity(text["path"], "text.path", cache)
    return source_identity(text["source"], cache)


def warn_of_shared_documents(
    cfg: DictConfig, found_with: DictConfig, policy: str = "the policy"
) -> None:
    """Warns if a policy was found with documents of the test part of `cfg.text`.

    This is so if another seed or other splits divide the same source.

    Args:
        found_with: the config that the policy was found with.
        policy: what the warning calls it.
    """
    own, other, cache = plain(cfg.text), plain(found_with.text), Path(cfg.paths.cache)
    try:
        if _documents(own, cache) != _documents(other, cache):
            return
    except PPFError:  # a missing file is reported where it is read
        return
    tested, *used = (
        spans(local_splits(text["splits"]) if text["path"] else text["splits"], part)
        for text, part in ((own, "test"), (other, "calibration"), (other, "labelling"))
    )
    pairs = ((tested[s], part[s]) for part in used for s in part.keys() & tested.keys())
    if any(own["seed"] != other["seed"] or x[0] < y[1] and y[0] < x[1] for x, y in pairs):
        say(
            f"Warning: {policy} was found with documents that are now in the test part, so its"
            " perplexity may be too low. Leave text.seed and text.splits as in the search."
        )
