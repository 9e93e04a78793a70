"""Labels: their speed, and how much text one needs.

    python benchmarks/labels.py [HYDRA OVERRIDES, as for collect.py]

compares policies a minute of the labeller and of Hugging Face's dense model, in which a policy is
applied by zeroing weights, in float32 and in bfloat16. Policies have a mean ratio of 0.3 and no
compensation. The labeller runs twice: on policies of `sampler=rough`, sorted as
`collect` sorts them, and on policies that share no layers.

    python benchmarks/labels.py --text-size

compares the ranking of policies of one ratio band by labels on few tokens with that on the whole
labelling part.

    python benchmarks/labels.py --processes 2

compares one process with several that divide the labels; each has one core and one thread.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig
from torch import Tensor
from torchmetrics.functional import kendall_rank_corrcoef

from ppf.labels.context import PruningContext, prepare
from ppf.labels.labeller import Labeller
from ppf.labels.samplers import Profiles
from ppf.llm import LanguageModel, adapter_for, fast_attention, output_head, window_nll
from ppf.progress import track
from ppf.pruning.bank import widths
from ppf.space import uniform
from ppf.stages.collect import collect

RATIO, GROUPED, UNRELATED = 0.3, 24, 6
BAND, BAND_POLICIES, TOKENS = (0.25, 0.35), 24, (512, 1024, 2048, 4096, 8192, 16384)


class Zeroed:
    """Hugging Face's dense model; a policy zeroes the columns that it removes."""

    def __init__(self, context: PruningContext, dense: LanguageModel, dtype: torch.dtype) -> None:
        model = copy.deepcopy(dense.model).to(dtype)
        self.context, self.model = context, model
        self.couplings = adapter_for(model.config).couplings(model)
        self.weights = [c.consumer.weight.clone() for c in self.couplings]
        self.windows = context.labelling.labeller.windows

    @torch.inference_mode()
    def nll(self, kept: list[int]) -> float:
        orders = self.context.model.pruner.bank.orders
        for coupling, weight, order, site, units in zip(
            self.couplings, self.weights, orders, self.context.model.space.sites, kept, strict=True
        ):
            removed = order.columns(coupling.columns)[widths(site, coupling)[units] :]
            coupling.consumer.weight.copy_(weight)
            coupling.consumer.weight[:, removed] = 0
        return float(self.model(self.windows, labels=self.windows, use_cache=False).loss)


class Clocked(Labeller):
    """A labeller that keeps the time of its parts: set-up, body and head."""

    seconds: dict[str, float]

    def start(self) -> None:
        self.seconds = dict.fromkeys(("set-up", "body", "head"), 0.0)

    def _forward(self, *arguments):  # type: ignore[no-untyped-def]
        return self._clock("body", super()._forward, *arguments)

    def _clock(self, part: str, call: Callable, *arguments):  # type: ignore[no-untyped-def]
        begin = time.perf_counter()
        answer = call(*arguments)
        self.seconds[part] += time.perf_counter() - begin
        return answer

    def nll(self, kept: list[int]) -> float:
        body = self.seconds["body"]
        self._clock("set-up", self.pruner.apply, kept)
        answer = self._clock("head", self.score, kept)
        self.seconds["head"] -= self.seconds["body"] - body
        return answer


def timed(nll: Callable[[list[int]], float], policies: Tensor) -> tuple[list[float], float]:
    """The labels, and policies per minute."""
    begin = time.perf_counter()
    labels = [nll(kept) for kept in policies.tolist()]
    return labels, 60 * len(labels) / (time.perf_counter() - begin)


def in_order(policies: Tensor) -> Tensor:
    """Sorted as `collect` labels them: those that share their first layers lie together."""
    return torch.tensor(sorted(policies.tolist()))


def speed(cfg: DictConfig, context: PruningContext, fabric: Fabric) -> dict[str, object]:
    """The comparison; prints a table."""
    generator = torch.Generator().manual_seed(cfg.seed)
    profiles = Profiles(ratio=[RATIO, RATIO], spread=[0.1, 0.3], smooth=0.5)
    grouped = in_order(instantiate(cfg.sampler).draw(context.sites, GROUPED, generator))
    unrelated = in_order(profiles.draw(context.sites, UNRELATED, generator))
    dense = prepare(cfg, fabric, dtype="float32")
    dense.model.pruner.restore()
    labeller = Clocked(
        context.model.lm,
        context.model.pruner,
        context.labelling.labeller.windows,
        batch=cfg.labels.batch,
    )
    ratio = float(context.model.space.ratio(grouped).mean())
    print(f"labeller in {context.model.lm.dtype}; groups at mean ratio {ratio:.2f}")

    labels, rates = {}, {}
    for name, dtype in (("hf_fp32", torch.float32), ("hf_bf16", torch.bfloat16)):
        zeroed = Zeroed(context, dense.model.lm, dtype)
        zeroed.nll(unrelated[0].tolist())
        labels[name], rates[name] = timed(zeroed.nll, unrelated)
    labeller.start()
    labeller.nll(context.model.space.dense.tolist())
    labeller.start()
    labels["unrelated"], rates["labeller_unrelated"] = timed(labeller.nll, unrelated)
    shares = {part: s / sum(labeller.seconds.values()) for part, s in labeller.seconds.items()}
    _, rates["labeller"] = timed(labeller.nll, grouped)
    for name, rate in rates.items():
        print(f"{name:<20} {rate:6.1f} policies per minute")
    print("share of time (unrelated): " + ", ".join(f"{p} {s:.1%}" for p, s in shares.items()))

    by_ratio = {}
    for asked in (0.1, 0.2, 0.3, 0.4, 0.5):
        kept = uniform(context.model.space, torch.tensor([asked]))
        _, by_ratio[f"{asked}"] = timed(labeller.nll, kept)
        print(f"at ratio {asked}        {by_ratio[f'{asked}']:6.1f} policies per minute")
    agreement = kendall_rank_corrcoef(
        torch.tensor(labels["hf_bf16"]), torch.tensor(labels["unrelated"])
    )
    return {
        "policies_per_minute": rates,
        "speedup_fp32": rates["labeller"] / rates["hf_fp32"],
        "speedup_bf16": rates["labeller"] / rates["hf_bf16"],
        "kendall": float(agreement),
        "mean_ratio": ratio,
        "share_of_time": shares,
        "by_ratio": by_ratio,
        "dtype": str(context.model.lm.dtype),
    }


