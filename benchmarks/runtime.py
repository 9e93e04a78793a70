"""Runtime: speed of one resident model, dense and pruned, against what the removed FLOPs promise.

All ratios take turns in one run, under bias compensation. Policies are uniform, or those of a
search's agent:

    python benchmarks/runtime.py [HYDRA OVERRIDES, as for collect.py]
    python benchmarks/runtime.py search=FOLDER [HYDRA OVERRIDES, as in conf/runtime.yaml]
"""

import gc
import json
import sys
import tempfile
import time
from statistics import median

import torch
from hydra import compose, initialize_config_module
from lightning import Fabric
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ppf.evaluation.latency import decode_seconds, prefill_seconds
from ppf.runtime import DynamicModel, UniformPolicies
from ppf.stages.prepare import prepare

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
REPEATS, BATCH, PROMPT, NEW_TOKENS, SWITCHES = 7, 4, 512, 24, 20


def resident_model(overrides: list[str]) -> DynamicModel:
    """The search's model, or one with uniform policies."""
    folders = [x.removeprefix("search=") for x in overrides if x.startswith("search=")]
    if folders:
        others = [x for x in overrides if not x.startswith("search=")]
        return DynamicModel.from_search(folders[0], "bank.max_gib=0", *others)
    with initialize_config_module("ppf.conf", version_base="1.3"):
        run = f"paths.run={tempfile.mkdtemp()}"
        cfg = compose("collect", ["compensation=bias", "space=width", run, *overrides])
    context = prepare(cfg, Fabric(accelerator="cpu", devices=1))
    policies = UniformPolicies(context.space)
    return DynamicModel(context.pruner, policies, ratios=RATIOS, window=context.text.window)


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


def main() -> None:
    """Prints a table and, last, one line of JSON."""
    model = resident_model(sys.argv[1:])
    dense = sum(p.untyped_storage().nbytes() for p in model.lm.model.parameters())
    extra = tensor_bytes() / dense - 1
    vocabulary = model.lm.model.config.vocab_size
    ids = torch.randint(0, vocabulary, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))

    prefills: dict[float, list[float]] = {ratio: [] for ratio in RATIOS}
    steps: dict[float, list[float]] = {ratio: [] for ratio in RATIOS}
    work: dict[float, int] = {}
    for turn in range(REPEATS + 1):
        for ratio in RATIOS:
            with model.at(ratio):
                work[ratio] = work.get(ratio) or flops(model, ids)
                prefill = prefill_seconds(model.lm.model, ids)
                step = decode_seconds(model.lm.model, ids[:1], NEW_TOKENS)
            if turn:  # the first one warms up
                prefills[ratio].append(prefill)
                steps[ratio].append(step)

    result = {
        "set_ratio_ms": switch_ms(model),
        "extra_memory_share": extra,
        "prefill_speedup": {},
        "decode_speedup": {},
        "tokens_per_second": {},
    }
    for ratio in RATIOS:
        prefill, step = median(prefills[ratio]), median(steps[ratio])
        speedup = median(prefills[0.0]) / prefill
        promised = work[0.0] / work[ratio]
        rates = {"prefill": ids.numel() / prefill, "decode": 1 / step}
        result["tokens_per_second"][str(ratio)] = rates
        print(
            f"{ratio:4.0%}  prefill {rates['prefill']:8.1f} tokens/s × {speedup:.3f}"
            f" (FLOPs promise {promised:.3f})  decode {rates['decode']:6.1f} tokens/s"
        )
        if ratio:
            result["prefill_speedup"][str(ratio)] = {"measured": speedup, "promised": promised}
            result["decode_speedup"][str(ratio)] = median(steps[0.0]) / step
    print(f"set_ratio {result['set_ratio_ms']:.1f} ms, extra memory {extra:.2%}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
