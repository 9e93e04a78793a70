"""Runtime: speed of one resident model, dense and pruned, against the theoretical speed-up.

In theory, the time of a prefill is proportional to its FLOPs, that of a decoding step to the bytes
of weights that it reads.
All ratios take turns in one run. Policies are uniform with bias compensation, or those of a
search's agent with its compensation:

    python benchmarks/runtime.py [HYDRA OVERRIDES, as for collect.py]
    python benchmarks/runtime.py search=FOLDER [HYDRA OVERRIDES, as in conf/runtime.yaml]
    OMP_NUM_THREADS=1 python benchmarks/runtime.py    # on one core

With llama_cpp=FOLDER, llama.cpp decodes the same models too, exported as GGUF. It is installed in
FOLDER if it is missing.
"""

import gc
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_module
from jaxtyping import Int
from lightning import Fabric
from llama_cpp import LlamaCpp
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ppf.evaluation.latency import prefill_seconds
from ppf.export import Pruned
from ppf.export.gguf import GGUF
from ppf.labels.context import prepare
from ppf.runtime import DecodingBatch, DynamicModel
from ppf.space import Space, uniform

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
REPEATS, BATCH, PROMPT, NEW_TOKENS, SWITCHES = 7, 4, 512, 24, 20
GGUF_TYPES, GGUF_RATIOS = ("f16", "q8_0"), (0.0, 0.3, 0.5)


@dataclass(frozen=True)
class Uniform:
    """Uniform pruning: the same share of every site. It needs no search."""

    space: Space

    def policy(self, ratio: float) -> list[int]:
        return uniform(self.space, torch.tensor([ratio], dtype=torch.double))[0].tolist()

    def predicted(self, ratio: float) -> None:
        return None


def resident_model(overrides: list[str]) -> DynamicModel:
    """The search's model, or one with uniform policies."""
    folders = [x.removeprefix("search=") for x in overrides if x.startswith("search=")]
    if folders:
        others = [x for x in overrides if not x.startswith("search=")]
        model = DynamicModel.from_search(folders[0], *others)
        if model.ratios[-1] < RATIOS[-1]:
            raise SystemExit(f"give a search for ratios up to {RATIOS[-1]}")
        return model
    with initialize_config_module("ppf.conf", version_base="1.3"):
        run = f"paths.run={tempfile.mkdtemp()}"
        cfg = compose("collect", ["compensation=bias", "space=width", run, *overrides])
    context = prepare(cfg, Fabric(accelerator="cpu", devices=1))
    policies = Uniform(context.model.space)
    return DynamicModel(context.model.pruner, policies, ratios=RATIOS)


def tensor_bytes() -> int:
    """Memory of all tensors that Python can reach, each storage once."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


@torch.inference_mode()
def flops(model: DynamicModel, ids: Tensor) -> int:
    """Of one prefill."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.lm.model(ids, use_cache=True, logits_to_keep=1)
    return counter.get_total_flops()


def switch_ms(model: DynamicModel) -> float:
    """Median over changes to far-off ratios, the policy's computation included."""
    times = []
    for i in range(SWITCHES):
        start = time.perf_counter()
        model.set_ratio(RATIOS[1:][3 * i % 5])
        times.append(1000 * (time.perf_counter() - start))
    model.set_ratio(0.0)
    return median(times)


def read_bytes(model: DynamicModel) -> int:
    """Bytes of the weights that one decoding step reads."""
    lm = model.lm.model
    embedding = lm.get_input_embeddings().weight
    weights = {id(p): p for p in lm.parameters()}
    if lm.get_output_embeddings().weight is not embedding:
        del weights[id(embedding)]  # a step reads one of its rows
    return sum(weight.nbytes for weight in weights.values())


def step_seconds(model: DynamicModel, ids: Int[Tensor, " prompt"]) -> float:
    """Median seconds of one decoding step with one sequence, as the server decodes."""
    batch, times = DecodingBatch(model.lm.model), []
    token = int(batch.join(ids, 1).argmax())
    for _ in range(NEW_TOKENS):
        start = time.perf_counter()
        token = int(batch.step([token])[0].argmax())
        times.append(time.perf_counter() - start)
    return median(times)