def text_size(cfg: DictConfig, context: PruningContext) -> dict[str, object]:
    """Kendall between labels on few tokens and on the whole labelling part; prints a table."""
    windows = context.labelling.windows
    profiles = Profiles(ratio=list(BAND), spread=[0.03, 0.25], smooth=0.5)
    policies = profiles.draw(context.sites, BAND_POLICIES, torch.Generator().manual_seed(cfg.seed))
    losses = torch.stack(
        [window_losses(context, k, windows) for k in track(in_order(policies), "Scoring policies")]
    )
    whole, kendall = losses.mean(1), {}
    print(f"{len(policies)} policies at ratios {BAND}; the whole part has {windows.numel()} tokens")
    for tokens in TOKENS:
        count = tokens // windows.shape[1]
        if 1 <= count <= len(windows):
            some = torch.linspace(0, len(windows) - 1, count).round().long()
            kendall[f"{tokens}"] = float(kendall_rank_corrcoef(losses[:, some].mean(1), whole))
            print(f"{tokens:6} tokens: Kendall {kendall[f'{tokens}']:.3f}")
    return {"kendall_by_tokens": kendall, "whole": windows.numel(), "band": BAND}


@torch.inference_mode()
def window_losses(context: PruningContext, kept: Tensor, windows: Tensor) -> Tensor:
    """Negative log-likelihood of every window's tokens that a label scores."""
    head = output_head(context.model.lm.model)
    with context.model.pruner.at(kept.tolist()) as model, fast_attention(model):
        batches = windows.split(8)
        states = [model.get_decoder()(ids, use_cache=False).last_hidden_state for ids in batches]
        pairs = zip(torch.cat(states).split(1), windows.split(1), strict=True)
        return torch.stack([window_nll(head, h, ids).sum() for h, ids in pairs])


def together(cfg: DictConfig, overrides: list[str], most: int) -> dict[str, object]:
    """Labels a minute of one process and of several; prints them. What they share is made before.

    Args:
        cfg: with the number of labels.
        overrides: of `cfg`.
        most: number of processes.
    """
    artefacts, rates, labels = Path(cfg.paths.artefacts).resolve(), {}, {}
    for count in (1, most):
        with tempfile.TemporaryDirectory() as folder:
            for kind in artefacts.iterdir():
                if kind.name != "labels":
                    (Path(folder) / kind.name).symlink_to(kind)
            launch = f"-m torch.distributed.run --standalone --nproc_per_node={count}".split()
            own = [f"paths.artefacts={folder}", f"fabric.devices={count}", "fabric=cpu"]
            command = [sys.executable, *launch, __file__, "--rank", *overrides, *own]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rates[f"{count}"] = 60 * len(found["nll"]) / found["seconds"]
        labels[count] = found["nll"]
        print(f"{count} processes  {rates[f'{count}']:6.1f} policies per minute")
    return {
        "policies_per_minute": rates,
        "ratio": rates[f"{most}"] / rates["1"],
        "equal": labels[1] == labels[most],
    }


def rank(cfg: DictConfig) -> None:
    """The work of one of several processes; rank 0 prints seconds and labels."""
    core = sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    fabric = instantiate(cfg.fabric)
    fabric.launch()
    context = prepare(cfg, fabric)
    context.labelling.labeller.score(context.model.space.dense.tolist())
    fabric.barrier()
    begin = time.perf_counter()
    labels = collect(cfg, context)
    fabric.barrier()
    seconds = time.perf_counter() - begin
    if fabric.is_global_zero:
        print(json.dumps({"seconds": seconds, "nll": labels.nll.tolist()}), flush=True)


def main() -> None:
    """Prints tables and, last, one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--text-size", action="store_true", help="how many tokens a label needs")
    parser.add_argument("--processes", type=int, help="processes that share a draw, one core each")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if (arguments.processes or 1) > len(os.sched_getaffinity(0)):
        parser.error("--processes needs a core for each process")
    mode = ["text.windows.labelling=null"] if arguments.text_size else ["compensation=none"]
    run = f"paths.run={tempfile.mkdtemp()}"
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("collect", [*mode, "sampler=rough", run, *overrides])
    if arguments.rank:
        rank(cfg)
        return
    fabric = Fabric(accelerator="cpu", devices=1)
    context = prepare(cfg, fabric)
    if arguments.processes:
        print(json.dumps(together(cfg, overrides, arguments.processes)))
        return
    print(
        json.dumps(text_size(cfg, context) if arguments.text_size else speed(cfg, context, fabric))
    )


if __name__ == "__main__":
    main()
