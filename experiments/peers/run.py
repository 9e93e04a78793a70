"""Runs other people's pruning methods, their own code, on this project's model and text.

    python experiments/peers/run.py outputs/peers [NAME or NAME=FOLDER, by default all]

The code of NAME is cloned from GitHub, or copied from a local clone in FOLDER. A patched copy and
an environment with the code's own packages, which shares PPF's PyTorch, are made in build/peers. A
killed run resumes. The results are written to outputs/peers/results.json.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree, ignore_patterns
from sysconfig import get_path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

import ppf
from ppf.artefacts import get_or_make, write_json
from ppf.conf import read_option
from ppf.llm.sources import checkpoint_of
from ppf.stages.about import version
from ppf.text.parts import build_text

RATIOS = (0.3, 0.5)
CACHE = os.environ.get("PPF_CACHE", str(Path.home() / ".cache/ppf"))


@dataclass(frozen=True)
class Peer:
    """Someone else's method.

    Args:
        repository: on GitHub.
        packages: what its code needs beside PPF's packages.
        changes: regular expressions and their replacements, by the code's file.
    """

    repository: str
    commit: str
    packages: tuple[str, ...]
    changes: dict[str, dict[str, str]] = field(default_factory=dict)


PEERS = {
    "flap": Peer(
        "CASIA-IVA-Lab/FLAP",
        "3bb57db3449dd2fa04a5c2192de80e87e33be2b1",
        ("transformers==4.28.0",),
        {
            # The size of a head, three of which are a KV group; samples; no half precision.
            "lib/prune.py": {r"\b128\b": "192", r"\b2048\b": "1024", "torch.half": "torch.float32"},
            "models/hf_llama/modeling_llama.py": {"head_dim = 128": "head_dim = 64"},
        },
    ),
    "grasprune": Peer(
        "ZiY-Wang/GRASPrune", "666f4f04ec9e5e3218904df4d0935841bbd570fc", ("transformers==4.51.0",)
    ),
}


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """A file or folder, which is made if it is missing."""
    return get_or_make(path, read=lambda found: found, make=make)


def fetch_code(peer: Peer, source: str | None, folder: Path) -> None:
    """Writes the patched code into a new folder."""
    if source:
        copytree(source, folder, ignore=ignore_patterns(".git"), dirs_exist_ok=True)
    else:
        git = ["git", "-C", str(folder)]
        subprocess.run(
            ["git", "clone", f"https://github.com/{peer.repository}", folder], check=True
        )
        subprocess.run([*git, "checkout", "-q", peer.commit], check=True)
    for name, changes in peer.changes.items():
        code = (folder / name).read_text(encoding="utf-8")
        for pattern, replacement in changes.items():
            code, count = re.subn(pattern, replacement, code)
            if not count:
                raise SystemExit(f"{folder / name} has no {pattern}: give another clone.")
        (folder / name).write_text(code, encoding="utf-8")


def make_environment(peer: Peer, folder: Path) -> None:
    """Makes an environment whose packages precede those of this one."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ppf.pth").write_text(get_path("purelib"))
    subprocess.run(
        [folder / "bin/python", "-m", "pip", "install", "-q", *peer.packages], check=True
    )


def run_peer(name: str, source: str | None, out: Path) -> None:
    """Runs a method in its environment at both ratios.

    It writes the weights that have changed, with the tokens that it read, and its CPU time.
    """
    build, peer = Path("build/peers").absolute(), PEERS[name]
    code = made(build / name, lambda folder: fetch_code(peer, source, folder))
    environment = made(build / f"{name}-env", lambda folder: make_environment(peer, folder))
    model = made(out / "dense", write_dense)
    text = made(out / "text.safetensors", write_text)
    given = [Path(__file__).with_name(f"{name}.py"), code, model, text, out / name, *RATIOS]
    subprocess.run([environment / "bin/python", *map(str, given)], check=True)


def model_config() -> Any:
    """The config of the model."""
    return read_option("model", "smollm2_135m")


def write_dense(folder: Path) -> None:
    """Writes the model with a config and names that earlier versions of transformers can read."""
    dense = Path(checkpoint_of(model_config(), CACHE))
    config = json.loads((dense / "config.json").read_text(encoding="utf-8"))
    copytree(dense, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights.pop("lm_head.weight")  # the two are tied
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_json(
        folder / "config.json", config | {"rope_theta": config["rope_parameters"]["rope_theta"]}
    )


def write_text(file: Path) -> None:
    """Writes the tokens of the parts that a search may read too."""
    text = build_text(read_option("text", "wikipedia_sample"), CACHE)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(model_config(), CACHE))
    save_file({part: text.stream(part, tokenizer) for part in ("calibration", "labelling")}, file)


