"""All stages on a model of a given size with random weights: seconds, peak memory, bytes on disk.

    python benchmarks/scale.py --shape tiny|smollm2_135m|llama2_1b|llama2_7b [HYDRA OVERRIDES]

The checkpoint is written shard by shard. Each stage is a process of its own: a command as a user
types it, or the part of preparing that one artefact needs. Finished stages are remembered in
OUT/SHAPE/scale.json, so that a killed benchmark goes on with the same command; a stage that was
killed counts the time of its last run only. Overrides hold for all stages, such as
model.offload=disk. Peak memory is that of the resident set: pages of mapped
files count while they are mapped. On a GPU it is the host's.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ppf.artefacts import draft, write_json
from ppf.conf import read_option
from ppf.labels.context import PruningContext, prepare
from ppf.llm.shapes import known_shapes
from ppf.llm.sources import byte_tokenizer
from ppf.progress import say
from ppf.pruning.observed import observe
from ppf.report.numbers import duration
from ppf.report.tables import Table, print_table
from ppf.stages.about import version

ROOT, GIB = Path(__file__).parents[1], 2**30
# Little text and few labels, so that a large shape takes hours on a CPU, not days.
FEW = [
    "model.dtype=bfloat16",
    "text.window=128",
    "text.windows={calibration:4,labelling:2,test:2}",
    "labels.count=24",
    "labels.batch=1",
    "agent=evolution",
    "search.rounds=1",
    "search.top_k=2",
]
FINISHED = "scale.json"


def shapes() -> dict[str, dict[str, Any]]:
    """Config keys of each shape by name."""
    return {**known_shapes(), "tiny": dict(read_option("model", "tiny").source.config)}


def write_checkpoint(shape: dict[str, Any], folder: Path) -> None:
    """Writes random bfloat16 weights, one decoder layer after another; skips shards that exist."""
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(**shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    shards: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            layer = name.partition(".layers.")[2].partition(".")[0] or "rest"
            shards.setdefault(f"model-{layer:0>4}.safetensors", {})[name] = tensor
    for number, (file, tensors) in enumerate(shards.items()):
        if (folder / file).exists():
            continue
        generator = torch.Generator().manual_seed(number)
        with draft(folder / file) as path:
            values = {name: _random(tensor, generator) for name, tensor in tensors.items()}
            save_file(values, path, {"format": "pt"})
    weights = {name: file for file, tensors in shards.items() for name in tensors}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weights})
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    """Ones for norms, which have one dimension; small normal values for matrices."""
    if like.dim() < 2:
        return torch.ones(like.shape, dtype=torch.bfloat16)
    return torch.randn(like.shape, generator=generator).mul_(0.02).to(torch.bfloat16)


def composed(overrides: list[str]) -> DictConfig:
    """The config of a search."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("search", [*overrides, "paths.run=outputs"])


def prepared(overrides: list[str]) -> PruningContext:
    """The model with the artefacts that the overrides need."""
    cfg = composed(overrides)
    return prepare(cfg, instantiate(cfg.fabric))


def observed(overrides: list[str]) -> None:
    """Makes what is seen of the dense model."""
    cfg = composed(overrides)
    observe(cfg, instantiate(cfg.fabric))


def time_label(overrides: list[str]) -> None:
    """Times one label of uniform pruning at 30 %, and the computation of its levels within it."""
    context = prepared(overrides)
    context.labelling.labeller.score(
        context.model.space.dense.tolist()
    )  # records the layers' arguments
    start = time.perf_counter()
    context.model.pruner.apply((0.7 * context.model.space.dense).round().long().tolist())
    levels = time.perf_counter() - start
    context.labelling.labeller.score(context.model.pruner.kept)
    seconds = time.perf_counter() - start
    say(json.dumps({"seconds": seconds, "bank_share": levels / seconds}))


# Work of a stage that no command does alone.
WORK: dict[str, Callable[[list[str]], Any]] = {
    "calibration": lambda given: observed([*given, "importance=random"]),
    "order": observed,
    "bank": prepared,
    "sensitivities": lambda given: prepared(given).sites.features,
    "label": time_label,
}


