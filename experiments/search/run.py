"""Every agent and rule at every ratio, measured on the test part: rows of results.json.

    python experiments/search/run.py [OVERRIDES] [--agents ppo owl …] [--ratios 0.2 …] [--seeds 0 …]

Rows that are there already are left as they are, so a killed run goes on with the same command.
Seeds are the predictor's and the agent's: all of them learn from the same labels.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from lightning import Fabric, seed_everything
from omegaconf import DictConfig

from ppf.agents import Run
from ppf.agents.rule import Rule
from ppf.errors import PPFError
from ppf.evaluation.perplexity import evenly, mean_nll
from ppf.labels.collect import label
from ppf.labels.table import Labels
from ppf.progress import Stopwatch, say
from ppf.stages.acquire import acquire
from ppf.stages.collect import collect, label_store
from ppf.stages.dynamic import dynamic
from ppf.stages.policy import provenance
from ppf.stages.prepare import PruningContext, prepare
from ppf.stages.search import search
from ppf.stages.search_inputs import SearchInputs
from ppf.stages.train import Trained, needs_labels, train

HERE = Path(__file__).parent
RULES = ["uniform", "owl", "alphapruning", "flap", "block_influence", "obs_global"]
AGENTS = [
    *("ppo", "sac", "ddpg", "td3", "reinforce", "gradient", "evolution", "cmaes", "random"),
    *RULES,
    *("dynamic", "real_evolution"),
]
LABEL_SEED = 0
CONFIGS = {
    "dynamic": [],
    # Evolution on the real model, without a predictor: one parent, eight children.
    "real_evolution": [
        "agent=evolution",
        "predictor=oracle",
        "agent.population=1",
        "agent.children=8",
        "agent.generations=22",
        "search.rounds=1",
    ],
}
"""Overrides of the rows that are not an agent of their own."""


@dataclass(frozen=True)
class Result:
    """A policy that one of the agents found.

    Args:
        predicted: log-perplexity before it was measured, nats per token; None: not predicted.
        seconds: from a trained predictor on, measuring included; without one, those that its
            labels took, whenever they were made.
        real_evaluations: on which the result rests, the labels of the predictor included.
    """

    kept: list[int]
    predicted: float | None
    labelling: float
    seconds: float
    real_evaluations: int


def configured(agent: str, ratio: float, seed: int, overrides: list[str]) -> DictConfig:
    """The search's config."""
    chosen = CONFIGS.get(agent, [f"agent={agent}"])
    run = [f"ratio={ratio}", f"seed={seed}", "logger=none", "paths.run=."]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("search", [*chosen, *run, *overrides])


def searched(cfg: DictConfig, context: PruningContext, labels: Labels, fabric: Fabric) -> Result:
    """A static search's policy: an agent's, or the one of a rule."""
    fit = training(cfg, context)
    trained = fit(labels)
    inputs = SearchInputs.of(cfg, fabric, context, fit)
    start = time.perf_counter()
    if isinstance(inputs.agent, Rule):
        return _ruled(inputs, trained, cfg.ratio, start)
    found = search(inputs, labels, trained, cfg.ratio, Stopwatch())
    best = found.measured.best
    return Result(
        found.kept,
        float(found.measured.mean[best]),
        float(found.measured.measured[best]),
        time.perf_counter() - start,
        _evaluations(cfg, labels) + len(found.measured.names),
    )


def _evaluations(cfg: DictConfig, labels: Labels) -> int:
    """Policies that were measured before the best ones: labels, or all that an oracle measured."""
    if needs_labels(cfg.predictor):
        return len(labels)
    return cfg.agent.generations * cfg.agent.children


def training(cfg: DictConfig, context: PruningContext) -> partial:
    """Fits the config's predictor to labels."""
    return partial(train, context, cfg.predictor, cfg.trainer, cfg.seed, ())


def _ruled(inputs: SearchInputs, trained: Trained, ratio: float, start: float) -> Result:
    objective = inputs.objective(trained, inputs.settings.trust_region, ratio, ratio)
    found = inputs.agent.search(
        objective, Run(inputs.fabric, lambda step, metrics: None, inputs.seed)
    )
    mean = float(objective.predictor.predict(found.kept).mean[0])
    nll = float(inputs.measure(found.kept)[0])
    return Result(found.kept[0].tolist(), mean, nll, time.perf_counter() - start, 1)


def measured(context: PruningContext, kept: torch.Tensor) -> torch.Tensor:
    """Log-perplexity on the labelling part, nats per token."""
    return label(label_store(context), context.labeller, kept.cpu(), "experiment").nll


