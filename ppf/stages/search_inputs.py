"""The inputs of a search, made from the config in one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from jaxtyping import Int
from lightning import Fabric
from omegaconf import DictConfig
from torch import Tensor

from ppf.agents import Agent, Objective, Report, Run
from ppf.agents.checkpoint import Checkpoint
from ppf.artefacts import signature
from ppf.conf import plain
from ppf.digests import with_code
from ppf.labels.labelling import Labelling
from ppf.labels.table import PROPOSED
from ppf.pruning import Allocation, SiteFeatures
from ppf.search import TrustRegion
from ppf.search.verify import Measure
from ppf.space import Space
from ppf.stages.fit import Train, Trained


@dataclass(frozen=True)
class SearchInputs:
    """The inputs of a search, except the labels that it starts from.

    Args:
        agent: searches on the predictor.
        space: of the policies, with the prices of the search's budget.
        features: of the sites.
        rules: allocation rules by name; none if the agent's role is without them.
        settings: section `search` of the config.
        train: fits a predictor to all labels of a round.
        measure: log-perplexity of policies on the real model, nats per token.
        fabric: the processes that share the search.
        seed: of the first round.
        checkpoints: folder of the agent's training.
        config: everything that determines that training, except predictor and seed.
        learnt: networks of the last round's agent; None: agents start anew in every round.
    """

    agent: Agent
    space: Space
    features: SiteFeatures
    rules: Mapping[str, Allocation]
    settings: DictConfig
    train: Train
    measure: Measure
    fabric: Fabric
    seed: int
    checkpoints: Path
    config: list[Any]
    learnt: dict[str, dict[str, Any]] | None = None

    @classmethod
    def of(
        cls,
        cfg: DictConfig,
        fabric: Fabric,
        space: Space,
        features: SiteFeatures,
        labelling: Labelling,
        train: Train,
    ) -> "SearchInputs":
        """The inputs from the config of `search.yaml`; other arguments as for the class.

        Args:
            labelling: measures policies and stores the results.
        """
        agent: Agent = instantiate(cfg.agent)
        return cls(
            agent,
            space,
            features,
            instantiate(cfg.rules) if agent.role.with_rules else {},
            cfg.search,
            train,
            lambda kept: labelling.measure(kept, PROPOSED).nll,
            fabric,
            cfg.seed,
            labelling.artefacts.folder / "training",
            training_identity(cfg),
            {} if cfg.search.warm_start else None,
        )

    def region(self) -> TrustRegion:
        """The trust region of the first round."""
        s = self.settings
        return TrustRegion(s.trust_region, s.widen, s.agreement, s.tolerance, s.gain)

    def objective(self, trained: Trained, radius: float, low: float, high: float) -> Objective:
        """The objective for the interval [low, high]; its `ratio` is the middle of the interval.

        Learners train on the whole interval.

        Args:
            radius: of the trust region.
        """
        return Objective(
            space=self.space,
            predictor=trained.predictor,
            ratio=(low + high) / 2,
            interval=(low, high),
            spread_penalty=self.settings.spread_penalty,
            trust_region=radius,
            features=self.features,
            rules=self.rules,
            device=self.fabric.device,
        )

    def run(
        self,
        trained: Trained,
        measured: Int[Tensor, "measured sites"] | None,
        history: list[dict[str, float]],
        number: int,
        earlier: int = 0,
    ) -> Run:
        """A round's run: its metrics join the history, and each round has a seed of its own.

        Args:
            measured: policies that the search starts from; see `Objective`.
            earlier: rounds of earlier searches in the history.
        """
        seed, processes = self.seed + number, self.fabric.world_size
        starts = None if measured is None else measured.tolist()
        kind = self.fabric.device.type  # which a checkpoint cannot change
        prices = self.space.prices  # each machine measures those of a latency
        versions = [version(package) for package in ("torch", "torchrl")]  # which name the states
        parts = trained.signature, *self.config, prices, seed, processes, kind, starts, versions
        name = signature("training", *parts)
        checkpoint = Checkpoint(self.checkpoints / name, self.settings.checkpoint_every)
        report = _reporter(self.fabric, history, earlier + number + 1)
        return Run(self.fabric, report, seed, checkpoint, self.learnt)


def training_identity(cfg: DictConfig) -> list[Any]:
    """What determines an agent's training, except predictor, seed and number of processes."""
    names, cache = ("agent", "budget", "rules", "search", "dynamic"), Path(cfg.paths.cache)
    groups = {name: with_code(plain(cfg[name]), cache) for name in names}
    for name, keys in _AFTERWARDS.items():
        groups[name] = {k: v for k, v in groups[name].items() if k not in keys}
    return [groups, cfg.mode, cfg.ratio]


_AFTERWARDS = {
    "search": ("checkpoint_every", "finalists", "proposals_only", "selection_windows", "start"),
}  # keys that do not change a training, once its predictor and its starts are known


def _reporter(fabric: Fabric, history: list[dict[str, float]], round_number: int) -> Report:
    """Logs an agent's metrics; step numbers continue from round to round."""
    first = int(history[-1]["step"]) + 1 if history else 0

    def report(step: int, metrics: Mapping[str, Tensor | float]) -> None:
        row = {name: float(value) for name, value in metrics.items()} | {"round": round_number}
        fabric.log_dict({f"search/{name}": value for name, value in row.items()}, first + step)
        history.append({"step": first + step, **row})

    return report