def stages(out: Path, given: list[str]) -> dict[str, list[str]]:
    """The command of each stage after the checkpoint, in order."""
    policy, text = out / "policy" / "policy.json", [x for x in given if x.startswith("text")]
    machine = [x for x in given if x.startswith(("bank.", "fabric", "paths.cache="))]
    runs = [f"paths.outputs={out / 'runs'}", f"paths.artefacts={out / 'artefacts'}", "logger=none"]

    def command(script: str, *overrides: str) -> list[str]:
        return [sys.executable, str(ROOT / script), *overrides, *runs]

    prune = (f"policy={policy}", "dtype=bfloat16", *machine)
    return {
        **{name: command(__file__, "--stage", name, *given) for name in WORK},
        "labels": command("collect.py", *accepted("collect", given)),
        "predictor": command("train.py", *accepted("train", given)),
        "search": command("search.py", *given, f"paths.run={policy.parent}"),
        "prune": command("prune.py", *prune, f"out={out / 'pruned'}"),
        "export": command("prune.py", *prune, "sequential=false", f"out={out / 'pruned'}"),
        "evaluate": command(
            *("evaluate.py", f"path={out / 'pruned'}", "text=wikipedia_sample", *text, *machine)
        ),
    }


def accepted(command: str, given: list[str]) -> list[str]:
    """The overrides whose section a command has."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        known = compose(command)
    sections = [re.split(r"[.=@/]", override.lstrip("~+"))[0] for override in given]
    return [override for override, name in zip(given, sections, strict=True) if name in known]


def run(command: list[str]) -> dict[str, float | str]:
    """Runs a process; its seconds, those of the CPU, its largest resident set, its last line.

    Raises:
        SystemExit: the process failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    last = ""
    with process.stdout as lines:
        for line in lines:
            print(f"    {line}", end="", flush=True)
            last = line
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    seconds = time.perf_counter() - start
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * 1024 / GIB
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_gib": peak, "last": last}


def measure(out: Path, commands: dict[str, list[str]], overrides: list[str]) -> dict[str, Any]:
    """Runs the stages that have not finished yet; what all of them took, by name.

    Raises:
        SystemExit: a stage failed, or the folder has results of another version or other
            overrides.
    """
    file = out / FINISHED
    own = {"version": version(), "shape": out.name, "overrides": [*FEW, *overrides]}
    found = {**own, "stages": {}, "label": None}
    if file.exists():
        found = json.loads(file.read_text())
        if any(found.get(key) != value for key, value in own.items()):
            raise SystemExit(
                f"{out} has results of another version or of other overrides: give another --out"
            )
    for name, command in commands.items():
        if name in found["stages"]:
            continue
        say(f"{name} ...")
        before = _bytes(out)
        taken = run(command)
        if name == "label":
            found["label"] = json.loads(taken["last"])
        del taken["last"]
        found["stages"][name] = {**taken, "disk_gib": (_bytes(out) - before) / GIB}
        write_json(file, found)
    return found


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def report(found: dict[str, Any]) -> None:
    """Prints a table and, last, one line of JSON."""
    names = ("time", "CPU time", "peak memory, GiB", "disk, GiB")
    rows: list[dict[str, Any]] = [
        {"stage": name, **dict(zip(names, taken.values(), strict=True))}
        for name, taken in found["stages"].items()
    ]
    print_table(Table(rows, dict.fromkeys(names[:2], duration)))
    print(json.dumps(found))


def main() -> None:
    """Measures one shape, or does the work of one stage."""
    if sys.argv[1:2] == ["--stage"]:
        name, given = sys.argv[2], sys.argv[3:]
        if name == "checkpoint":
            write_checkpoint(shapes()[given[0]], Path(given[1]))
        else:
            WORK[name](given)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", choices=shapes(), required=True)
    parser.add_argument("--out", type=Path, default=Path("outputs/scale"))
    parser.add_argument("--until", help="stage after which to stop; default: all are run")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of all stages")
    arguments = parser.parse_intermixed_args()
    overrides = arguments.overrides
    out = (arguments.out / arguments.shape).resolve()
    checkpoint = out / "checkpoint"
    write = [sys.executable, __file__, "--stage", "checkpoint", arguments.shape, str(checkpoint)]
    given = [f"model.path={checkpoint}", *FEW]
    commands = {"checkpoint": write, **stages(out, [*given, *overrides])}
    names = list(commands)
    if arguments.until not in (None, *names):
        parser.error(f"--until {arguments.until}: give one of {', '.join(names)}")
    last = names.index(arguments.until) if arguments.until else len(names)
    found = measure(out, {name: commands[name] for name in names[: last + 1]}, overrides)
    report(found)


if __name__ == "__main__":
    main()
