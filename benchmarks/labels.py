"""Labels: policies per minute of the labeller against Hugging Face's model with zeroed weights.

All three score the same policies (profiles at ratio 0.3, compensation none) on the same windows,
in turn, in one run:

    python benchmarks/labels.py [HYDRA OVERRIDES, as for collect.py]
"""

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_module
from lightning import Fabric
from torch import Tensor
from torchmetrics.functional import kendall_rank_corrcoef

from ppf.labels.labeller import Labeller
from ppf.labels.samplers import Profiles
from ppf.llm import LanguageModel, adapter_for
from ppf.pruning.statistics import expand
from ppf.stages.prepare import Prepared, prepare

POLICIES = 6


class Zeroed:
    """Hugging Face's dense model; a policy zeroes the columns that it removes."""

    def __init__(self, ready: Prepared, dense: LanguageModel, dtype: torch.dtype) -> None:
        model = copy.deepcopy(dense.model).to(dtype)
        self.ready, self.model = ready, model
        self.couplings = adapter_for(model).couplings(model)
        self.weights = [c.consumer.weight.clone() for c in self.couplings]
        self.windows = ready.text.tokens("labelling", ready.lm.tokenizer)

    @torch.inference_mode()
    def nll(self, kept: list[int]) -> float:
        orders = self.ready.bank.orders
        for coupling, weight, order, site, units in zip(
            self.couplings, self.weights, orders, self.ready.space.sites, kept, strict=True
        ):
            removed = expand(order[units * site.atoms_per_unit :], coupling.columns)
            coupling.consumer.weight.copy_(weight)
            coupling.consumer.weight[:, removed] = 0
        return float(self.model(self.windows, labels=self.windows, use_cache=False).loss)


def timed(nll: Callable[[list[int]], float], policies: Tensor) -> tuple[list[float], float]:
    """The labels, and policies per minute; the first policy warms up."""
    nll(policies[0].tolist())
    start = time.perf_counter()
    labels = [nll(kept) for kept in policies[1:].tolist()]
    return labels, 60 * len(labels) / (time.perf_counter() - start)


def main() -> None:
    """Prints a table and, last, one line of JSON."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        run = f"paths.run={tempfile.mkdtemp()}"
        cfg = compose("collect", ["compensation=none", "space=width", run, *sys.argv[1:]])
    fabric = Fabric(accelerator="cpu", devices=1)
    ready = prepare(cfg, fabric)
    sampler = Profiles(ratio=[0.3, 0.3], spread=[0.1, 0.3], smooth=0.5)
    generator = torch.Generator().manual_seed(0)
    policies = sampler.draw(ready.space, POLICIES + 1, generator)
    policies = policies[sorted(range(len(policies)), key=lambda i: policies[i].tolist())]

    dense = prepare(cfg, fabric, dtype="float32")
    dense.pruner.restore()
    scorers: dict[str, Callable[[list[int]], float]] = {
        "hf_fp32": Zeroed(ready, dense.lm, torch.float32).nll,
        "hf_bf16": Zeroed(ready, dense.lm, torch.bfloat16).nll,
        "labeller": Labeller(
            ready.lm, ready.pruner, ready.labeller.windows, batch=cfg.labels.batch
        ).nll,
    }
    labels, rates = {}, {}
    for name, nll in scorers.items():
        labels[name], rates[name] = timed(nll, policies)
        print(f"{name:<10} {rates[name]:6.1f} policies per minute")
    agreement = kendall_rank_corrcoef(
        torch.tensor(labels["hf_bf16"]), torch.tensor(labels["labeller"])
    )
    result = {
        "policies_per_minute": rates,
        "speedup_fp32": rates["labeller"] / rates["hf_fp32"],
        "speedup_bf16": rates["labeller"] / rates["hf_bf16"],
        "kendall": float(agreement),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
