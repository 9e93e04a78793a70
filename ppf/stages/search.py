"""search: rounds of an agent against the predictor, each ended by measuring its best."""

from collections.abc import Mapping
from dataclasses import dataclass

from hydra.utils import instantiate
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Agent, Report
from ppf.labels.collect import label
from ppf.labels.table import Labels
from ppf.progress import Stopwatch, say
from ppf.search.runner import run_search
from ppf.search.verify import Verification, verify
from ppf.stages.collect import label_store
from ppf.stages.objective import checkpoint_of, objective_of
from ppf.stages.prepare import Prepared
from ppf.stages.train import Trained, train


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        trained: the last round's predictor.
        measured: policies measured at this ratio in all rounds, uniform first; each prediction
            was made before the policy was measured.
        history: rows of the agent's metrics, over all rounds.
    """

    trained: Trained
    measured: Verification
    history: list[dict[str, float]]

    @property
    def kept(self) -> list[int]:
        """The best measured policy."""
        return self.measured.kept[self.measured.best].tolist()


def search(ready: Prepared, labels: Labels, clock: Stopwatch) -> Found:
    """Searches `search.rounds` times.

    What a round measures joins the labels that the next predictor is fitted to.

    Args:
        labels: of the sampler's policies, the dense one's first.
        clock: told the time of each part.
    """
    cfg, store = ready.cfg, label_store(ready)
    agent: Agent = instantiate(cfg.agent)

    def measure(kept: Int[Tensor, "n sites"]) -> Float[Tensor, " n"]:
        return label(store, ready.labeller, kept.cpu(), "search").nll

    history: list[dict[str, float]] = []
    rounds: list[Verification] = []
    for number in range(cfg.search.rounds):
        with clock("training the predictor"):
            trained = train(ready, labels, upstream=not rounds)
        objective = objective_of(ready, trained, cfg.ratio, agent)
        name = type(agent).__name__
        say(
            f"Searching at ratio {cfg.ratio} with {name},"
            f" round {number + 1} of {cfg.search.rounds}."
        )
        report = reporter(ready, history)
        with clock("searching on the predictor"):
            found = run_search(
                agent,
                objective,
                ready.fabric,
                cfg.search.top_k,
                report,
                cfg.seed + number,
                checkpoint_of(ready, trained, cfg.seed + number),
            )
        with clock("measuring the best"):
            rounds.append(verify(found, objective, measure))
        labels = labels.with_rows(rounds[-1].kept.cpu(), rounds[-1].measured.cpu(), "search")
    return Found(trained, Verification.merge(rounds), history)


def reporter(ready: Prepared, history: list[dict[str, float]]) -> Report:
    """Logs an agent's metrics; steps go on from round to round."""
    first = int(history[-1]["step"]) + 1 if history else 0

    def report(step: int, metrics: Mapping[str, Tensor | float]) -> None:
        row = {name: float(value) for name, value in metrics.items()}
        ready.fabric.log_dict(
            {f"search/{name}": value for name, value in row.items()}, first + step
        )
        history.append({"step": first + step, **row})

    return report