def kept_units(
    weights: dict[str, Tensor], config: Any
) -> Iterator[tuple[Bool[Tensor, " heads"], int]]:
    """For each layer, which query heads are kept, and how many channels.

    A unit is removed if its columns of the output projection are zero.
    """
    for number in range(config.num_hidden_layers):
        name = f"model.layers.{number}"
        columns = weights[f"{name}.self_attn.o_proj.weight"].any(0)
        heads = columns.view(-1, config.head_dim).any(1)
        yield heads, int(weights[f"{name}.mlp.down_proj.weight"].any(0).sum())


def removed_share(weights: dict[str, Tensor], config: Any) -> float:
    """The removed share of the parameters in attention and FFN blocks, without new biases."""
    total = kept = 0
    for heads, channels in kept_units(weights, config):
        groups = heads.view(config.num_key_value_heads, -1).any(1)
        kept += 2 * int(heads.sum() + groups.sum()) * config.head_dim + 3 * channels
        total += 2 * (len(heads) + len(groups)) * config.head_dim + 3 * config.intermediate_size
    return 1 - kept / total


def widths(weights: dict[str, Tensor], config: Any, units: dict[str, int]) -> dict[str, int]:
    """Whole KV groups and units of channels that a method keeps of each site.

    Channels that make no whole unit count for the next layer.

    Args:
        units: of each site.
    """
    kept, rest = {}, 0.0
    for number, (heads, channels) in enumerate(kept_units(weights, config)):
        groups = heads.view(config.num_key_value_heads, -1)
        if not torch.equal(groups.any(1), groups.all(1)):
            raise SystemExit(f"layer {number} keeps a part of a KV group, which no policy can say.")
        kept[f"{number}.attention"] = int(groups.all(1).sum())
        wanted = channels * units[f"{number}.mlp"] / config.intermediate_size + rest
        kept[f"{number}.mlp"] = round(wanted)
        rest = wanted - round(wanted)
    return kept


def write_model(weights: dict[str, Tensor], dense: Path, folder: Path) -> None:
    """Writes a model of the original size, in which removed units have no effect."""
    config = AutoConfig.from_pretrained(dense)
    config.attention_bias = config.mlp_bias = True
    every = load_file(dense / "model.safetensors") | weights
    for name, weight in list(every.items()):
        if "_proj" in name and name.endswith("weight"):
            every.setdefault(name.replace("weight", "bias"), torch.zeros(len(weight)))
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(dense).save_pretrained(folder)
    every = {name: weight.float().contiguous() for name, weight in every.items()}
    save_file(every, folder / "model.safetensors", {"format": "pt"})


def measured(policy: Path | None = None, **given: Any) -> dict[str, float]:
    """Perplexity on the test part, and the removed share of a policy."""
    (row,) = ppf.evaluate(policy, **given)["results"]
    return {"test_ppl": row["perplexity"], "share": row["ratio"]}


def rows(name: str, source: str | None, ratio: float, out: Path) -> Iterator[dict[str, Any]]:
    """The rows of a method: its own model, and its widths with PPF's order and compensation."""
    space = {"query_heads": False}
    given = {"agent": "uniform", "predictor": "sensitivity", "space": space, "sequential": False}
    uniform = out / f"uniform-{ratio}"
    if not (uniform / "policy.json").exists():
        ppf.search("smollm2_135m", ratio, **given, **{"paths.run": uniform})
    file = out / f"{name}-{ratio}.safetensors"
    if name == "uniform":
        weights, policy, origin = {}, uniform / "policy.json", {"tokens": 0}
    else:
        if not file.exists():
            run_peer(name, source, out)
        weights, policy = load_file(file), out / f"{name}-{ratio}.policy.json"
        with safe_open(file, "pt") as opened:
            origin = {key: int(opened.metadata()[key]) for key in ("tokens", "seconds")}
        folder, dense = out / f"{name}-{ratio}", out / "dense"
        config = AutoConfig.from_pretrained(dense)
        write_model(weights, dense, folder)
        own = measured(path=folder) | {"share": removed_share(weights, config)}
        yield {"method": name, "ratio": ratio, "weights": "its own", **own, **origin}
        record = json.loads((uniform / "policy.json").read_text())
        write_json(policy, record | {"kept": widths(weights, config, record["units"])})
    ours = measured(policy, sequential=False, baselines=False)
    yield {"method": name, "ratio": ratio, "weights": "order and least squares", **ours, **origin}


def main(out: Path, wanted: list[str]) -> None:
    """Runs methods at both ratios, and writes the results."""
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name, _, source in (each.partition("=") for each in wanted):
        for ratio in RATIOS:
            new = [row | {"seed": 0} for row in rows(name, source or None, ratio, out)]
            print(*new, sep="\n")
            found += new
    axes, figures = ["method", "weights", "ratio"], ["test_ppl", "share", "tokens", "seconds"]
    head = {"versions": [version()], "axes": axes, "figures": figures}
    write_json(out / "results.json", head | {"rows": found})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["uniform", *PEERS])