def learnt(
    cfg: DictConfig, context: PruningContext, labels: Labels, ratios: list[float], fabric: Fabric
) -> Iterator[tuple[float, Result]]:
    """One dynamic agent's policies at all ratios; the seconds are those of one answer."""
    before = len(label_store(context))
    fit = training(cfg, context)
    inputs, known = SearchInputs.of(cfg, fabric, context, fit), provenance(context)
    agent = dynamic(inputs, labels, fit(labels), cfg.dynamic, cfg.ratios, known, Stopwatch()).agent
    evaluations = len(labels) + len(label_store(context)) - before
    for ratio in ratios:
        agent.policy(ratio)
        start = time.perf_counter()
        kept = agent.policy(ratio)
        seconds = time.perf_counter() - start
        nll = float(measured(context, torch.tensor([kept]))[0])
        yield ratio, Result(kept, agent.predicted(ratio)[0], nll, seconds, evaluations)


def tested(context: PruningContext, kept: list[int], count: int) -> float:
    """Log-perplexity on `count` windows of the test part, evenly spread, nats per token."""
    windows = context.text.tokens("test", context.lm.tokenizer)
    with context.pruner.at(kept) as model:
        return mean_nll(model, evenly(windows, count), batch=context.config.labels.batch)


class Table:
    """results.json, written anew after every row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []

    def __contains__(self, key: tuple[str, float, int]) -> bool:
        return any((row["agent"], row["ratio"], row["seed"]) == key for row in self.rows)

    def add(self, agent: str, ratio: float, seed: int, found: Result, test: float) -> None:
        def perplexity(nll: float | None) -> float | None:
            return None if nll is None else float(torch.tensor(nll, dtype=torch.double).exp())

        row = {
            "agent": agent,
            "ratio": ratio,
            "seed": seed,
            "predicted_ppl": perplexity(found.predicted),
            "labelling_ppl": perplexity(found.labelling),
            "test_ppl": perplexity(test),
            "seconds": found.seconds,
            "real_evaluations": found.real_evaluations,
            "kept": found.kept,
        }
        self.rows.append(row)
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)
        say(f"{agent} at {ratio}, seed {seed}: test perplexity {row['test_ppl']:.2f}")


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line an agent and ratio: means over seeds, and the spread of the test perplexity."""
    names = ("predicted_ppl", "labelling_ppl", "test_ppl", "seconds", "real_evaluations")
    heads = ("ratio", "agent", "seeds", "predicted", "labelling", "test", "±", "s", "evaluations")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["ratio"], row["test_ppl"])):
        groups.setdefault((row["ratio"], row["agent"]), []).append(row)
    for (ratio, agent), same in groups.items():
        columns = [[row[name] for row in same if row[name] is not None] for name in names]
        means = [sum(column) / len(column) if column else None for column in columns]
        predicted, labelling, test = ("" if m is None else f"{m:.2f}" for m in means[:3])
        spread = (max(columns[2]) - min(columns[2])) / 2
        numbers = [
            predicted,
            labelling,
            test,
            f"{spread:.2f}",
            f"{means[3]:.2g}",
            f"{means[4]:.0f}",
        ]
        lines.append(f"| {ratio:.0%} | {agent} | {len(same)} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def run(known: argparse.Namespace, rest: list[str]) -> None:
    """Fills the table; the model is loaded once."""
    table, context = Table(known.out), None
    fabric = Fabric(accelerator="cpu", devices=1)
    for seed, agent in product(known.seeds, known.agents):
        missing = [ratio for ratio in known.ratios if (agent, ratio, seed) not in table]
        for ratio in missing:
            if (agent, ratio, seed) in table:  # a dynamic agent answers for all ratios at once
                continue
            cfg = configured(agent, ratio, seed, rest)
            seed_everything(seed, verbose=False)
            context = prepare(cfg, fabric) if context is None else context
            shared = configured(agent, ratio, LABEL_SEED, rest)
            labels = collect(context, shared.sampler, shared.labels.count, LABEL_SEED)
            fit = training(shared, context)
            labels = acquire(context, labels, fit, shared.labels, shared.sampler, LABEL_SEED)
            if agent == "dynamic":
                results = list(learnt(cfg, context, labels, missing, fabric))
            else:
                results = [(ratio, searched(cfg, context, labels, fabric))]
            for place, found in results:
                table.add(agent, place, seed, found, tested(context, found.kept, known.windows))
    print(markdown(table.rows))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="+", default=AGENTS, choices=AGENTS)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=128, help="of the test part, evenly spread")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    known, rest = parser.parse_known_args()
    try:
        run(known, rest)
    except PPFError as error:
        raise SystemExit(f"Error: {error}") from error


if __name__ == "__main__":
    main()