def llama_cpp_rates(model: DynamicModel, cache: Path) -> dict[str, dict[str, float]]:
    """Tokens a second that llama.cpp decodes, by type of the GGUF file and by ratio.

    Args:
        cache: folder that llama.cpp is installed in.
    """
    run, rates = LlamaCpp(cache), dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        for kind in GGUF_TYPES:
            wanted: list[dict[str, Any]] = []
            for ratio in GGUF_RATIOS:
                with model.at(ratio):
                    name = f"{kind}-{ratio}"
                    policy = {"model": name, "ratio": {"achieved": ratio}}
                    file = GGUF(kind, 0).write(Pruned.of(model.pruner), Path(folder) / name, policy)
                wanted.append({"file": str(file), "prompt": "The " * 512, "steps": 4 * NEW_TOKENS})
            _, *found = run([wanted[0], *wanted])  # the first one warms up
            answers = zip(GGUF_RATIOS, found, strict=True)
            rates[kind] = {str(ratio): 1 / answer["seconds"] for ratio, answer in answers}
    return rates


def main() -> None:
    """Prints a table and, last, one line of JSON."""
    installed = [x for x in sys.argv[1:] if x.startswith("llama_cpp=")]
    model = resident_model([x for x in sys.argv[1:] if x not in installed])
    dense = sum(p.untyped_storage().nbytes() for p in model.lm.model.parameters())
    extra = tensor_bytes() / dense - 1
    vocabulary = model.lm.model.config.vocab_size
    ids = torch.randint(0, vocabulary, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))

    prefills: dict[float, list[float]] = {ratio: [] for ratio in RATIOS}
    steps: dict[float, list[float]] = {ratio: [] for ratio in RATIOS}
    work: dict[float, int] = {}
    read: dict[float, int] = {}
    for turn in range(REPEATS + 1):
        for ratio in RATIOS:
            with model.at(ratio):
                work[ratio] = work.get(ratio) or flops(model, ids)
                read[ratio] = read_bytes(model)
                prefill = prefill_seconds(model.lm.model, ids)
                step = step_seconds(model, ids[0])
            if turn:  # the first one warms up
                prefills[ratio].append(prefill)
                steps[ratio].append(step)

    result = {
        "threads": torch.get_num_threads(),
        "dtype": str(model.lm.dtype).removeprefix("torch."),
        "set_ratio_ms": switch_ms(model),
        "extra_memory_share": extra,
        "prefill_speedup": speedups(prefills, work),
        "decode_speedup": speedups(steps, read),
        "tokens_per_second": {},
    }
    for ratio in RATIOS:
        rates = {
            "prefill": ids.numel() / median(prefills[ratio]),
            "decode": 1 / median(steps[ratio]),
        }
        result["tokens_per_second"][str(ratio)] = rates
        told = [f"{ratio:4.0%}"]
        for kind, unit in (("prefill", "FLOPs"), ("decode", "bytes")):
            found = result[f"{kind}_speedup"].get(str(ratio), {"measured": 1, "promised": 1})
            told.append(
                f"{kind} {rates[kind]:8.1f} tokens/s × {found['measured']:.3f}"
                f" ({found['promised']:.3f} by {unit})"
            )
        print("  ".join(told))
    print(f"set_ratio {result['set_ratio_ms']:.1f} ms, extra memory {extra:.2%}")
    if installed:
        cache = Path(installed[0].removeprefix("llama_cpp="))
        result["llama_cpp"] = llama_cpp_rates(model, cache)
        print("llama.cpp, decode tokens/s:", result["llama_cpp"])
    print(json.dumps(result))


def speedups(
    seconds: dict[float, list[float]], costs: dict[float, int]
) -> dict[str, dict[str, float]]:
    """Measured and theoretical ("promised") speed-up of each pruning ratio over the dense model."""
    return {
        str(ratio): {
            "measured": median(seconds[0.0]) / median(times),
            "promised": costs[0.0] / costs[ratio],
        }
        for ratio, times in seconds.items()
        if ratio
    }


if __name__ == "__main__":
    main()
